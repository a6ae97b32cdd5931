// What kernels for sm_80 and newer share: short names, conversions, 16-byte pieces, ldmatrix, cp.async, mma.sync.
// Element types are float, __half and __nv_bfloat16; sums are float.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;
typedef __nv_bfloat16 bf16;
typedef __half fp16;

#define DEVICE __device__ __forceinline__

template <class A, class B> DEVICE constexpr A cdiv(A a, B b) { return (a + b - 1) / b; }

// The number of the multiprocessor that this runs on.
DEVICE u32 multiprocessor() {
  u32 v;
  asm volatile("mov.u32 %0, %smid;" : "=r"(v));
  return v;
}

// ---- conversions ----

DEVICE float to_float(float v) { return v; }
DEVICE float to_float(fp16 v) { return __half2float(v); }
DEVICE float to_float(bf16 v) { return __bfloat162float(v); }

template <class T> DEVICE T from_float(float v);
template <> DEVICE float from_float<float>(float v) { return v; }
template <> DEVICE fp16 from_float<fp16>(float v) { return __float2half_rn(v); }
template <> DEVICE bf16 from_float<bf16>(float v) { return __float2bfloat16_rn(v); }

// Two neighbouring 16-bit numbers of one 32-bit word, the one at the lower address first.
template <class T> DEVICE u32 pack(float low, float high);
template <> DEVICE u32 pack<fp16>(float low, float high) {
  __half2 v = __floats2half2_rn(low, high);
  return *reinterpret_cast<u32*>(&v);
}
template <> DEVICE u32 pack<bf16>(float low, float high) {
  __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<u32*>(&v);
}

// ---- global memory: what is written once should not push anything out of the caches ----

DEVICE void store_once(void* p, uint4 v) {
  asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

// 32 bits that no one writes meanwhile, asked for where this stands: the compiler does not move it to where they are used.
DEVICE u32 load_word(const void* p) {
  u32 v;
  asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}

// ---- flags and counts in global memory, between blocks ----

DEVICE u32 load_acquire(const u32* at) {
  u32 v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
  return v;
}
DEVICE u32 load_relaxed(const u32* at) {
  u32 v;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
  return v;
}
DEVICE void store_relaxed(u32* at, u32 v) { asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(at), "r"(v) : "memory"); }
DEVICE void fence_gpu() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
DEVICE void add_relaxed(u32* at, u32 v) { asm volatile("red.relaxed.gpu.global.add.u32 [%0], %1;" ::"l"(at), "r"(v) : "memory"); }

// ---- shared memory ----

DEVICE u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }
DEVICE void shared_store(u32 at, uint4 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

// 16 bytes from global memory, in the background; with bytes = 0 it writes zeros and reads nothing.
DEVICE void copy_async(u32 to, const void* from, u32 bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

// The barrier `id` (1..15; 0 is __syncthreads) of `threads` threads of the block.
DEVICE void barrier(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
// Counts as there, and goes on.
DEVICE void barrier_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// Four 8 x 8 matrices of 16-bit numbers; lane i gives the address of row i % 8 of matrix i / 8.
DEVICE void load_matrices(u32 (&r)[4], u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
// Two of them, transposed; lanes 0 to 15 give addresses.
DEVICE void load_matrices_transposed(u32& r0, u32& r1, u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(r0), "=r"(r1) : "r"(at) : "memory");
}
DEVICE void load_matrices_transposed(u32 (&r)[4], u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

// ---- a kernel that starts before the one before it on its stream has ended (`early` of a launch; sm_90) ----

// By the earlier kernel: from now on the blocks of the next may take room that blocks of this one leave.
DEVICE void start_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// By the later one: until the earlier has ended, and what it has written is seen.
DEVICE void wait_for_earlier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// ---- tensor cores ----

// d [16 x 8] += a [16 x 16] b [16 x 8], one warp.
template <class T> DEVICE void mma_16816(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1);
#define GS_MMA(T, NAME)                                                                                              \
  template <> DEVICE void mma_16816<T>(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {                           \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "           \
        "{%8, %9}, {%0, %1, %2, %3};"                                                                       \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                    \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                    \
  }
GS_MMA(bf16, "bf16")
GS_MMA(fp16, "f16")
#undef GS_MMA

// ---- between rows of the batch and rows of inputs ----

// out[d, b] = x[b, d] for b < batch, zero for batch <= b < stride: the `number`-th square of 32 x 32, by 256 threads.
// x [batch, dim], out [dim, stride]
template <class E> DEVICE void transpose_square(u32 number, const E* __restrict__ x, E* __restrict__ out, int batch, int dim, int stride) {
  __shared__ E square[32][33];
  const int across = cdiv(dim, 32), d0 = number % across * 32, b0 = number / across * 32;
  const int column = threadIdx.x % 32, first = threadIdx.x / 32;
  for (int row = first; row < 32; row += 8) {
    const bool inside = b0 + row < batch && d0 + column < dim;
    square[row][column] = inside ? x[static_cast<i64>(b0 + row) * dim + d0 + column] : from_float<E>(0.f);
  }
  __syncthreads();
  for (int row = first; row < 32; row += 8)
    if (d0 + row < dim && b0 + column < stride) out[static_cast<i64>(d0 + row) * stride + b0 + column] = square[column][row];
}
