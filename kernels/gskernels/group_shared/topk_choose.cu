// The k best labels of each batch row, from the largest logit of each tile of 64 labels. For sm_80 and newer, 16-bit types.
//
// A block per row. It lists the k tiles with the largest maxima (of equal ones the first), takes of these the quarters of
// 16 labels that may hold a logit as large as the least of these maxima, computes their logits by mma.sync, a warp 16
// labels at a time, in the order of their labels, so that blocks meet in the cache; and lists the k best of them.
//
// To list the best of n numbers: every thread has the largest of its own; a number that k threads reach is a bound that k
// of the n reach; those that do are few, unless very many are equal: then a radix selection counts digits.
//
// Macros: ELEMENT, BIAS (0, 1), HINTS (0, 1: know which quarters).
#include "../cuda/common.cuh"

typedef ELEMENT T;

constexpr int THREADS = 512, WARPS = THREADS / 32, ROOM = 1024;  // of a list
constexpr int PIECE_BYTES = 16 * 128;                            // 64 weights of 16 labels

// ---- numbers that sort as logits do: -0 equals 0, any NaN is above +inf, 0 is below all; then the smaller place first ----

DEVICE u32 sort_key(float v) {
  const u32 bits = __float_as_uint(v + 0.f);
  return v != v ? ~0u : bits ^ (static_cast<u32>(static_cast<int>(bits) >> 31) | 0x80000000u);
}
DEVICE float value_of(u32 key) { return __uint_as_float(key ^ (key >> 31 ? 0x80000000u : ~0u)); }
DEVICE u64 entry(u32 key, int place) { return static_cast<u64>(key) << 32 | ~static_cast<u32>(place); }
DEVICE int place_of(u64 entry) { return static_cast<int>(~static_cast<u32>(entry)); }
DEVICE u32 key_of(u64 entry) { return static_cast<u32>(entry >> 32); }

struct Maxima {
  const float* row;
  int n;
  template <class F> DEVICE void each(F f) const {
#pragma unroll 4
    for (int i = threadIdx.x * 4; i < n; i += THREADS * 4) {
      const float4 v = *reinterpret_cast<const float4*>(row + i);
      f(sort_key(v.x), i);
      if (i + 1 < n) f(sort_key(v.y), i + 1);
      if (i + 2 < n) f(sort_key(v.z), i + 2);
      if (i + 3 < n) f(sort_key(v.w), i + 3);
    }
  }
};

struct Candidates {
  const u32* keys;
  const int* labels;  // the first of each 16
  int n;
  template <class F> DEVICE void each(F f) const {
    for (int i = threadIdx.x; i < n; i += THREADS) f(keys[i], labels[i / 16] + i % 16);
  }
};

struct Scratch {
  u32 bins[256];
  int count, digit, wanted;
};

// The entry of which exactly `count` are as large, digit by digit. By all threads.
template <class Source> DEVICE u64 radix_bound(const Source& source, int count, Scratch& scratch) {
  u64 bound = 0;
  int wanted = count;
  for (int shift = 56; shift >= 0; shift -= 8) {
    if (threadIdx.x < 256) scratch.bins[threadIdx.x] = 0;
    __syncthreads();
    source.each([&](u32 key, int place) {
      const u64 one = entry(key, place);
      if (shift < 56 && (one ^ bound) >> (shift + 8)) return;
      const u32 digit = static_cast<u32>(one >> shift) & 255, same = __match_any_sync(__activemask(), digit);
      if (__ffs(same) - 1 == static_cast<int>(threadIdx.x % 32)) atomicAdd(scratch.bins + digit, __popc(same));
    });
    __syncthreads();
    if (threadIdx.x < 32) {  // lane i has the digits from 255 - 8 i downwards
      const int top = 255 - 8 * static_cast<int>(threadIdx.x);
      int sum = 0;
      for (int i = 0; i < 8; i++) sum += scratch.bins[top - i];
      int above = sum;
      for (int d = 1; d < 32; d *= 2) {
        const int other = __shfl_up_sync(~0u, above, d);
        if (static_cast<int>(threadIdx.x) >= d) above += other;
      }
      above -= sum;
      if (above < wanted && above + sum >= wanted) {
        int digit = top;
        while (above + static_cast<int>(scratch.bins[digit]) < wanted) above += scratch.bins[digit--];
        scratch.digit = digit, scratch.wanted = wanted - above;
      }
    }
    __syncthreads();
    bound |= static_cast<u64>(scratch.digit) << shift, wanted = scratch.wanted;
  }
  return bound;
}

