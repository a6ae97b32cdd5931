// To find the best of n numbers, by all threads of a block: every thread has the largest of its own; a number that k threads reach
// is a bound that k of the n reach; those that do are hardly more than k, unless very many are equal: then digits are counted.
#pragma once
#include "../cuda/common.cuh"

constexpr int THREADS = 512, WARPS = THREADS / 32;

// ---- numbers that sort as logits do: -0 equals 0, any NaN is above +inf, 0 is below all; then the smaller place first ----

DEVICE u32 sort_key(float v) {
  const u32 bits = __float_as_uint(v + 0.f);
  return v != v ? ~0u : bits ^ (static_cast<u32>(static_cast<int>(bits) >> 31) | 0x80000000u);
}
DEVICE float value_of(u32 key) { return __uint_as_float(key ^ (key >> 31 ? 0x80000000u : ~0u)); }
DEVICE u64 entry(u32 key, int place) { return static_cast<u64>(key) << 32 | ~static_cast<u32>(place); }
DEVICE int place_of(u64 entry) { return static_cast<int>(~static_cast<u32>(entry)); }
DEVICE u32 key_of(u64 entry) { return static_cast<u32>(entry >> 32); }

struct Scratch {
  alignas(16) u32 bins[256];
  u32 largest[WARPS], least[WARPS];
};

// The bin in which the `wanted`-th largest number lies, how many lie above it, and how many in it. By whole warps, each for itself.
struct Bin { int number, above, inside; };
DEVICE Bin bin_of(const u32* bins, int wanted) {
  const int lane = threadIdx.x % 32, top = 248 - 8 * lane;  // a lane has eight, lane 0 the highest
  const uint4 low = *reinterpret_cast<const uint4*>(bins + top), high = *reinterpret_cast<const uint4*>(bins + top + 4);
  const int held[8] = {static_cast<int>(high.w), static_cast<int>(high.z), static_cast<int>(high.y), static_cast<int>(high.x),
                       static_cast<int>(low.w), static_cast<int>(low.z), static_cast<int>(low.y), static_cast<int>(low.x)};
  int sum = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) sum += held[i];
  int above = sum;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const int other = __shfl_up_sync(~0u, above, d);
    if (lane >= d) above += other;
  }
  const int lane_of_it = max(__ffs(__ballot_sync(~0u, above >= wanted)) - 1, 0);
  above -= sum;
  int number = 0, inside = held[0];
#pragma unroll
  for (int i = 1; i < 8; i++)
    if (number == i - 1 && above + inside < wanted) above += inside, inside = held[i], number = i;
  number = top + 7 - number;
  return {__shfl_sync(~0u, number, lane_of_it), __shfl_sync(~0u, above, lane_of_it), __shfl_sync(~0u, inside, lane_of_it)};
}

// A key that `count` threads reach with theirs, and hardly more; 0 where fewer have one. By all threads, which have met.
DEVICE u32 reached(u32 mine, int count, Scratch& scratch) {
  u32 most = __reduce_max_sync(~0u, mine), low = __reduce_min_sync(~0u, mine ? mine : ~0u);
  if (threadIdx.x % 32 == 0) scratch.largest[threadIdx.x / 32] = most, scratch.least[threadIdx.x / 32] = low;
  if (threadIdx.x < 256) scratch.bins[threadIdx.x] = 0;
  if (__syncthreads_count(mine != 0) < count) return 0;
  most = __reduce_max_sync(~0u, scratch.largest[threadIdx.x % WARPS]), low = __reduce_min_sync(~0u, scratch.least[threadIdx.x % WARPS]);
  int shift = max(0, 24 - __clz(most - low)), above = 0;
#pragma unroll 1
  while (true) {  // bins from `low` on; once is enough unless nearly all lie in one
    if (mine >= low && (mine - low) >> shift < 256) atomicAdd(scratch.bins + ((mine - low) >> shift), 1);
    __syncthreads();
    const Bin bin = bin_of(scratch.bins, count - above);
    low += static_cast<u32>(bin.number) << shift;
    if (shift == 0 || above + bin.above + bin.inside <= count + count / 8 + 2) return low;
    above += bin.above, shift = max(0, shift - 8);
    __syncthreads();
    if (threadIdx.x < 256) scratch.bins[threadIdx.x] = 0;
    __syncthreads();
  }
}

// The entry of which exactly `count` are as large, digit by digit. source.each(f) calls f(key, place). By all threads, which have met.
template <class Source> DEVICE u64 radix_bound(const Source& source, int count, Scratch& scratch) {
  u64 bound = 0;
#pragma unroll 1
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
    const Bin bin = bin_of(scratch.bins, count);
    bound |= static_cast<u64>(bin.number) << shift, count -= bin.above;
    __syncthreads();
  }
  return bound;
}

// Where this thread's n go: behind what all have put there, counted by `counter`. By whole warps.
DEVICE int places(int n, int* counter) {
  const int lane = threadIdx.x % 32;
  if (!__any_sync(~0u, n)) return 0;
  int upto = n;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const int other = __shfl_up_sync(~0u, upto, d);
    if (lane >= d) upto += other;
  }
  const int start = lane == 31 ? atomicAdd(counter, upto) : 0;
  return __shfl_sync(~0u, start, 31) + upto - n;
}

// f(rank, entry) for the `count` best of the list. Four threads have an entry, and look at a quarter of the others each.
template <class F> DEVICE void ranked(const u64* list, int n, int count, F f) {
  const int quarter = threadIdx.x % 4;
  for (int from = 0; from < n; from += THREADS / 4) {
    const int i = from + threadIdx.x / 4;
    const u64 one = list[min(i, n - 1)];
    int rank = 0;
#pragma unroll 4
    for (int j = quarter; j < n; j += 4) rank += list[j] > one;
    rank += __shfl_xor_sync(~0u, rank, 1);
    rank += __shfl_xor_sync(~0u, rank, 2);
    if (i < n && quarter == 0 && rank < count) f(rank, one);
  }
}
