// The k best labels of each batch row, from the largest logit of each tile of 64 labels. For sm_80 and newer, 16-bit types.
//
// A block per row. It lists the k tiles with the largest maxima (of equal ones the first), takes of these the parts of 8
// labels that may hold a logit as large as the least of these maxima, computes their logits by mma.sync, a warp two parts
// at a time, and lists the k best of them.
//
// Macros: ELEMENT, K (multiple of 64), LIST (labels that share a list, a multiple of 16), BIAS (0, 1), HINTS (0, 1: know
// which parts).
#include "topk.cuh"
#include "topk_list.cuh"

typedef ELEMENT T;

constexpr int PIECE_BYTES = 16 * 128;                            // 64 weights of two parts
constexpr int LISTS = LIST % 32 == 0 ? 2 : 4;                    // of two parts
constexpr int PITCH = 36;                                        // words of a list's inputs: four lists meet all banks
constexpr int OPERANDS = LISTS * PITCH;
constexpr int NEAR = 14 * 1024;                                  // maxima of its row that a block keeps in shared memory
static_assert(NEAR * 4 + ROOM * 8 <= WARPS * 2 * PIECE_BYTES);

// Of one row. Who looks at a piece of 16 bytes is who copied it.
struct Maxima {
  const float *near, *row;
  int n;
  DEVICE Maxima(float* copy, const float* from, int count) : near(copy), row(from), n(count) {
    for (int i = threadIdx.x * 4; i < min(n, NEAR); i += THREADS * 4) copy_async(shared_address(copy + i), row + i);
    copy_commit();
    copy_wait<0>();
  }
  template <class F> DEVICE void each(F f) const {
#pragma unroll 1
    for (int i = threadIdx.x * 4; i < n; i += THREADS * 4) {
      const float4 v = *reinterpret_cast<const float4*>((i < NEAR ? near : row) + i);
      f(sort_key(v.x), i);
      if (i + 1 < n) f(sort_key(v.y), i + 1);
      if (i + 2 < n) f(sort_key(v.z), i + 2);
      if (i + 3 < n) f(sort_key(v.w), i + 3);
    }
  }
};

// The parts whose logits are computed again: 8 times the rank of the tile, and which of it.
struct Parts {
  const u16* listed;
  const u64* tiles;
  DEVICE int first(int i) const { return first_label(place_of(tiles[listed[i] / 8]), listed[i] % 8); }
};

struct Candidates {
  const u32* keys;
  Parts parts;
  int n;
  template <class F> DEVICE void each(F f) const {
#pragma unroll 1
    for (int i = threadIdx.x; i < n; i += THREADS) f(keys[i], label_of(parts.first(i / 8), i % 8));
  }
};

// Which parts of a tile, 2 t + h, lie below the bound that follows from its largest logit.
DEVICE u32 parts_below(const u32* hints, int row, int tile, int run, int windows) {
  const int slot = tile % run, window = tile / run * cdiv(run, WINDOW) + slot / WINDOW;
  const uint4 words = *reinterpret_cast<const uint4*>(hints + (static_cast<i64>(pair_of(row)) * windows + window) * 4);
  const int shift = 16 * half_of(row) + 2 * (WINDOW - 1 - slot % WINDOW);
  const u32 of_lane[4] = {words.x >> shift & 3, words.y >> shift & 3, words.z >> shift & 3, words.w >> shift & 3};
  u32 mask = 0;
#pragma unroll
  for (int t = 0; t < 4; t++) mask |= (of_lane[t] >> 1 | (of_lane[t] & 1) << 1) << 2 * t;
  return mask;
}

// Whether what lies below the bound of a tile is less than the number whose key is `least`.
DEVICE bool leaves_out(u32 key, u32 least) {
  const float bound = bound_of_parts(value_of(key));
  return fabsf(bound) < __int_as_float(0x7F800000) && bound != 0 && sort_key(bound) <= least;  // 0: -0 counts as less there
}

