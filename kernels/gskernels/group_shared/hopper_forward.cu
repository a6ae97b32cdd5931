// Y = X W^T over groups, for Hopper.
//
// A block holds X^T of one slice of 64 batch rows in shared memory and stays on its multiprocessor. Each of its
// warpgroups computes tiles of 64 rows x 64 labels on its own: weights and lists come by the copy engine, STAGES tiles
// ahead, asked for by a warp of its own; rows of X^T that a group reads go straight to registers by ldmatrix, whose row
// addresses are the list; wgmma multiplies. Each warp stores its 16 rows through shared memory by the copy engine, WIDE tiles
// at once, so that 128 or 256 bytes of a row go together: the wider, the faster memory takes them. No warp waits for
// another but to multiply.
//
// Macros: ELEMENT, K (multiple of 64), G (16, 32 or 64 labels that share a list; 64 stands for every multiple of it), LIST
// (labels of a real group), WARPGROUPS, STAGES, BIAS (0, 1), WIDE (1; 2 if `y` is a map of [batch][labels / 64][64]).
#include "hopper.cuh"

constexpr int PRODUCTS = 64 / G;  // of a tile
constexpr int WEIGHT_BYTES = 64 * K * 2, LIST_BYTES = PRODUCTS * K * 2, TILE_BYTES = 64 * 128;
constexpr int THREADS = WARPGROUPS * 160;

