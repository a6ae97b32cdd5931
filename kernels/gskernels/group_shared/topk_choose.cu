// The k best labels of each batch row, from the largest logit of each tile of 64 labels. For sm_80 and newer, 16-bit types.
//
// A block per row. It lists the k tiles with the largest maxima (of equal ones the first), takes of these the parts of 4
// labels that may hold a logit as large as the least of these maxima, computes their logits by mma.sync, a warp four parts
// at a time, lists those that are as large, hardly more than k, and orders them.
//
// Macros: ELEMENT, K (multiple of 64), LIST (labels that share a list, a multiple of 16), BIAS (0, 1), HINTS (0, 1: know
// which parts).
#include "topk.cuh"
#include "topk_list.cuh"

typedef ELEMENT T;

constexpr int PIECE_BYTES = 16 * 128;                    // 64 weights of four parts
constexpr int NEAR = WARPS * AHEAD * PIECE_BYTES / 4;    // maxima of its row that a block keeps in shared memory

#if PROFILE
#define MARK(i) if (threadIdx.x == 0) marks[blockIdx.x * 16 + i] = clock64()
#define MARKS , i64* marks
DEVICE i64 nanoseconds() { i64 t; asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t)); return t; }
#else
#define MARK(i)
#define MARKS
#endif

// Of one row. Who looks at a piece of 16 bytes is who copied it, until all have met.
struct Maxima {
  const float *near, *row;
  int n;
  DEVICE Maxima(float* copy, const float* from, int count) : near(copy), row(from), n(count) {
#pragma unroll 1
    for (int i = threadIdx.x * 4; i < min(n, NEAR); i += THREADS * 4) copy_async(shared_address(copy + i), row + i);
    copy_commit();
    copy_wait<0>();
  }
  DEVICE float operator[](int i) const { return (i < NEAR ? near : row)[i]; }
  // f(four numbers, place of the first), for those of this thread.
  template <class F> DEVICE void fours(F f) const {
    int i = threadIdx.x * 4;
#pragma unroll 1
    for (; i < min(n, NEAR); i += THREADS * 4) f(*reinterpret_cast<const float4*>(near + i), i);
#pragma unroll 1
    for (; i < n; i += THREADS * 4) f(__ldcg(reinterpret_cast<const float4*>(row + i)), i);
  }
  DEVICE u32 largest() const {
    float most = __int_as_float(0xFF800000);
    fours([&](float4 v, int i) {
      most = larger(most, v.x);
      if (i + 1 < n) most = larger(most, v.y);
      if (i + 2 < n) most = larger(most, v.z);
      if (i + 3 < n) most = larger(most, v.w);
    });
    return threadIdx.x * 4 < n ? sort_key(most) : 0;
  }
  template <class F> DEVICE void reaching(u32 key, F f) const {
    const float least = value_of(key);  // what is no number leaves out nothing
    fours([&](float4 v, int i) {
      u32 mask = !(v.x < least) | !(v.y < least) << 1 | !(v.z < least) << 2 | !(v.w < least) << 3;
      if (i + 4 > n) mask &= (1 << (n - i)) - 1;
#pragma unroll 1
      for (; mask; mask &= mask - 1) {
        const int at = i + __ffs(mask) - 1;
        f(sort_key((*this)[at]), at);
      }
    });
  }
  template <class F> DEVICE void each(F f) const { reaching(0, f); }
};

// The parts whose logits are computed again: 16 times the rank of the tile, and which of it.
struct Parts {
  const u16* listed;
  const u64* tiles;
  DEVICE int first(int i) const { return first_label(place_of(tiles[listed[i] / PARTS]), listed[i] % PARTS); }
};

struct Candidates {
  const u32* keys;
  Parts parts;
  int n;
  template <class F> DEVICE void each(F f) const {
#pragma unroll 1
    for (int i = threadIdx.x; i < n; i += THREADS) f(keys[i], label_of(parts.first(i / 4), i % 4));
  }
  template <class F> DEVICE void reaching(u32, F f) const { each(f); }
  DEVICE u32 largest() const {
    u32 most = 0;
#pragma unroll 1
    for (int i = threadIdx.x; i < n; i += THREADS) most = max(most, keys[i]);
    return most;
  }
};

