// The k best labels of each batch row, from the largest logit of each tile of 64 labels and of each quad of these. For sm_80 and
// newer, 16-bit types.
//
// A block per row. It lists the quads, hardly more than k, that reach what k of them reach: among their tiles are the k best. Of
// these it takes the pieces of 4 labels that may hold a logit as large as what k tiles reach, computes their logits by mma.sync, a
// warp four pieces at a time, lists those that are as large, again hardly more than k, and orders them.
//
// Macros: ELEMENT, K (multiple of 64), LIST (labels that share a list, a multiple of 16), BIAS (0, 1), HINTS (0, 1: know
// which parts).
#include "topk.cuh"
#include "topk_list.cuh"

typedef ELEMENT T;

constexpr int STEP_BYTES = 16 * 128;  // 64 weights of four pieces
constexpr int AHEAD = 2;              // of these, that a warp asks for at once
constexpr int NEAR = 8;               // quads of a thread whose largest logits stay in registers
constexpr int MOST_QUADS = THREADS, MOST_PIECES = 128 * PIECES, MOST_LABELS = 1024;  // that are listed
constexpr int ROUNDS = MOST_QUADS * QUAD / THREADS;
static_assert(MOST_QUADS * 4 <= WARPS * AHEAD * STEP_BYTES);

// Which pieces of a tile lie below its bound.
DEVICE u32 pieces_below(const u32* hints, int row, int tile, int stride) {
  const uint4 words = __ldcg(reinterpret_cast<const uint4*>(hints + hint_at(pair_of(row), tile, stride)));
  const int shift = 4 * (WINDOW - 1 - tile % WINDOW) + 2 * half_of(row);
  return ((words.x >> shift & 3) | (words.y >> shift & 3) << 4 | (words.z >> shift & 3) << 8 | (words.w >> shift & 3) << 12) * 5;
}

// Whether what lies below the bound of a tile is less than the number whose key is `least`.
DEVICE bool leaves_out(u32 key, u32 least) {
  const float bound = bound_of_parts(value_of(key));
  return fabsf(bound) < __int_as_float(0x7F800000) && bound != 0 && sort_key(bound) <= least;  // 0: -0 counts as less there
}

// The tiles of a row, and the logits of pieces: each(f) calls f(key, place) for those of this thread.
struct Tiles {
  const float* largest;
  int n;
  template <class F> DEVICE void each(F f) const {
#pragma unroll 1
    for (int i = threadIdx.x; i < n; i += THREADS) f(sort_key(__ldcg(largest + i)), i);
  }
};

// A warp has four pieces as the 16 rows of its product, eight lanes copy one. What its list names is a column of the second
// operand.
struct Logits {
  const T* weight;
  const u16* lists;
  const T* bias;
  const u16* inputs;
  const int* pieces;
  u32 ring;  // of this warp
  int n, labels;
  DEVICE int number_of(int step, int i) const { return (threadIdx.x / 32 + step / (K / 64) * WARPS) * 4 + i; }
  DEVICE int first_of(int step, int i) const { return pieces[min(number_of(step, i), n - 1)]; }
  DEVICE void ask_names(int step, int steps, u32 (&names)[8]) const {
    if (step >= steps) return;
    const int lane = threadIdx.x % 32;
    const u16* from = lists + static_cast<i64>(first_of(step, lane / 4 % 4) / LIST) * K + step % (K / 64) * 64 + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 8; i++) names[i] = __ldg(reinterpret_cast<const u32*>(from + i * 8));
  }
  DEVICE void ask_weights(int step, int steps) const {
    if (step < steps) {
      const int lane = threadIdx.x % 32, piece = lane % 8, first = first_of(step, lane / 8);
      const T* from = weight + static_cast<i64>(first) * K + step % (K / 64) * 64 + piece * 8;
#pragma unroll
      for (int i = 0; i < 4; i++) {  // labels that do not exist are left out below
        const int m = lane / 8 * 4 + i;
        copy_async(ring + step % AHEAD * STEP_BYTES + m * 128 + ((piece ^ (m & 7)) << 4), from + min(label_of(0, i), labels - 1 - first) * K);
      }
    }
    copy_commit();
  }
  template <class F> DEVICE void each(F f) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, m_of_lane = lane & 15;
    const int steps = max(0, cdiv(cdiv(n, 4) - warp, WARPS)) * (K / 64);
    u32 named[AHEAD][8];  // two inputs each
#pragma unroll
    for (int i = 0; i < AHEAD; i++) ask_names(i, steps, named[i]);
#pragma unroll 1
    for (int i = 0; i < AHEAD; i++) ask_weights(i, steps);
    float sums[4] = {0, 0, 0, 0};
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
      u32 b[8];