// list[0 .. result) holds the `count` best, of at least as many with a key above 0, and maybe others. By all threads.
template <class Source> DEVICE int list_best(const Source& source, int count, u64* list, Scratch& scratch) {
  u32 mine = 0, low = 0;
  source.each([&](u32 key, int) { mine = max(mine, key); });
  if (threadIdx.x == 0) scratch.count = 0;
  for (u32 bit = 1u << 31; bit >= 1u << 12; bit /= 2)
    if (__syncthreads_count(mine >= (low | bit)) >= count) low |= bit;
  auto collect = [&](u64 bound) {
    source.each([&](u32 key, int place) {
      if (key == 0 || entry(key, place) < bound) return;
      const int at = atomicAdd(&scratch.count, 1);
      if (at < ROOM) list[at] = entry(key, place);
    });
  };
  if (mine >= low) collect(static_cast<u64>(low) << 32);
  __syncthreads();
  const int found = scratch.count;
  if (found <= ROOM) return found;
  const u64 bound = radix_bound(source, count, scratch);
  if (threadIdx.x == 0) scratch.count = 0;
  __syncthreads();
  collect(bound);
  __syncthreads();
  return count;
}

// f(rank, entry) for the `count` best of the list.
template <class F> DEVICE void ranked(const u64* list, int n, int count, F f) {
  for (int i = threadIdx.x; i < n; i += THREADS) {
    const u64 one = list[i];
    int rank = 0;
#pragma unroll 8
    for (int j = 0; j < n; j++) rank += list[j] > one;
    if (rank < count) f(rank, one);
  }
}

// Which quarters of a tile may hold a logit whose key is `least` or more. code: of hopper_topk_maxima.
DEVICE u32 quarters(u32 key, u32 code, u32 least) {
  const float most = value_of(key), unit = __uint_as_float(__float_as_uint(most) & 0x7F800000);
  u32 mask = 0;
  for (int q = 0; q < 4; q++) {
    const int c = code >> 4 * q & 15;
    // most - less is no smaller than the quarter's logits; differences of tiny numbers are not normal, and say nothing
    const float less = c && unit > 1e-30f ? unit * __int_as_float(c + 116 << 23) : 0;
    if (!(less < __int_as_float(0x7F800000)) || sort_key(__fsub_rn(most, less)) >= least) mask |= 1 << q;
  }
  return mask;
}

