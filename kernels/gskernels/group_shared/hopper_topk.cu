// The largest logit of every tile of 64 labels and every batch row, for Hopper: products as in hopper_forward.cu, no Y.
//
// A block holds X^T of one slice of 64 batch rows in shared memory and stays on its multiprocessor. Each of its
// warpgroups computes tiles of 64 rows x 64 labels on its own; of each it keeps a number a row, and stores those of WIDE
// neighbouring tiles at once, so that a row's leave as one piece. Four lanes have 16 columns each of the same two rows:
// at the first exchange each takes one of the rows, so that only half of what it has travels.
//
// Macros: ELEMENT, K (multiple of 64), G (16, 32 or 64 labels that share a list), LIST (labels of a real group, a multiple
// of G), WARPGROUPS, STAGES, BIAS (0, 1), WIDE (2, 4 or 8), HINTS (0, 1: store what is known of a tile's quarters).
#include "hopper.cuh"

constexpr int PRODUCTS = 64 / G;  // of a tile
constexpr bool ROW_OF_LISTS = LIST == G || LIST % 64 == 0;  // a tile's lists are neighbours, one a product
constexpr int WEIGHT_BYTES = 64 * K * 2, LIST_BYTES = PRODUCTS * K * 2;
constexpr int THREADS = WARPGROUPS * 160, SPAN = WIDE / 2;  // tiles that a lane keeps numbers of
constexpr int HELD = (WARPGROUPS > 2 ? 128 : 256) / K;  // products whose operands have registers at the same time

DEVICE float larger(float a, float b) {  // NaN if either is
  float v;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(v) : "f"(a), "f"(b));
  return v;
}
DEVICE int exponent(float v) { return __float_as_int(v) >> 23 & 255; }
// A lower bound of most - part, in 4 bits: for c > 0 it is 2^(c - 11) times the power of two of `most`. See topk_choose.cu.
DEVICE u32 hint(float most, float part) { return min(max(exponent(__fsub_rn(most, part)) - exponent(most) + 10, 0), 15); }

// maxima [batch, stride] fp32, NaN where a logit is; hints [batch, stride]: 4 bits for each 16 labels, the first lowest.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
hopper_topk_maxima(const __grid_constant__ TensorMap weights, const T* __restrict__ x, const u16* __restrict__ lists,
                   const T* __restrict__ bias, float* __restrict__ maxima, u16* __restrict__ hints, int batch, int dim,
                   int labels, int stride, int slices) {
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ __align__(8) u64 barriers[2 * WARPGROUPS * STAGES];
  const bool loads = threadIdx.x >= WARPGROUPS * 128;
  const int group = loads ? threadIdx.x / 32 - WARPGROUPS * 4 : threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const int slice = blockIdx.x % slices, part = blockIdx.x / slices, parts = gridDim.x / slices;
  const u32 xt = shared_address(shared), ring = xt + dim * 128 + group * (STAGES * WEIGHT_BYTES);
  const int list_offset = dim * 128 + WARPGROUPS * STAGES * WEIGHT_BYTES + group * STAGES * LIST_BYTES;
  const u32 full = shared_address(barriers + group * STAGES), empty = full + WARPGROUPS * STAGES * 8;
  if (threadIdx.x < 2 * WARPGROUPS * STAGES) mbarrier_init(shared_address(barriers + threadIdx.x), threadIdx.x < WARPGROUPS * STAGES ? 1 : 4);
  mbarrier_fence();
  __syncthreads();

  const int tiles = cdiv(labels, 64), first = part * WARPGROUPS + group, step = parts * WARPGROUPS, groups = cdiv(labels, LIST);
  const bool one = elect();
  auto tile_of = [&](int turn) { return (first + turn / WIDE * step) * WIDE + turn % WIDE; };
  auto load = [&](int turn, int stage) {
    const int tile = tile_of(turn), held = min(PRODUCTS, cdiv(labels - tile * 64, G));
    const int at = tile * 64 / LIST, together = min(PRODUCTS, groups - at);
    mbarrier_expect(full + 8 * stage, WEIGHT_BYTES + (ROW_OF_LISTS ? together : held) * K * 2);
#pragma unroll
    for (int k = 0; k < K / 64; k++) tma_load(ring + stage * WEIGHT_BYTES + k * 8192, &weights, full + 8 * stage, k * 64, tile * 64);
    const u32 to = xt + list_offset + stage * LIST_BYTES;
    if (ROW_OF_LISTS) bulk_load(to, lists + static_cast<i64>(at) * K, together * K * 2, full + 8 * stage);
    else
      for (int p = 0; p < held; p++) bulk_load(to + p * K * 2, lists + static_cast<i64>((tile * 64 + p * G) / LIST) * K, K * 2, full + 8 * stage);
  };
  if (loads && one)
    for (int stage = 0; stage < STAGES; stage++) {
      // Lists that the last tile lacks would name any row: zero is one.
      for (int i = 0; i < LIST_BYTES / 4; i++) reinterpret_cast<u32*>(shared + list_offset + stage * LIST_BYTES)[i] = 0;
      fence_async();
      if (tile_of(stage) < tiles) load(stage, stage);
    }
  if (!loads) load_slice<WARPGROUPS * 4, WARPGROUPS == 4 ? 6 : 8>(xt, x, slice * 64, batch, dim);
  __syncthreads();

  if (loads) {
    for (int turn = STAGES, stage = 0, phase = 0; tile_of(turn) < tiles; turn++) {
      mbarrier_wait(empty + 8 * stage, phase);
      if (one) load(turn, stage);
      if (++stage == STAGES) stage = 0, phase ^= 1;
    }
    return;
  }
  const int piece = 2 * warp + ((lane >> 3) & 1);
  const bool odd = lane & 1, upper = lane & 2;  // which of the two rows, which half of the tiles, this lane keeps
  const int row = slice * 64 + warp * 16 + lane / 4 + odd * 8;
  float kept[SPAN];
#if HINTS
  u32 kept_hints[SPAN];
#endif
  for (int turn = 0, stage = 0, phase = 0; tile_of(turn) < tiles; turn++) {
    const int tile = tile_of(turn);
    mbarrier_wait(full + 8 * stage, phase);
    const u16* list = reinterpret_cast<const u16*>(shared + list_offset + stage * LIST_BYTES);
    float sums[PRODUCTS][G / 2];
#pragma unroll
    for (int p = 0; p < PRODUCTS; p++) {
      u32 a[K / 64][4][4];
#pragma unroll
      for (int c = 0; c < K / 64; c++) gather(a[c], xt, list + p * K + c * 64, piece, lane);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < K / 16; k++) {
        const u32 at = ring + stage * WEIGHT_BYTES + k / 4 * 8192 + p * G * 128 + k % 4 * 32;
        Wgmma<T, G, 0>::rs(sums[p], a[k / 4][k % 4], wgmma_matrix(at, 16, 1024, 1), k > 0);
      }
      wgmma_commit();
      if ((HELD == 0 || (p + 1) % HELD == 0) && p + 1 < PRODUCTS) wgmma_wait<0>();
    }
    wgmma_wait<0>();
    __syncwarp();
    if (lane == 0) mbarrier_arrive(empty + 8 * stage);
    if (++stage == STAGES) stage = 0, phase ^= 1;

    // 8 sums for each 16 labels: of two neighbours two rows, and again 8 labels on.
    auto sum = [&](int i) -> float& { return sums[i / 8 * 16 / G][i % (G / 2)]; };
    const int label_of_lane = tile * 64 + lane % 4 * 2;
#if BIAS
#pragma unroll
    for (int i = 0; i < 32; i += 4)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const float more = to_float(bias[min(label_of_lane + i * 2 + j, labels - 1)]);
        sum(i + j) += more, sum(i + j + 2) += more;
      }