#pragma unroll
      for (int j = 0; j < 8; j++) {
        b[j] = inputs[named[0][j] & 0xFFFF] | static_cast<u32>(inputs[named[0][j] >> 16]) << 16;
#pragma unroll
        for (int i = 1; i < AHEAD; i++) named[i - 1][j] = named[i][j];
      }
      copy_wait<AHEAD - 1>();
      __syncwarp();
#pragma unroll
      for (int s = 0; s < 4; s++) {
        u32 a[4];
        load_matrices(a, ring + step % AHEAD * STEP_BYTES + m_of_lane * 128 + (((s * 2 + (lane >> 4)) ^ (m_of_lane & 7)) << 4));
        mma_16816<T>(sums, a, b[s * 2], b[s * 2 + 1]);
      }
      __syncwarp();
      ask_names(step + AHEAD, steps, named[AHEAD - 1]);
      ask_weights(step + AHEAD, steps);
      if ((step + 1) % (K / 64)) continue;
      if (lane % 4 < 2) {  // columns 0 and 1 are for the first two pieces, 2 and 3 for the others
        const int half = lane % 4, m = lane / 4, i = half * 2 + m / 4;
        float z = m < 4 ? (half ? sums[2] : sums[0]) : (half ? sums[3] : sums[1]);
        const int label = label_of(first_of(step, i), m % 4);
        if (number_of(step, i) < n && label < labels) {
#if BIAS
          z += to_float(bias[label]);
#endif
          f(sort_key(z), label);
        }
      }
      sums[0] = sums[1] = sums[2] = sums[3] = 0;
    }
    copy_wait<0>();
  }
};