// What is known of the parts of a tile: which lie below a bound.
struct Below {
  uint4 words;
  int shift;
  float bound;
  DEVICE u32 mask() const {
    return (words.x >> shift & 15) | (words.y >> shift & 15) << 4 | (words.z >> shift & 15) << 8 | (words.w >> shift & 15) << 12;
  }
  DEVICE u32 key() const {  // of the bound, if it is one; 0 is none: -0 counts as less there
    return fabsf(bound) < __int_as_float(0x7F800000) && bound != 0 ? sort_key(bound) : ~0u;
  }
};
DEVICE Below what_is_below(const u32* hints, const Maxima& maxima, int row, int tile, int run, int quads) {
  const int slot = tile % run, first = tile - slot, before = first + (slot / WINDOW - 1) * WINDOW;
  const i64 quad = static_cast<i64>(pair_of(row)) * quads + tile / run * cdiv(run, QUAD) + slot / QUAD;
  Below b{*reinterpret_cast<const uint4*>(hints + quad * 4), 16 * half_of(row) + 4 * (QUAD - 1 - slot % QUAD), 0};
  float mean = maxima[first];
  if (slot >= WINDOW) {
    float sums[2];
#pragma unroll
    for (int h = 0; h < 2; h++)
      sums[h] = __fadd_rn(__fadd_rn(maxima[before + h * 4], maxima[before + h * 4 + 1]), __fadd_rn(maxima[before + h * 4 + 2], maxima[before + h * 4 + 3]));
    mean = __fadd_rn(sums[0], sums[1]) * 0.125f;
  }
  b.bound = bound_of_parts(mean, slot < WINDOW);
  return b;
}

// maxima [batch, stride], of `run` tiles a warpgroup; hints: see topk.cuh, `quads` for each pair of rows; x [batch, dim];
// weight [labels, K]; lists [groups, K]; values, best [batch, k].
extern "C" __global__ void __launch_bounds__(THREADS, 2)
topk_choose(const float* maxima, const u32* hints, const T* __restrict__ x, const T* __restrict__ weight,
            const u16* __restrict__ lists, const T* __restrict__ bias, float* __restrict__ values, i64* __restrict__ best, int dim,
            int labels, int stride, int run, int quads, int k MARKS) {
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ Scratch scratch;
  __shared__ u64 chosen[128];
  u32 *below = scratch.bins, *bounds = scratch.bins + 128;  // nobody counts digits while these are known
  const int row = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int tiles = cdiv(labels, 64), count = min(k, tiles);
  // A ring of weights, before that maxima.
  u64* list = reinterpret_cast<u64*>(shared + WARPS * AHEAD * PIECE_BYTES);
  u32* keys = reinterpret_cast<u32*>(list + ROOM);             // of the candidates, count * 64
  u16* inputs = reinterpret_cast<u16*>(keys + count * 64);     // the row of x
  u16* listed = inputs + dim;                                  // parts, count * 16
  const Parts part_list{listed, chosen};
#if PROFILE
  if (threadIdx.x == 0) marks[blockIdx.x * 16 + 14] = nanoseconds();
#endif
  MARK(0);
#pragma unroll 1
  for (int i = threadIdx.x; i < dim / 2; i += THREADS)
    reinterpret_cast<u32*>(inputs)[i] = reinterpret_cast<const u32*>(x + static_cast<i64>(row) * dim)[i];
  if (threadIdx.x == 0) scratch.parts = 0, scratch.bound = 0;
  wait_for_earlier();
  MARK(1);

  // The tiles.
  const Maxima of_tiles(reinterpret_cast<float*>(shared), maxima + static_cast<i64>(row) * stride, tiles);
  MARK(2);
  const int found = list_best(of_tiles, count, list, scratch);
#if PROFILE
  if (threadIdx.x == 0) marks[blockIdx.x * 16 + 3] = scratch.mark;
#endif
  MARK(4);
  ranked(list, found, count,
         [&](u64 one, bool mine) { return HINTS && mine ? what_is_below(hints, of_tiles, row, place_of(one), run, quads) : Below{}; },
         [&](int rank, u64 one, const Below& b) {
           chosen[rank] = one;
           if (rank == k - 1) scratch.bound = key_of(one);  // k tiles, and so k labels, reach it
#if HINTS
           below[rank] = b.mask(), bounds[rank] = b.key();
#endif
         });
  __syncthreads();
  MARK(5);

  // Their parts, in any order.
  const u32 least = scratch.bound;
  if (threadIdx.x < 128) {
    const bool mine = threadIdx.x < count;
    const int tile = mine ? place_of(chosen[threadIdx.x]) : 0;
    u32 mask = 0;
    if (mine) {
      mask = (1 << PARTS) - 1;
      if (tile * 64 + 64 > labels)
#pragma unroll 1
        for (int p = 0; p < PARTS; p++)
          if (first_label(tile, p) >= labels) mask &= ~(1 << p);
#if HINTS
      if (bounds[threadIdx.x] <= least) mask &= ~below[threadIdx.x];
#endif
    }
    const int n = __popc(mask);
    int at = n;  // up to this lane
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const int other = __shfl_up_sync(~0u, at, d);
      if (lane >= d) at += other;
    }
    int start = lane == 31 ? atomicAdd(&scratch.parts, at) : 0;
    start = __shfl_sync(~0u, start, 31);
    at += start - n;
    for (u32 left = mask; left; left &= left - 1) listed[at++] = static_cast<u16>(threadIdx.x * PARTS + __ffs(left) - 1);
  } else if (threadIdx.x == 128) scratch.count = 0;
  __syncthreads();
  MARK(6);

  // Their logits. A warp has four parts as the 16 rows of its product, eight lanes copy one. What its list names is a column
  // of the second operand.
  const int parts = scratch.parts, steps = max(0, cdiv(cdiv(parts, 4) - warp, WARPS)) * (K / 64);
  const u32 ring = shared_address(shared) + warp * AHEAD * PIECE_BYTES;
  const int m_of_lane = lane & 15;
  u32 named[AHEAD][8];  // two inputs each
  auto first_of = [&](int step, int i) { return part_list.first(min((warp + step / (K / 64) * WARPS) * 4 + i, parts - 1)); };
  auto ask_names = [&](int step, u32 (&names)[8]) {
    if (step >= steps) return;
    const u16* from = lists + static_cast<i64>(first_of(step, lane / 4 % 4) / LIST) * K + step % (K / 64) * 64 + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 8; i++) names[i] = __ldg(reinterpret_cast<const u32*>(from + i * 8));
  };
  auto ask_weights = [&](int step) {
    if (step < steps) {
      const int piece = lane % 8, first = first_of(step, lane / 8);
      const T* from = weight + static_cast<i64>(first) * K + step % (K / 64) * 64 + piece * 8;
#pragma unroll
      for (int i = 0; i < 4; i++) {  // labels that do not exist are left out below
        const int m = lane / 8 * 4 + i;
        copy_async(ring + step % AHEAD * PIECE_BYTES + m * 128 + ((piece ^ (m & 7)) << 4), from + min(label_of(0, i), labels - 1 - first) * K);
      }
    }
    copy_commit();
  };
