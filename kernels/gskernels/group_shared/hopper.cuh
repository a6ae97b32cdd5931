// What the Hopper kernels of group_shared share. Macros: ELEMENT (bf16, fp16).
#pragma once
#include "../cuda/hopper.cuh"

#ifdef ELEMENT
typedef ELEMENT T;
#endif

// Where blocks are of two kinds, these alternate along the grid: neighbouring blocks come to neighbouring multiprocessors, which share a way to L2,
// and who owns labels needs more of it. Of the first `places` blocks, those that own labels, as `label_blocks` of all `blocks` do.
DEVICE u32 owners_before(u32 places, u32 label_blocks, u32 blocks) { return places * label_blocks / blocks; }
// Whether the block at a place owns labels; `before`: how many before it do.
DEVICE bool owns_labels_at(u32 place, u32 label_blocks, u32 blocks, u32& before) {
  before = owners_before(place, label_blocks, blocks);
  return owners_before(place + 1, label_blocks, blocks) != before;
}

// Of two neighbouring numbers of each of eight rows, those of the first or of the second, in a row.
DEVICE uint4 eight_of(const u32 (&rows)[8], bool second) {
  const u32 which = second ? 0x7632 : 0x5410;
  return make_uint4(__byte_perm(rows[0], rows[1], which), __byte_perm(rows[2], rows[3], which), __byte_perm(rows[4], rows[5], which),
                    __byte_perm(rows[6], rows[7], which));
}

// 64 rows of X [batch, dim] from `first` on, transposed: [dim][64] with the 16-byte pieces of input d turned by d mod 8. By
// the first WARPS warps of the block; all loads of AT_ONCE tasks of a warp are on their way before the first is waited for.
// dim is a multiple of 64; zero beyond the batch.
template <int WARPS, int AT_ONCE> DEVICE void load_slice(u32 to, const T* __restrict__ x, int first, int batch, int dim) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, tasks = dim / 8;
  // Eight lanes that write together take even and odd inputs, four each, so that they meet all banks.
  const u32 odd = lane >> 2 & 1;
  for (int task = warp; task < tasks; task += WARPS * AT_ONCE) {
    u32 v[AT_ONCE][8];  // 8 rows of 2 inputs become 2 inputs of 8 rows
#pragma unroll
    for (int n = 0; n < AT_ONCE; n++) {
      const int mine = task + n * WARPS, row = first + mine % 8 * 8;
      const T* from = x + static_cast<i64>(row) * dim + mine / 8 * 64 + lane * 2;
#pragma unroll
      for (int i = 0; i < 8; i++, from += dim) v[n][i] = mine < tasks && row + i < batch ? __ldg(reinterpret_cast<const u32*>(from)) : 0;
    }
#pragma unroll
    for (int n = 0; n < AT_ONCE; n++) {
      const int mine = task + n * WARPS, piece = mine % 8;
      if (mine >= tasks) break;
      const u32 d = mine / 8 * 64 + lane * 2 + odd, other = d ^ 1;
      shared_store(to + d * 128 + ((piece ^ (d & 7)) << 4), eight_of(v[n], odd));
      shared_store(to + other * 128 + ((piece ^ (other & 7)) << 4), eight_of(v[n], !odd));
    }
  }
}

// The same by the copy engine, in two steps, by GROUPS warpgroups of which this is number `group`. Squares of 64 rows x 64 inputs:
// asked for by one lane (`x` is a map of boxes of 64 x 64, `came` a barrier of its own);
template <int GROUPS> DEVICE void ask_slice(u32 to, const TensorMap* x, u32 came, int group, int first, int dim) {
  const int squares = dim / 64, mine = cdiv(squares - group, GROUPS);
  if (mine > 0) mbarrier_expect(came, mine * 8192);
#pragma unroll 1
  for (int s = group; s < squares; s += GROUPS) tma_load(to + s * 8192, x, came, s * 64, first);
}
// and transposed in their place by the warpgroup, where a warp takes 16 inputs. `turn`: a barrier of the block, free for it.
template <int GROUPS> DEVICE void turn_slice(u32 to, u32 came, int group, int turn, int warp, int lane, int dim) {
  const int squares = dim / 64;
  if (group < squares) mbarrier_wait(came, 0);
  const int line = lane & 7, column = 2 * warp + (lane >> 3 & 1), half = lane >> 4;  // of the matrix whose address this lane gives
#pragma unroll 1
  for (int s = group; s < squares; s += GROUPS) {
    const u32 square = to + s * 8192;
    u32 v[4][4];
#pragma unroll
    for (int q = 0; q < 4; q++) load_matrices_transposed(v[q], square + ((2 * q + half) * 8 + line) * 128 + ((column ^ line) << 4));
    barrier(turn, 128);
#pragma unroll
    for (int q = 0; q < 4; q++)
      store_matrices(square + (column * 8 + line) * 128 + (((2 * q + half) ^ line) << 4), v[q][0], v[q][1], v[q][2], v[q][3]);
  }
}

// 64 inputs of a list for a warp's 16 rows: what wgmma takes as its first operand, 16 inputs at a time.
DEVICE void gather(u32 (&a)[4][4], u32 xt, const u16* list, int piece, int lane) {
  const int k_of_lane = ((lane >> 4) << 3) + (lane & 7);
#pragma unroll
  for (int k = 0; k < 4; k++) {
    const u32 input = list[k_of_lane + k * 16];
    load_matrices_transposed(a[k], xt + input * 128 + ((piece ^ (input & 7)) << 4));
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
