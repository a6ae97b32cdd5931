// To list the best of n numbers, by all threads of a block: every thread has the largest of its own; a number that k threads
// reach is a bound that k of the n reach; those that do are few, unless very many are equal: then a radix selection counts
// digits. A source of numbers has each(f), which calls f(key, place) for those of this thread, largest(), the largest of their
// keys or 0, and reaching(key, f), as each(f) but that it may leave out smaller ones.
#pragma once
#include "../cuda/common.cuh"

constexpr int THREADS = 512, WARPS = THREADS / 32, ROOM = 1024;  // of a list

DEVICE float larger(float a, float b) {  // NaN if either is
  float v;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(v) : "f"(a), "f"(b));
  return v;
}

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
  u32 largest[WARPS], least[WARPS];
  int count, digit, wanted, parts;
  u32 bound;
#if PROFILE
  i64 mark;
#endif
};

// A key that `count` threads reach with theirs, and hardly more; 0 where fewer have one. By all threads.
DEVICE u32 reached(u32 mine, int count, Scratch& scratch) {
#if ROUNDS
  u32 low = 0;
  __syncthreads();
#pragma unroll 1
  for (u32 bit = 1u << 31; bit >= 1u << 12; bit /= 2)
    if (__syncthreads_count(mine >= (low | bit)) >= count) low |= bit;
  return low;
#else
  u32 largest = __reduce_max_sync(~0u, mine), least = __reduce_min_sync(~0u, mine ? mine : ~0u);
  if (threadIdx.x % 32 == 0) scratch.largest[threadIdx.x / 32] = largest, scratch.least[threadIdx.x / 32] = least;
  if (__syncthreads_count(mine != 0) < count) return 0;
  largest = __reduce_max_sync(~0u, scratch.largest[threadIdx.x % WARPS]);
  least = __reduce_min_sync(~0u, scratch.least[threadIdx.x % WARPS]);
  if (largest == least) return largest;
  u32 bit = 0x80000000u >> __clz(largest ^ least), low = largest & ~(bit | (bit - 1));
#pragma unroll 1
  for (int round = 0; bit && round < 14; round++, bit /= 2) {
    const int reach = __syncthreads_count(mine >= (low | bit));
    if (reach < count) continue;
    low |= bit;
    if (reach <= count + 4) break;
  }
  return low;
#endif
}

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
  const u32 mine = source.largest();
  if (threadIdx.x == 0) scratch.count = 0;
  const u32 low = reached(mine, count, scratch);
#if PROFILE
  if (threadIdx.x == 0) scratch.mark = clock64();
#endif
  auto listed = [&](u64 one) {
    const int at = atomicAdd(&scratch.count, 1);
    if (at < ROOM) list[at] = one;
  };
  if (mine && mine >= low)
    source.reaching(low, [&](u32 key, int place) {
      if (key && key >= low) listed(entry(key, place));
    });
  __syncthreads();
  const int found = scratch.count;
  if (found <= ROOM) return found;
  const u64 bound = radix_bound(source, count, scratch);
  if (threadIdx.x == 0) scratch.count = 0;
  __syncthreads();
  source.each([&](u32 key, int place) {
    if (key && entry(key, place) >= bound) listed(entry(key, place));
  });
  __syncthreads();
  return count;
}

// f(rank, entry, ask(entry)) for the `count` best of the list. Four threads have an entry, and look at a quarter of the others
// each; one of them asks, before it does.
template <class Ask, class F> DEVICE void ranked(const u64* list, int n, int count, Ask ask, F f) {
  const int quarter = threadIdx.x % 4;
  for (int from = 0; from < n; from += THREADS / 4) {
    const int i = from + threadIdx.x / 4;
    const u64 one = list[min(i, n - 1)];
    const bool mine = i < n && quarter == 0;
    const auto asked = ask(one, mine);
    int rank = 0;
#pragma unroll 4
    for (int j = quarter; j < n; j += 4) rank += list[j] > one;
    rank += __shfl_xor_sync(~0u, rank, 1);
    rank += __shfl_xor_sync(~0u, rank, 2);
    if (mine && rank < count) f(rank, one, asked);
  }
}
