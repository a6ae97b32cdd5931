// The largest logit of every tile of 64 labels and every batch row, for Hopper: products as in hopper_forward.cu, no Y.
//
// A block holds X^T of one slice of 64 batch rows in shared memory and stays on its multiprocessor. Each of its
// warpgroups computes a run of neighbouring tiles of 64 rows x 64 labels on its own; of each it keeps a number a row, and
// stores those of a window of eight at once. Four lanes have 16 columns each of the same two rows.
//
// Macros: ELEMENT, K (multiple of 64), G (16, 32 or 64 labels that share a list), LIST (labels of a real group, a multiple
// of G), WARPGROUPS, STAGES, BIAS (0, 1), HINTS (0, 1: store what is known of a tile's parts, as topk.cuh says).
#include "hopper.cuh"
#include "topk.cuh"

constexpr int PRODUCTS = 64 / G;  // of a tile
constexpr bool ROW_OF_LISTS = LIST == G || LIST % 64 == 0;  // a tile's lists are neighbours, one a product
constexpr int WEIGHT_BYTES = 64 * K * 2, LIST_BYTES = PRODUCTS * K * 2;
constexpr int THREADS = WARPGROUPS * 160;
constexpr int ROOM = (WARPGROUPS > 2 ? 128 : 256) / K;  // products whose operands have registers at the same time
constexpr int TOGETHER = ROOM < 1 ? 1 : ROOM < PRODUCTS ? ROOM : PRODUCTS;

DEVICE float larger(float a, float b) {  // NaN if either is
  float v;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(v) : "f"(a), "f"(b));
  return v;
}