extern "C" __global__ void __launch_bounds__(THREADS, 1)
hopper_forward(const __grid_constant__ TensorMap weights, const __grid_constant__ TensorMap y, const T* __restrict__ x,
               const u16* __restrict__ lists, const T* __restrict__ bias, int batch, int dim, int labels, int slices) {
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ __align__(8) u64 barriers[2 * WARPGROUPS * STAGES];
  const bool loads = threadIdx.x >= WARPGROUPS * 128;
  const int group = loads ? threadIdx.x / 32 - WARPGROUPS * 4 : threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const int slice = blockIdx.x % slices, part = blockIdx.x / slices, parts = gridDim.x / slices;
  const u32 xt = shared_address(shared), ring = xt + dim * 128 + group * (STAGES * WEIGHT_BYTES);
  const u32 out = xt + dim * 128 + WARPGROUPS * STAGES * WEIGHT_BYTES + (group * 4 + warp) * (TILE_BYTES / 2);
  const int list_offset = dim * 128 + WARPGROUPS * (STAGES * WEIGHT_BYTES + 2 * TILE_BYTES) + group * STAGES * LIST_BYTES;
  const u32 full = shared_address(barriers + group * STAGES), empty = full + WARPGROUPS * STAGES * 8;
  if (threadIdx.x < 2 * WARPGROUPS * STAGES) mbarrier_init(shared_address(barriers + threadIdx.x), threadIdx.x < WARPGROUPS * STAGES ? 1 : 4);
  mbarrier_fence();
  __syncthreads();

  const int tiles = cdiv(labels, 64), first = part * WARPGROUPS + group, step = parts * WARPGROUPS;
  const bool one = elect();
  auto tile_of = [&](int turn) { return (first + turn / WIDE * step) * WIDE + turn % WIDE; };
  auto load = [&](int turn) {
    const int tile = tile_of(turn), stage = turn % STAGES, at = tile * 64 / LIST, held = min(PRODUCTS, cdiv(labels, LIST) - at);
    mbarrier_expect(full + 8 * stage, WEIGHT_BYTES + held * K * 2);
#pragma unroll
    for (int k = 0; k < K / 64; k++) tma_load(ring + stage * WEIGHT_BYTES + k * 8192, &weights, full + 8 * stage, k * 64, tile * 64);
    bulk_load(xt + list_offset + stage * LIST_BYTES, lists + static_cast<i64>(at) * K, held * K * 2, full + 8 * stage);
  };
  if (loads && one)
    for (int stage = 0; stage < STAGES; stage++) {
      // Lists that the last tile lacks would name any row: zero is one.
      for (int i = 0; i < LIST_BYTES / 4; i++) reinterpret_cast<u32*>(shared + list_offset + stage * LIST_BYTES)[i] = 0;
      fence_async();
      if (tile_of(stage) < tiles) load(stage);
    }
  load_slice<64>(xt, x, slice * 64, batch, dim);
  __syncthreads();

  if (loads) {
    for (int turn = STAGES; tile_of(turn) < tiles; turn++) {
      mbarrier_wait(empty + 8 * (turn % STAGES), turn / STAGES - 1 & 1);
      if (one) load(turn);
    }
    return;
  }
  const int piece = 2 * warp + ((lane >> 3) & 1), k_of_lane = ((lane >> 4) << 3) + (lane & 7);
  for (int turn = 0; tile_of(turn) < tiles; turn++) {
    const int tile = tile_of(turn), stage = turn % STAGES, half = turn % WIDE;
    mbarrier_wait(full + 8 * stage, turn / STAGES & 1);
    const u16* list = reinterpret_cast<const u16*>(shared + list_offset + stage * LIST_BYTES) + k_of_lane;
    float sums[PRODUCTS][G / 2];
#pragma unroll
    for (int p = 0; p < PRODUCTS; p++) {
      u32 a[K / 16][4];
#pragma unroll
      for (int k = 0; k < K / 16; k++) {
        const u32 input = list[p * K + k * 16];
        load_matrices_transposed(a[k], xt + input * 128 + ((piece ^ (input & 7)) << 4));
      }
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < K / 16; k++) {
        const u32 at = ring + stage * WEIGHT_BYTES + k / 4 * 8192 + p * G * 128 + k % 4 * 32;
        Wgmma<T, G, 0>::rs(sums[p], a[k], wgmma_matrix(at, 16, 1024, 1), k > 0);
      }
      wgmma_commit();
      if (PRODUCTS * K > 256 && p + 1 < PRODUCTS) wgmma_wait<0>();  // registers of one product at a time
    }
    if (one && half == 0) bulk_wait_read<WIDE == 1>();  // what the buffer held before has left
    __syncwarp();
    wgmma_wait<0>();
    if (lane == 0) mbarrier_arrive(empty + 8 * stage);
    // Rows of WIDE 128-byte pieces, whose 16-byte pieces the copy engine finds turned by the number of the 128 bytes, mod 8.
    const int line = (lane & 15) * WIDE + (WIDE == 1 ? (turn & 1) * 16 : half);
#pragma unroll
    for (int p = 0; p < PRODUCTS; p++)
#pragma unroll
      for (int j = 0; j < G / 16; j++) {
        const int column = p * (G / 8) + j * 2 + (lane >> 4);
        float* d = sums[p] + j * 8;
#if BIAS
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const int label = tile * 64 + p * G + j * 16 + h * 8 + lane % 4 * 2;
          const float low = label < labels ? to_float(bias[label]) : 0, high = label + 1 < labels ? to_float(bias[label + 1]) : 0;
          d[4 * h] += low, d[4 * h + 1] += high, d[4 * h + 2] += low, d[4 * h + 3] += high;
        }
#endif
        store_matrices(out + line * 128 + ((column ^ (line & 7)) << 4), pack<T>(d[0], d[1]), pack<T>(d[2], d[3]), pack<T>(d[4], d[5]), pack<T>(d[6], d[7]));
      }
    if (half < WIDE - 1 && tile + 1 < tiles) continue;
    fence_async();
    __syncwarp();
    if (one) {
      if (WIDE == 1) tma_store(&y, out + (turn & 1) * 2048, tile * 64, slice * 64 + warp * 16);
      else tma_store(&y, out, 0, tile / WIDE * WIDE, slice * 64 + warp * 16);
      bulk_commit();
    }
  }
  if (one) bulk_wait<0>();
}
