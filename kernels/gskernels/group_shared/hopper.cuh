// What the Hopper kernels of group_shared share. Macros: ELEMENT (bf16, fp16).
#pragma once
#include "../cuda/hopper.cuh"

#ifdef ELEMENT
typedef ELEMENT T;
#endif

// N rows of X [batch, dim] from `first` on, transposed: for each 64 rows [dim][64] with the 16-byte pieces of
// input d turned by d mod 8. By all threads of the block; dim is a multiple of 64; zero beyond the batch.
template <int N> DEVICE void load_slice(u32 to, const T* __restrict__ x, int first, int batch, int dim) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
#pragma unroll 3
  for (int task = warp; task < N / 8 * (dim / 64); task += warps) {
    const int d = task / (N / 8) * 64 + lane * 2, piece = task % (N / 8);
    u32 v[8];  // 8 rows of 2 inputs become 2 inputs of 8 rows
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int row = first + piece * 8 + i;
      v[i] = row < batch ? *reinterpret_cast<const u32*>(x + static_cast<i64>(row) * dim + d) : 0;
    }
    const u32 half = to + piece / 8 * dim * 128, at = half + d * 128;
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at + ((piece & 7) ^ (d & 7)) * 16),
                 "r"(__byte_perm(v[0], v[1], 0x5410)), "r"(__byte_perm(v[2], v[3], 0x5410)),
                 "r"(__byte_perm(v[4], v[5], 0x5410)), "r"(__byte_perm(v[6], v[7], 0x5410)) : "memory");
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at + 128 + ((piece & 7) ^ ((d + 1) & 7)) * 16),
                 "r"(__byte_perm(v[0], v[1], 0x7632)), "r"(__byte_perm(v[2], v[3], 0x7632)),
                 "r"(__byte_perm(v[4], v[5], 0x7632)), "r"(__byte_perm(v[6], v[7], 0x7632)) : "memory");
  }
}

// ---- sums of dX in shared memory ----

DEVICE u32 load_index(u32 at) {
  u32 v;
  asm volatile("{\n.reg .u16 h;\nld.shared.u16 h, [%1];\ncvt.u32.u16 %0, h;\n}" : "=r"(v) : "r"(at) : "memory");
  return v;
}
DEVICE float4 load_sums(u32 at) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(at) : "memory");
  return v;
}
DEVICE void store_sums(u32 at, float4 v) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(at), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}