// maxima [batch, stride], of `run` tiles a warpgroup; hints: see topk.cuh, `windows` for each pair of rows; x [batch, dim];
// weight [labels, K]; lists [groups, K]; values, best [batch, k].
extern "C" __global__ void __launch_bounds__(THREADS, 2)
topk_choose(const float* maxima, const u32* hints, const T* __restrict__ x, const T* __restrict__ weight,
            const u16* __restrict__ lists, const T* __restrict__ bias, float* __restrict__ values, i64* __restrict__ best, int dim,
            int labels, int stride, int run, int windows, int k) {
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ Scratch scratch;
  __shared__ u64 chosen[128];
  __shared__ u32 below[128];
  const int row = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int tiles = cdiv(labels, 64), count = min(k, tiles);
  // A ring of weights, before that maxima; a list before and after it.
  u64* list = reinterpret_cast<u64*>(shared + NEAR * 4);
  u32* keys = reinterpret_cast<u32*>(shared + WARPS * 2 * PIECE_BYTES);         // of the candidates, count * 64
  u32* operands = keys + count * 64 + warp * OPERANDS;  // the inputs of each list
  u16* inputs = reinterpret_cast<u16*>(keys + count * 64 + WARPS * OPERANDS);  // the row of x
  u16* listed = inputs + dim;                                                   // parts, count * 8
  const Parts part_list{listed, chosen};
#pragma unroll 1
  for (int i = threadIdx.x; i < dim / 2; i += THREADS)
    reinterpret_cast<u32*>(inputs)[i] = reinterpret_cast<const u32*>(x + static_cast<i64>(row) * dim)[i];
  if (threadIdx.x == 0) scratch.parts = 0;
  wait_for_earlier();

  // The tiles.
  const int found = list_best(Maxima(reinterpret_cast<float*>(shared), maxima + static_cast<i64>(row) * stride, tiles), count, list, scratch);
  ranked(list, found, count, [&](int rank, u64 one) {
    chosen[rank] = one;
#if HINTS
    below[rank] = parts_below(hints, row, place_of(one), run, windows);
#endif
  });
  __syncthreads();

  // Their parts, in any order.
  if (threadIdx.x < 128) {
    const bool mine = threadIdx.x < count;
    const u64 one = chosen[mine ? threadIdx.x : 0];
    u32 mask = 0;
    if (mine) {
#pragma unroll
      for (int p = 0; p < 8; p++) mask |= (first_label(place_of(one), p) < labels) << p;
#if HINTS
      // What the last one's largest is, k tiles, and so k labels, reach.
      if (count == k && leaves_out(key_of(one), key_of(chosen[count - 1]))) mask &= ~below[threadIdx.x];
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
    for (u32 left = mask; left; left &= left - 1) listed[at++] = static_cast<u16>(threadIdx.x * 8 + __ffs(left) - 1);
  }
  __syncthreads();

  // Their logits. A warp has a part for rows 0 to 7 of its product and one for the others, half of its lanes copy either. What
  // their lists name are columns of the second operand: 2 i + j is of part i, where LIST asks for that of its quarter j of a tile.
  const int parts = scratch.parts, steps = max(0, cdiv(cdiv(parts, 2) - warp, WARPS)) * (K / 64);
  const int half = lane / 16, row_of_two = lane / 8 % 2, piece = lane % 8;
  const u32 ring = shared_address(shared) + warp * 2 * PIECE_BYTES;
  constexpr int NAMED = LISTS * 2;  // inputs of a lane
  u32 next[NAMED / 2];
  auto ask = [&](int step) {
    if (step < steps) {
      const int first = part_list.first(min((warp + step / (K / 64) * WARPS) * 2 + half, parts - 1)), at = step % (K / 64) * 64;
      const T* from = weight + static_cast<i64>(first + row_of_two) * K + at + piece * 8;
#pragma unroll
      for (int j = 0; j < 4; j++) {  // labels first + 8 j + row_of_two
        const int m = 2 * j + row_of_two;
        const bool inside = first + j * 8 + row_of_two < labels;
        copy_async(ring + step % 2 * PIECE_BYTES + (half * 8 + m) * 128 + ((piece ^ m) << 4), inside ? from + j * 8 * K : weight, inside ? 16 : 0);
      }
      const int list = min(LISTS == 4 ? first + lane / 8 % 2 * 16 : first, labels - 1) / LIST;
      const u16* names = lists + static_cast<i64>(list) * K + at + lane % (32 / LISTS) * NAMED;
#pragma unroll
      for (int i = 0; i < NAMED / 2; i += 2) {
        const uint2 two = *reinterpret_cast<const uint2*>(names + i * 2);
        next[i] = two.x, next[i + 1] = two.y;
      }
    }
    copy_commit();
  };
  ask(0);
  float sums[4] = {0, 0, 0, 0};
  const int m_of_lane = lane & 15;
  u32* mine = operands + lane / (32 / LISTS) * PITCH + lane % (32 / LISTS) * (NAMED / 2);
  const u32* second = operands + (LISTS == 4 ? lane / 4 % 4 : lane / 8 % 2) * PITCH + lane % 4;
  for (int step = 0; step < steps; step++) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < NAMED / 2; i++) mine[i] = inputs[next[i] & 0xFFFF] | static_cast<u32>(inputs[next[i] >> 16]) << 16;
    ask(step + 1);
    copy_wait<1>();
    __syncwarp();
#pragma unroll
    for (int s = 0; s < 4; s++) {
      u32 a[4];
      load_matrices(a, ring + step % 2 * PIECE_BYTES + m_of_lane * 128 + (((s * 2 + (lane >> 4)) ^ (m_of_lane & 7)) << 4));
      mma_16816<T>(sums, a, second[s * 8], second[s * 8 + 4]);
    }
    if ((step + 1) % (K / 64)) continue;
    if (lane % 4 < 2) {  // columns 0 and 1 are for the first part, 2 and 3 for the second
      const int i = lane % 4, m = lane / 4, part = (warp + step / (K / 64) * WARPS) * 2 + i;
      float z = m < 4 ? (i ? sums[2] : sums[0]) : (i ? sums[3] : sums[1]);
      if (part < parts) {
        const int label = label_of(part_list.first(part), m);
#if BIAS
        if (label < labels) z += to_float(bias[label]);
#endif
        keys[part * 8 + m] = label < labels ? sort_key(z) : 0;
      }
    }
    sums[0] = sums[1] = sums[2] = sums[3] = 0;
  }
  copy_wait<0>();
  __syncthreads();

  // The labels.
  const int candidates = list_best(Candidates{keys, part_list, parts * 8}, k, list, scratch);
  ranked(list, candidates, k, [&](int rank, u64 one) {
    const float value = value_of(key_of(one));
    const i64 at = static_cast<i64>(row) * k + rank;
    values[at] = value;
    best[at] = value == __int_as_float(0xFF800000) ? -1 : place_of(one);
  });
}
