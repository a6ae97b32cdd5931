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

// A column of the grid has a slice, a row of it is a part of the labels. maxima [batch, stride], quads [batch, stride / 4] fp32,
// the largest of each tile and of each quad, NaN where a logit is; hints: see topk.cuh.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
hopper_topk_maxima(const __grid_constant__ TensorMap weights, const __grid_constant__ TensorMap x, const u16* __restrict__ lists,
                   const T* __restrict__ bias, float* __restrict__ maxima, float* __restrict__ quads, u32* __restrict__ hints,
                   int batch, int dim, int labels, int stride) {
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ __align__(8) u64 barriers[WARPGROUPS][2 * STAGES + 1];
  start_next();
  // The same for all lanes, and the compiler knows: what follows from it goes to uniform registers.
  const int number = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const bool loads = number >= WARPGROUPS * 4;
  const int group = loads ? number - WARPGROUPS * 4 : number / 4, warp = number % 4;
  const int slice = blockIdx.x, tiles = cdiv(labels, 64);
  const u32 xt = shared_address(shared), ring = xt + dim * 128 + group * (STAGES * WEIGHT_BYTES);
  const int list_offset = dim * 128 + WARPGROUPS * STAGES * WEIGHT_BYTES + group * STAGES * LIST_BYTES;
  const u32 full = shared_address(barriers[group]), empty = full + STAGES * 8, came = empty + STAGES * 8;
  const bool one = elect();
  if (loads && one) {
    for (int s = 0; s < STAGES; s++) mbarrier_init(full + 8 * s, 1), mbarrier_init(empty + 8 * s, 4);
    mbarrier_init(came, 1);
    mbarrier_fence();
    ask_slice<WARPGROUPS>(xt, &x, came, group, slice * 64, dim);
  }
  __syncthreads();

  // Whole quads, as many for each warpgroup of the slice, or one more.
  const u64 quads_in_all = cdiv(tiles, QUAD), run = blockIdx.y * WARPGROUPS + group, runs = gridDim.y * WARPGROUPS;
  const int first = static_cast<int>(quads_in_all * run / runs) * QUAD, end = min(static_cast<int>(quads_in_all * (run + 1) / runs) * QUAD, tiles);
  if (loads) {
    for (int tile = first, stage = 0, phase = 1; tile < end; tile++) {  // the parity of what has not begun counts as over
      mbarrier_wait(empty + 8 * stage, phase);
      if (one) {
        const int held = min(PRODUCTS, cdiv(labels - tile * 64, G));
        const int at = tile * 64 / LIST, together = ROW_OF_LISTS ? min(PRODUCTS, cdiv(labels, LIST) - at) : held;
        // Lists that the last tile lacks would name any row: zero is one.
#pragma unroll 1
        for (int i = together * K / 2; i < LIST_BYTES / 4; i++) reinterpret_cast<u32*>(shared + list_offset + stage * LIST_BYTES)[i] = 0;
        mbarrier_expect(full + 8 * stage, WEIGHT_BYTES + together * K * 2);
#pragma unroll
        for (int k = 0; k < K / 64; k++) tma_load(ring + stage * WEIGHT_BYTES + k * 8192, &weights, full + 8 * stage, k * 64, tile * 64);
        const u32 to = xt + list_offset + stage * LIST_BYTES;
        if (ROW_OF_LISTS) bulk_load(to, lists + static_cast<i64>(at) * K, together * K * 2, full + 8 * stage);
        else
          for (int p = 0; p < held; p++) bulk_load(to + p * K * 2, lists + static_cast<i64>((tile * 64 + p * G) / LIST) * K, K * 2, full + 8 * stage);
      }
      if (++stage == STAGES) stage = 0, phase ^= 1;
    }
    return;
  }
  turn_slice<WARPGROUPS>(xt, came, group, 2 + group, warp, lane, dim);
  barrier(1, WARPGROUPS * 128);

  const int piece = 2 * warp + ((lane >> 3) & 1);
  const bool odd = lane & 1;            // which of its two rows' numbers this lane keeps,
  const int upper = lane & 2 ? 4 : 0;   // and of which quad of a window
  const int row = slice * 64 + warp * 16 + lane / 4 + odd * 8;
  float kept[QUAD] = {};
  [[maybe_unused]] u32 below = 0;  // as hints are stored
  u32 a[TOGETHER][K / 64][4][4];
  // largest: of each half's labels of this lane, of either row.
  auto keep = [&](int tile, const float (&largest)[2][2]) {
    const int slot = tile % WINDOW;
    const float of_rows[2] = {larger(largest[0][0], largest[1][0]), larger(largest[0][1], largest[1][1])};
    float best = larger(odd ? of_rows[1] : of_rows[0], __shfl_xor_sync(~0u, odd ? of_rows[0] : of_rows[1], 1));
    best = larger(best, __shfl_xor_sync(~0u, best, 2));
#if HINTS
    const float other = __shfl_xor_sync(~0u, best, 1);
#pragma unroll
    for (int r = 1; r >= 0; r--) {
      const float bound = bound_of_parts(odd == (r == 1) ? best : other);
#pragma unroll
      for (int h = 1; h >= 0; h--)  // the sign says whether it is less
        below = __funnelshift_l(__float_as_uint(__fsub_rn(largest[h][r], bound)), below, 1);
    }
#endif
#pragma unroll
    for (int i = 0; i < QUAD; i++)
      if (slot == i + upper) kept[i] = best;
    if (slot < WINDOW - 1 && tile + 1 < end) return;
    const int window = tile - slot;  // of which either quad may be another's
    if (row < batch && upper <= slot && window + upper >= first) {
#pragma unroll
      for (int i = 1; i < QUAD; i++)
        if (upper + i > slot) kept[i] = __int_as_float(0xFF800000);  // beyond the last tile
      const i64 at = static_cast<i64>(row) * stride + window + upper;
      // Together, which the compiler would not.
      asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(maxima + at), "f"(kept[0]), "f"(kept[1]), "f"(kept[2]), "f"(kept[3]) : "memory");
      quads[at / QUAD] = larger(larger(kept[0], kept[1]), larger(kept[2], kept[3]));
    }
#if HINTS
    if (slice * 64 + warp * 16 < batch) {
      u32* word = hints + hint_at((slice * 4 + warp) * 8 + lane / 4, tile, stride) + lane % 4;
      if (slot >= QUAD && window >= first) *word = below << 4 * (WINDOW - 1 - slot);
      else reinterpret_cast<u16*>(word)[slot < QUAD] = static_cast<u16>(below << 4 * (QUAD - 1 - slot % QUAD));
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