// maxima [batch, stride] fp32, NaN where a logit is; hints: see topk.cuh, `windows` for each pair of rows. run: tiles of a
// warpgroup, an even number.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
hopper_topk_maxima(const __grid_constant__ TensorMap weights, const T* __restrict__ x, const u16* __restrict__ lists,
                   const T* __restrict__ bias, float* __restrict__ maxima, u32* __restrict__ hints, int batch, int dim,
                   int labels, int stride, int slices, int run, int windows) {
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ __align__(8) u64 barriers[2 * WARPGROUPS * STAGES];
  start_next();
  const bool loads = threadIdx.x >= WARPGROUPS * 128;
  const int group = loads ? threadIdx.x / 32 - WARPGROUPS * 4 : threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const int slice = blockIdx.x % slices, part = blockIdx.x / slices;
  const u32 xt = shared_address(shared), ring = xt + dim * 128 + group * (STAGES * WEIGHT_BYTES);
  const int list_offset = dim * 128 + WARPGROUPS * STAGES * WEIGHT_BYTES + group * STAGES * LIST_BYTES;
  const u32 full = shared_address(barriers + group * STAGES), empty = full + WARPGROUPS * STAGES * 8;
  if (threadIdx.x < 2 * WARPGROUPS * STAGES) mbarrier_init(shared_address(barriers + threadIdx.x), threadIdx.x < WARPGROUPS * STAGES ? 1 : 4);
  mbarrier_fence();
  __syncthreads();

  const int first = (part * WARPGROUPS + group) * run, end = min(first + run, cdiv(labels, 64)), groups = cdiv(labels, LIST);
  const bool one = elect();
  auto load = [&](int tile, int stage) {
    const int held = min(PRODUCTS, cdiv(labels - tile * 64, G));
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
      if (first + stage < end) load(first + stage, stage);
    }
  if (!loads) load_slice<WARPGROUPS * 4, WARPGROUPS == 4 ? 6 : 8>(xt, x, slice * 64, batch, dim);
  __syncthreads();

  if (loads) {
    for (int tile = first + STAGES, stage = 0, phase = 0; tile < end; tile++) {
      mbarrier_wait(empty + 8 * stage, phase);
      if (one) load(tile, stage);
      if (++stage == STAGES) stage = 0, phase ^= 1;
    }
    return;
  }
  if (first >= end) return;
  const int piece = 2 * warp + ((lane >> 3) & 1);
  const bool odd = lane & 1;            // which of its two rows' numbers this lane keeps,
  const int upper = lane & 2 ? 4 : 0;   // and of which half of a window
  const int row = slice * 64 + warp * 16 + lane / 4 + odd * 8;
  float kept[4] = {};
  [[maybe_unused]] u32 below[2] = {};  // of either row, as hints are stored
  u32 a[TOGETHER][K / 64][4][4];
  // largest: of each half's labels of this lane, of either row.
  auto keep = [&](int tile, const float (&largest)[2][2]) {
    const int slot = (tile - first) % WINDOW;
    const float of_rows[2] = {larger(largest[0][0], largest[1][0]), larger(largest[0][1], largest[1][1])};
    float best = larger(odd ? of_rows[1] : of_rows[0], __shfl_xor_sync(~0u, odd ? of_rows[0] : of_rows[1], 1));
    best = larger(best, __shfl_xor_sync(~0u, best, 2));
#if HINTS
    const float other = __shfl_xor_sync(~0u, best, 1);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float bound = bound_of_parts(odd == (r == 1) ? best : other);
#pragma unroll
      for (int h = 0; h < 2; h++)  // the sign says whether it is less
        below[r] = __funnelshift_l(__float_as_uint(__fsub_rn(largest[h][r], bound)), below[r], 1);
    }
#endif
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (slot == i + upper) kept[i] = best;
    if (slot < WINDOW - 1 && tile + 1 < end) return;
    if (row < batch) {
      const int at = tile - slot + upper;  // what is stored beyond the last tile, nobody reads
      float2* to = reinterpret_cast<float2*>(maxima + static_cast<i64>(row) * stride + at);
      if (at < end) to[0] = make_float2(kept[0], kept[1]);
      if (at + 2 < end) to[1] = make_float2(kept[2], kept[3]);
    }
#if HINTS
    if (slice * 64 + warp * 16 < batch) {
      const int shift = 2 * (WINDOW - 1 - slot);
      const int window = (part * WARPGROUPS + group) * cdiv(run, WINDOW) + (tile - first) / WINDOW;
      const i64 at = static_cast<i64>((slice * 4 + warp) * 8 + lane / 4) * windows + window;
      hints[at * 4 + lane % 4] = __byte_perm(below[0] << shift, below[1] << shift, 0x5410);
    }
#endif
    __syncwarp();
  };

  for (int tile = first, stage = 0, phase = 0; tile < end; tile++) {
    float sums[PRODUCTS][G / 2];
    mbarrier_wait(full + 8 * stage, phase);
    const u16* list = reinterpret_cast<const u16*>(shared + list_offset + stage * LIST_BYTES);
#pragma unroll
    for (int from = 0; from < PRODUCTS; from += TOGETHER) {
#pragma unroll
      for (int p = 0; p < TOGETHER; p++)
#pragma unroll
        for (int c = 0; c < K / 64; c++) gather(a[p][c], xt, list + (from + p) * K + c * 64, piece, lane);
      wgmma_fence();
#pragma unroll
      for (int p = 0; p < TOGETHER; p++)
#pragma unroll
        for (int k = 0; k < K / 16; k++) {
          const u32 at = ring + stage * WEIGHT_BYTES + k / 4 * 8192 + (from + p) * G * 128 + k % 4 * 32;
          Wgmma<T, G, 0>::rs(sums[from + p], a[p][k / 4][k % 4], wgmma_matrix(at, 16, 1024, 1), k > 0);
        }
      wgmma_commit();
      wgmma_wait<0>();
    }
    __syncwarp();
    if (lane == 0) mbarrier_arrive(empty + 8 * stage);
    if (++stage == STAGES) stage = 0, phase ^= 1;

    // 16 sums for each 32 labels: of two neighbours two rows, and again 8 labels on.
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
    float largest[2][2];
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
      for (int r = 0; r < 2; r++) {
        float most[4];
#pragma unroll
        for (int j = 0; j < 4; j++) most[j] = larger(sum(h * 16 + j * 4 + r * 2), sum(h * 16 + j * 4 + r * 2 + 1));
        largest[h][r] = larger(larger(most[0], most[1]), larger(most[2], most[3]));
      }
    keep(tile, largest);
  }
}