#endif
    if (tile * 64 + 64 > labels)
#pragma unroll
      for (int i = 0; i < 32; i++)  // labels that do not exist
        if (label_of_lane + i / 4 * 8 + i % 2 >= labels) sum(i) = __int_as_float(0xFF800000);
    float most[4][2];  // of each 16 labels, in this lane's columns of its two rows
#pragma unroll
    for (int q = 0; q < 4; q++)
#pragma unroll
      for (int r = 0; r < 4; r += 2)
        most[q][r / 2] = larger(larger(sum(q * 8 + r), sum(q * 8 + r + 1)), larger(sum(q * 8 + r + 4), sum(q * 8 + r + 5)));
    float best;
#if HINTS
    float mine[4], quarter[2];  // of the row kept; of its first or last two quarters
#pragma unroll
    for (int q = 0; q < 4; q++)
      mine[q] = larger(odd ? most[q][1] : most[q][0], __shfl_xor_sync(~0u, odd ? most[q][0] : most[q][1], 1));
#pragma unroll
    for (int q = 0; q < 2; q++)
      quarter[q] = larger(upper ? mine[q + 2] : mine[q], __shfl_xor_sync(~0u, upper ? mine[q] : mine[q + 2], 2));
    best = larger(quarter[0], quarter[1]);
    best = larger(best, __shfl_xor_sync(~0u, best, 2));
    u32 code = (hint(best, quarter[0]) | hint(best, quarter[1]) << 4) << (upper ? 8 : 0);
    code |= __shfl_xor_sync(~0u, code, 2);
#else
    const float of_rows[2] = {larger(larger(most[0][0], most[1][0]), larger(most[2][0], most[3][0])),
                              larger(larger(most[0][1], most[1][1]), larger(most[2][1], most[3][1]))};
    best = larger(odd ? of_rows[1] : of_rows[0], __shfl_xor_sync(~0u, odd ? of_rows[0] : of_rows[1], 1));
    best = larger(best, __shfl_xor_sync(~0u, best, 2));
#endif
    const int slot = turn % WIDE - (upper ? SPAN : 0);
#pragma unroll
    for (int i = 0; i < SPAN; i++)
      if (slot == i) kept[i] = best;
#if HINTS
#pragma unroll
    for (int i = 0; i < SPAN; i++)
      if (slot == i) kept_hints[i] = code;
#endif
    if (turn % WIDE < WIDE - 1 && tile + 1 < tiles) continue;  // what is stored beyond the last tile, nobody reads
    if (row < batch) {
      const i64 at = static_cast<i64>(row) * stride + tile / WIDE * WIDE + (upper ? SPAN : 0);
      if (SPAN == 4) *reinterpret_cast<float4*>(maxima + at) = make_float4(kept[0], kept[1 % SPAN], kept[2 % SPAN], kept[3 % SPAN]);
      else if (SPAN == 2) *reinterpret_cast<float2*>(maxima + at) = make_float2(kept[0], kept[1 % SPAN]);
      else maxima[at] = kept[0];
#if HINTS
      const u32 low = kept_hints[0] | kept_hints[1 % SPAN] << 16, high = kept_hints[2 % SPAN] | kept_hints[3 % SPAN] << 16;
      if (SPAN == 4) *reinterpret_cast<uint2*>(hints + at) = make_uint2(low, high);
      else if (SPAN == 2) *reinterpret_cast<u32*>(hints + at) = low;
      else hints[at] = static_cast<u16>(low);
#endif
    }
    __syncwarp();
  }
}