// quads [batch, stride / 4], maxima [batch, stride]; hints: see topk.cuh; x [batch, dim]; weight [labels, K]; lists [groups, K];
// values, best [batch, k].
extern "C" __global__ void __launch_bounds__(THREADS, 2)
topk_choose(const float* quads, const float* maxima, const u32* hints, const T* __restrict__ x, const T* __restrict__ weight,
            const u16* __restrict__ lists, const T* __restrict__ bias, float* __restrict__ values, i64* __restrict__ best, int dim,
            int labels, int stride, int k) {
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ Scratch scratch;
  __shared__ int counts[3];
  int &listed_quads = counts[0], &listed_pieces = counts[1], &listed_labels = counts[2];
  const int row = blockIdx.x, warp = threadIdx.x / 32, tiles = cdiv(labels, 64);
  // A ring of weights, before that quads.
  int* quad_list = reinterpret_cast<int*>(shared);
  u64* list = reinterpret_cast<u64*>(shared + WARPS * AHEAD * STEP_BYTES);  // of labels
  int* pieces = reinterpret_cast<int*>(list + MOST_LABELS);                 // first labels
  u16* inputs = reinterpret_cast<u16*>(pieces + MOST_PIECES);               // the row of x
#pragma unroll 1
  for (int i = threadIdx.x; i < dim / 2; i += THREADS)
    reinterpret_cast<u32*>(inputs)[i] = reinterpret_cast<const u32*>(x + static_cast<i64>(row) * dim)[i];
  if (threadIdx.x < 3) counts[threadIdx.x] = 0;
  wait_for_earlier();

  // The quads.
  const float *tiles_at = maxima + static_cast<i64>(row) * stride, *quads_at = quads + static_cast<i64>(row) * (stride / QUAD);
  const int all_quads = cdiv(tiles, QUAD);
  u32 near[NEAR], mine = 0;
#pragma unroll
  for (int j = 0; j < NEAR; j++) {
    const int i = threadIdx.x + j * THREADS;
    near[j] = i < all_quads ? __float_as_uint(__ldcg(quads_at + i)) : 0;
  }
#pragma unroll
  for (int j = 0; j < NEAR; j++) {
    near[j] = threadIdx.x + j * THREADS < all_quads ? sort_key(__uint_as_float(near[j])) : 0;
    mine = max(mine, near[j]);
  }
#pragma unroll 4
  for (int i = threadIdx.x + NEAR * THREADS; i < all_quads; i += THREADS) mine = max(mine, sort_key(__ldcg(quads_at + i)));
  u32 least = max(reached(mine, k, scratch), 1);
  {
    int hits = 0;
#pragma unroll
    for (int j = 0; j < NEAR; j++) hits += near[j] >= least;
    if (mine >= least)
      for (int i = threadIdx.x + NEAR * THREADS; i < all_quads; i += THREADS) hits += sort_key(__ldcg(quads_at + i)) >= least;
    int at = places(hits, &listed_quads);
    auto put = [&](int i) {
      if (at < MOST_QUADS) quad_list[at] = i;
      at++;
    };
#pragma unroll
    for (int j = 0; j < NEAR; j++)
      if (near[j] >= least) put(threadIdx.x + j * THREADS);
    if (mine >= least)
      for (int i = threadIdx.x + NEAR * THREADS; i < all_quads; i += THREADS)
        if (sort_key(__ldcg(quads_at + i)) >= least) put(i);
  }
  __syncthreads();

  // Their tiles, and of these the pieces, in any order.
  const int found = listed_quads;
  auto pieces_of = [&](int tile, u32 key, u32 below) {
    u32 mask = HINTS && leaves_out(key, least) ? ~below & 0xFFFF : 0xFFFF;
    if (tile * 64 + 64 > labels)
#pragma unroll 1
      for (int p = 0; p < PIECES; p++)
        if (first_label(tile, p) >= labels) mask &= ~(1 << p);
    return mask;
  };
  auto put = [&](int at, int tile, u32 mask) {
#pragma unroll 1
    for (; mask; mask &= mask - 1, at++)
      if (at < MOST_PIECES) pieces[at] = first_label(tile, __ffs(mask) - 1);
  };
  if (found <= MOST_QUADS) {
    u32 keys[ROUNDS], below[ROUNDS];
    mine = 0;
    auto tile_of = [&](int r) { return quad_list[(threadIdx.x + r * THREADS) / QUAD] * QUAD + static_cast<int>(threadIdx.x) % QUAD; };
#pragma unroll
    for (int r = 0; r < ROUNDS; r++) {
      keys[r] = below[r] = 0;
      if ((threadIdx.x + r * THREADS) / QUAD < found && tile_of(r) < tiles) {
        const float largest = __ldcg(tiles_at + tile_of(r));
        if (HINTS) below[r] = pieces_below(hints, row, tile_of(r), stride);
        keys[r] = sort_key(largest);
        if (keys[r] < least) keys[r] = 0;
        mine = max(mine, keys[r]);
      }
    }
    least = max(least, reached(mine, k, scratch));
    int n = 0;
#pragma unroll
    for (int r = 0; r < ROUNDS; r++) {
      below[r] = keys[r] >= least ? pieces_of(tile_of(r), keys[r], below[r]) : 0;
      n += __popc(below[r]);
    }
    int at = places(n, &listed_pieces);
#pragma unroll
    for (int r = 0; r < ROUNDS; r++)
      if (below[r]) put(at, tile_of(r), below[r]), at += __popc(below[r]);
  }
  __syncthreads();
  if (found > MOST_QUADS || listed_pieces > MOST_PIECES) {  // many are equal: exactly k tiles, of equal ones the first
    const Tiles source{tiles_at, tiles};
    const u64 bound = radix_bound(source, k, scratch);
    least = key_of(bound);
    if (threadIdx.x == 0) listed_pieces = 0;
    __syncthreads();
    source.each([&](u32 key, int tile) {
      if (entry(key, tile) < bound) return;
      const u32 mask = pieces_of(tile, key, HINTS ? pieces_below(hints, row, tile, stride) : 0);
      put(atomicAdd(&listed_pieces, __popc(mask)), tile, mask);
    });
    __syncthreads();
  }

  // Their logits, and of these the labels. If all is well k reach what k tiles do; where many are equal, or few tiles exist,
  // first what k threads reach.
  const Logits logits{weight, lists, bias, inputs, pieces, shared_address(shared) + warp * AHEAD * STEP_BYTES, listed_pieces, labels};
  u64 bound = static_cast<u64>(least) << 32;
#pragma unroll 1
  for (int pass = 0;; pass++) {
    mine = 0;
    logits.each([&](u32 key, int label) {
      mine = max(mine, key);
      if (entry(key, label) < bound) return;
      const int at = atomicAdd(&listed_labels, 1);
      if (at < MOST_LABELS) list[at] = entry(key, label);
    });
    __syncthreads();
    if (k <= listed_labels && listed_labels <= MOST_LABELS) break;
    __syncthreads();
    if (threadIdx.x == 0) listed_labels = 0;
    bound = pass == 0 ? static_cast<u64>(reached(mine, k, scratch)) << 32 : radix_bound(logits, k, scratch);
    __syncthreads();
  }
  ranked(list, listed_labels, k, [&](int rank, u64 one) {
    const float value = value_of(key_of(one));
    const i64 at = static_cast<i64>(row) * k + rank;
    values[at] = value;
    best[at] = value == __int_as_float(0xFF800000) ? -1 : place_of(one);
  });
}