#pragma unroll
  for (int i = 0; i < AHEAD; i++) ask_names(i, named[i]);
#pragma unroll 1
  for (int i = 0; i < AHEAD; i++) ask_weights(i);
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
      load_matrices(a, ring + step % AHEAD * PIECE_BYTES + m_of_lane * 128 + (((s * 2 + (lane >> 4)) ^ (m_of_lane & 7)) << 4));
      mma_16816<T>(sums, a, b[s * 2], b[s * 2 + 1]);
    }
    __syncwarp();
    ask_names(step + AHEAD, named[AHEAD - 1]);
    ask_weights(step + AHEAD);
    if ((step + 1) % (K / 64)) continue;
    if (lane % 4 < 2) {  // columns 0 and 1 are for the first two parts, 2 and 3 for the others
      const int half = lane % 4, m = lane / 4, part = (warp + step / (K / 64) * WARPS) * 4 + half * 2 + m / 4;
      float z = m < 4 ? (half ? sums[2] : sums[0]) : (half ? sums[3] : sums[1]);
      if (part < parts) {
        const int label = label_of(part_list.first(part), m % 4);
#if BIAS
        if (label < labels) z += to_float(bias[label]);
#endif
        const u32 key = label < labels ? sort_key(z) : 0;
        keys[part * 4 + m % 4] = key;
        if (key && key >= least) {
          const int at = atomicAdd(&scratch.count, 1);
          if (at < ROOM) list[at] = entry(key, label);
        }
      }
    }
    sums[0] = sums[1] = sums[2] = sums[3] = 0;
  }
  copy_wait<0>();
  __syncthreads();
  MARK(7);

  // The labels.
  int candidates = scratch.count;
#if DIRECT
  if (candidates < k || candidates > ROOM)
#endif
  {
    __syncthreads();
    candidates = list_best(Candidates{keys, part_list, parts * 4}, k, list, scratch);
  }
  MARK(8);
  ranked(list, candidates, k, [](u64, bool) { return 0; }, [&](int rank, u64 one, int) {
    const float value = value_of(key_of(one));
    const i64 at = static_cast<i64>(row) * k + rank;
    values[at] = value;
    best[at] = value == __int_as_float(0xFF800000) ? -1 : place_of(one);
  });
  MARK(9);
#if PROFILE
  if (threadIdx.x == 0) marks[blockIdx.x * 16 + 10] = found, marks[blockIdx.x * 16 + 11] = parts, marks[blockIdx.x * 16 + 12] = candidates, marks[blockIdx.x * 16 + 15] = nanoseconds();
#endif
}
