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
constexpr int NEAR = 8;               // quads of a thread whose largest logits stay in registers
constexpr int MOST_QUADS = 256, MOST_PIECES = 128 * PIECES, MOST_LABELS = 1024;  // that are listed
constexpr int ROUNDS = MOST_QUADS * QUAD / THREADS;

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

// n numbers of a row, and the logits of pieces: each(f) calls f(key, place) for those of this thread. Of the numbers the first IN
// stay in its registers.
template <int IN> struct Numbers {
  const float* from;
  int n;
  u32 keys[IN];
  DEVICE Numbers(const float* at, int count) : from(at), n(count) {
    float v[IN];  // all on their way before the first is waited for
#pragma unroll
    for (int j = 0; j < IN; j++) v[j] = static_cast<int>(threadIdx.x) + j * THREADS < n ? __ldcg(from + threadIdx.x + j * THREADS) : 0;
#pragma unroll
    for (int j = 0; j < IN; j++) keys[j] = static_cast<int>(threadIdx.x) + j * THREADS < n ? sort_key(v[j]) : 0;
  }
  template <class F> DEVICE void each(F f) const {
#pragma unroll
    for (int j = 0; j < IN; j++)
      if (keys[j]) f(keys[j], threadIdx.x + j * THREADS);
#pragma unroll 4
    for (int i = threadIdx.x + IN * THREADS; i < n; i += THREADS) f(sort_key(__ldcg(from + i)), i);
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
  int n, labels;
  u32 room;  // of this warp
  template <class F> DEVICE void each(F f) const {
    const int lane = threadIdx.x % 32, part = lane % 8, row = lane & 15;
#pragma unroll 1
    for (int from = threadIdx.x / 32 * 4; from < n; from += WARPS * 4) {
      auto first_of = [&](int i) { return pieces[min(from + i, n - 1)]; };
      const int first = first_of(lane / 8);  // whose weights this lane copies
      const u16* names = lists + static_cast<i64>(first_of(lane / 4 % 4) / LIST) * K + lane % 4 * 2;
      float sums[4] = {0, 0, 0, 0};
#pragma unroll 1
      for (int c = 0; c < K; c += 64) {
        u32 named[8];  // two inputs each
#pragma unroll
        for (int i = 0; i < 8; i++) named[i] = __ldg(reinterpret_cast<const u32*>(names + c + i * 8));
#pragma unroll
        for (int i = 0; i < 4; i++) {  // labels that do not exist are left out below
          const int m = lane / 8 * 4 + i;
          copy_async(room + m * 128 + ((part ^ (m & 7)) << 4), weight + static_cast<i64>(min(label_of(first, i), labels - 1)) * K + c + part * 8);
        }
        copy_commit();
#pragma unroll
        for (int i = 0; i < 8; i++) named[i] = inputs[named[i] & 0xFFFF] | static_cast<u32>(inputs[named[i] >> 16]) << 16;
        copy_wait<0>();
        __syncwarp();
#pragma unroll
        for (int s = 0; s < 4; s++) {
          u32 a[4];
          load_matrices(a, room + row * 128 + (((s * 2 + (lane >> 4)) ^ (row & 7)) << 4));
          mma_16816<T>(sums, a, named[s * 2], named[s * 2 + 1]);
        }
        __syncwarp();
      }
      // Columns 0 and 1 are for the first two pieces, 2 and 3 for the others.
      const int half = lane % 4, m = lane / 4, i = half * 2 + m / 4, label = label_of(first_of(i), m % 4);
      if (half < 2 && from + i < n && label < labels) {
        float z = m < 4 ? (half ? sums[2] : sums[0]) : (half ? sums[3] : sums[1]);
#if BIAS
        z += to_float(bias[label]);
#endif
        f(sort_key(z), label);
      }
    }
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
  int* quad_list = reinterpret_cast<int*>(shared);  // later weights of each warp
  u64* list = reinterpret_cast<u64*>(shared + WARPS * STEP_BYTES);  // of labels
  int* pieces = reinterpret_cast<int*>(list + MOST_LABELS);         // first labels
  u16* inputs = reinterpret_cast<u16*>(pieces + MOST_PIECES);       // the row of x
#pragma unroll 1
  for (int i = threadIdx.x; i < dim / 2; i += THREADS)
    reinterpret_cast<u32*>(inputs)[i] = reinterpret_cast<const u32*>(x + static_cast<i64>(row) * dim)[i];
  if (threadIdx.x < 3) counts[threadIdx.x] = 0;
  wait_for_earlier();

  // The quads.
  const float* tiles_at = maxima + static_cast<i64>(row) * stride;
  const Numbers<NEAR> source(quads + static_cast<i64>(row) * (stride / QUAD), cdiv(tiles, QUAD));
  u32 mine = 0;
  source.each([&](u32 key, int) { mine = max(mine, key); });
  u32 least = max(reached(mine, k, scratch), 1);
  int hits = 0;
  if (mine >= least) source.each([&](u32 key, int) { hits += key >= least; });
  int quad_at = places(hits, &listed_quads);
  if (hits)
    source.each([&](u32 key, int quad) {
      if (key < least) return;
      if (quad_at < MOST_QUADS) quad_list[quad_at] = quad;
      quad_at++;
    });
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
    int tile_of[ROUNDS], n = 0;
    u32 keys[ROUNDS] = {}, masks[ROUNDS] = {};
    mine = 0;
#pragma unroll
    for (int r = 0; r < ROUNDS; r++) {
      const int i = threadIdx.x + r * THREADS;
      tile_of[r] = i / QUAD < found ? quad_list[i / QUAD] * QUAD + i % QUAD : tiles;
      if (tile_of[r] >= tiles) continue;
      const float largest = __ldcg(tiles_at + tile_of[r]);
      if (HINTS) masks[r] = pieces_below(hints, row, tile_of[r], stride);
      if (sort_key(largest) >= least) keys[r] = sort_key(largest);
      mine = max(mine, keys[r]);
    }
    least = max(least, reached(mine, k, scratch));
#pragma unroll
    for (int r = 0; r < ROUNDS; r++) {
      masks[r] = keys[r] >= least ? pieces_of(tile_of[r], keys[r], masks[r]) : 0;
      n += __popc(masks[r]);
    }
    int at = places(n, &listed_pieces);
#pragma unroll
    for (int r = 0; r < ROUNDS; r++) put(at, tile_of[r], masks[r]), at += __popc(masks[r]);
  }
  __syncthreads();
  if (found > MOST_QUADS || listed_pieces > MOST_PIECES) {  // many are equal: exactly k tiles, of equal ones the first
    const Numbers<1> all(tiles_at, tiles);
    const u64 bound = radix_bound(all, k, scratch);
    least = key_of(bound);
    if (threadIdx.x == 0) listed_pieces = 0;
    __syncthreads();
    all.each([&](u32 key, int tile) {
      if (entry(key, tile) < bound) return;
      const u32 mask = pieces_of(tile, key, HINTS ? pieces_below(hints, row, tile, stride) : 0);
      put(atomicAdd(&listed_pieces, __popc(mask)), tile, mask);
    });
    __syncthreads();
  }

  // Their logits, and of these the labels. If all is well k reach what k tiles do; where many are equal, or few tiles exist,
  // first what k threads reach.
  const Logits logits{weight, lists, bias, inputs, pieces, listed_pieces, labels, shared_address(shared) + warp * STEP_BYTES};
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
