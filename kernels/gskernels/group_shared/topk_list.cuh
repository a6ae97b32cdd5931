// To list the best of n numbers, by all threads of a block: every thread has the largest of its own; a number that k threads
// reach is a bound that k of the n reach; those that do are few, unless very many are equal: then a radix selection counts
// digits. A source of numbers has each(f), which calls f(key, place) for those of this thread.
#pragma once
#include "../cuda/common.cuh"

constexpr int THREADS = 512, WARPS = THREADS / 32, ROOM = 1024;  // of a list

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
  u32 bins[256];
  int count, digit, wanted, parts;
};

// The entry of which exactly `count` are as large, digit by digit. By all threads.
template <class Source> DEVICE u64 radix_bound(const Source& source, int count, Scratch& scratch) {
  u64 bound = 0;
  int wanted = count;
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
#pragma unroll 1
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