// maxima, hints [batch, stride]; x [batch, dim]; weight [labels, fan_in]; lists [groups, fan_in], each of list_labels
// labels; values, best [batch, k]. fan_in is a multiple of 64, list_labels of 16.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
topk_choose(const float* __restrict__ maxima, const u16* __restrict__ hints, const T* __restrict__ x, const T* __restrict__ weight,
            const u16* __restrict__ lists, const T* __restrict__ bias, float* __restrict__ values, i64* __restrict__ best, int dim,
            int labels, int fan_in, int list_labels, int stride, int k) {
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ Scratch scratch;
  __shared__ u64 chosen[128];
  __shared__ u32 masks[128];
  const int row = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int tiles = cdiv(labels, 64), count = min(k, tiles);
  u64* list = reinterpret_cast<u64*>(shared + WARPS * 2 * PIECE_BYTES);
  u32* keys = reinterpret_cast<u32*>(list + ROOM);              // of the candidates, count * 64
  int* items = reinterpret_cast<int*>(keys + count * 64);       // the first label of 16, count * 4
  u16* inputs = reinterpret_cast<u16*>(items + count * 4);      // the row of x
  for (int i = threadIdx.x; i < dim / 2; i += THREADS)
    reinterpret_cast<u32*>(inputs)[i] = reinterpret_cast<const u32*>(x + static_cast<i64>(row) * dim)[i];

  // The tiles.
  const Maxima of_tiles{maxima + static_cast<i64>(row) * stride, tiles};
  const int listed = list_best(of_tiles, count, list, scratch);
  ranked(list, listed, count, [&](int rank, u64 one) { chosen[rank] = one; });
  __syncthreads();
  u64 mine = 0;
  if (threadIdx.x < count) {
    mine = chosen[threadIdx.x];
    const int tile = place_of(mine);
    u32 mask = (1u << min(4, cdiv(labels - tile * 64, 16))) - 1;
#if HINTS
    const u32 least = count < k ? 0 : key_of(chosen[count - 1]);  // that k tiles, and so k labels, reach
    mask &= quarters(key_of(mine), hints[static_cast<i64>(row) * stride + tile], least);
#endif
    masks[threadIdx.x] = mask;
  }
  __syncthreads();
  int total = 0;
  if (threadIdx.x < 128) {
    int before = 0;
    for (int i = 0; i < count; i++) {
      const int n = __popc(masks[i]);
      total += n;
      if (place_of(chosen[i]) < place_of(mine)) before += n;
    }
    if (threadIdx.x < count)
      for (int q = 0; q < 4; q++)
        if (masks[threadIdx.x] >> q & 1) items[before++] = place_of(mine) * 64 + q * 16;
    if (threadIdx.x == 0) scratch.wanted = total;
  }
  __syncthreads();
  total = scratch.wanted;

  // Their logits.
  const int pieces = fan_in / 64, steps = max(0, cdiv(total - warp, WARPS)) * pieces;
  const u32 ring = shared_address(shared) + warp * 2 * PIECE_BYTES;
  u32 word, next = 0;  // two inputs of the list
  auto ask = [&](int step) {
    if (step < steps) {
      const int first = items[warp + step / pieces * WARPS], at = step % pieces * 64;
      const T* from = weight + static_cast<i64>(first) * fan_in + at;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int label = lane / 8 + i * 4, piece = lane % 8;
        const bool inside = first + label < labels;
        copy_async(ring + step % 2 * PIECE_BYTES + label * 128 + ((piece ^ (label & 7)) << 4),
                   inside ? from + static_cast<i64>(label) * fan_in + piece * 8 : weight, inside ? 16 : 0);
      }
      next = *reinterpret_cast<const u32*>(lists + static_cast<i64>(first / list_labels) * fan_in + at + lane * 2);
    }
    copy_commit();
  };
  ask(0);
  float sums[4] = {0, 0, 0, 0};
  const int label_of_lane = (lane & 7) + (lane & 8), piece_of_lane = lane >> 4;
  for (int step = 0; step < steps; step++) {
    word = next;
    __syncwarp();
    ask(step + 1);
    copy_wait<1>();
    const u32 pair = inputs[word & 0xFFFF] | static_cast<u32>(inputs[word >> 16]) << 16;
    __syncwarp();
#pragma unroll
    for (int s = 0; s < 4; s++) {
      u32 a[4];
      load_matrices(a, ring + step % 2 * PIECE_BYTES + label_of_lane * 128 + (((s * 2 + piece_of_lane) ^ (label_of_lane & 7)) << 4));
      mma_16816<T>(sums, a, __shfl_sync(~0u, pair, s * 8 + lane % 4), __shfl_sync(~0u, pair, s * 8 + 4 + lane % 4));
    }
    if ((step + 1) % pieces) continue;
    if (lane % 4 < 2) {  // all columns are the same: two lanes store two rows
      const int item = warp + step / pieces * WARPS, at = lane / 4 + lane % 4 * 8, label = items[item] + at;
      float z = lane % 4 ? sums[2] : sums[0];
#if BIAS
      if (label < labels) z += to_float(bias[label]);
#endif
      keys[item * 16 + at] = label < labels ? sort_key(z) : 0;
    }
    sums[0] = sums[1] = sums[2] = sums[3] = 0;
  }
  __syncthreads();

  // The labels.
  const int candidates = list_best(Candidates{keys, items, total * 16}, k, list, scratch);
  ranked(list, candidates, k, [&](int rank, u64 one) {
    const float value = value_of(key_of(one));
    const i64 at = static_cast<i64>(row) * k + rank;
    values[at] = value;
    best[at] = value == __int_as_float(0xFF800000) ? -1 : place_of(one);
  });
}
