// The blocks of hopper_step.cu that own batch rows: dX^T of 64 rows, fp32 [dim][64] in shared memory.
//
// A block takes every `parts`-th unit from the ring, and adds the K x 64 products to the rows that the unit's list names. Four
// warpgroups take units in turns, AT_ONCE of them: they multiply as soon as operands are there, and add to one half of the 64
// rows after the other, each when the units before have been added to it. So two warpgroups add at a time, and the others hold
// products that wait, whose stages are free again. Sums are handed over by barriers, so none needs an atomic. Where a sum lies is
// told in hopper_grad_input.cu.
#pragma once
#include "hopper_step.cuh"

constexpr int LIST_BYTES = K * 2, TAKEN_BYTES = WEIGHT_BYTES + SLICE_BYTES;  // of a unit: its list; weights and dY
constexpr int TURNS = CONSUMERS / 4;
constexpr int BLOCKS = 2;                // of 64 inputs whose products with 64 rows a warpgroup holds, as many as registers allow
constexpr int AT_ONCE = BLOCKS / PARTS;  // units of these
// Barriers of what arrives, however few stages: a warpgroup skips what others take, and must not take one passage for the next.
constexpr int PASSAGES = 16;

struct Inputs {
  const Step& step;
  u32 sums, stages, lists, full, empty, arrived;  // shared memory; the last: a count
  int slice, part, parts, units;

  DEVICE int item(int unit) const { return unit * step.row_blocks + slice / SLICES; }
  DEVICE int count() const { return units > part ? cdiv(units - part, parts) : 0; }

  // By one warp: how many units, from the first on, are in the ring. Its lanes look at the flags of 32 units at once. A flag
  // costs a trip to L2, and the fence, which waits for all that its warp has written, as much: whoever loads must not do either.
  DEVICE void watch(int lane) const {
    const int all = count();
    for (int known = 0; known < all;) {
      const int at = item(part + (known + lane) * parts);
      const bool there = known + lane < all && load_acquire(step.ready + at % step.slots) == static_cast<u32>(at) + 1;
      const u32 missing = ~__ballot_sync(~0u, there);
      const int more = missing ? __ffs(missing) - 1 : 32;
      __syncwarp();
      if (more && lane == 0) {
        fence_async_all();
        tell(arrived, known + more);
      }
      known += more;
    }
  }

  // By each loading warp, which takes every LOADERS-th unit; there are as many stages, or a multiple.
  DEVICE void load(int loader) const {
    const bool one = elect();  // of a warp that goes together: addresses stay in uniform registers
    const int all = count(), stride = LOADERS * parts * step.row_blocks % step.slots;  // slots between two units of this warp
    int filled = 0;                                                                    // units that are known to be in the ring
    int slot = item(part + loader * parts) % step.slots, leaving = slot;               // of unit n, and of the one it takes the stage of
    auto next = [&](int at) { return at + stride < step.slots ? at + stride : at + stride - step.slots; };
    int stage = loader, phase = 0;
    for (int n = loader; n < all; n += LOADERS) {
      const int unit = part + n * parts;
      const u32 to = stages + stage * TAKEN_BYTES, bar = full + 8 * (n % PASSAGES);
      mbarrier_wait(empty + 8 * stage, phase ^ 1);
      const bool used = n >= step.input_stages;
      if (one && used) add_relaxed(step.done + leaving, 1);  // it was read, so nothing is left for others to see first
      if (used) leaving = next(leaving);
      while (filled <= n) filled = told(arrived);
      const unsigned char* from = step.ring + static_cast<i64>(slot) * SLOT_BYTES;
      if (one) {
        mbarrier_expect(bar, TAKEN_BYTES + LIST_BYTES);
        bulk_load(to, from, WEIGHT_BYTES, bar);
        bulk_load(to + WEIGHT_BYTES, from + WEIGHT_BYTES + slice % SLICES * SLICE_BYTES, SLICE_BYTES, bar);
        bulk_load(lists + stage * LIST_BYTES, step.lists + static_cast<i64>(unit) * G / LIST * K, LIST_BYTES, bar);
      }
      slot = next(slot);
      if ((stage += LOADERS) >= step.input_stages) stage = loader, phase ^= 1;
    }
  }

  // Barriers 1 to 3 TURNS of the block: whose turn it is, at which half; and of a warpgroup alone.
  DEVICE void compute(int warp, int lane) const {
    const int turn = warp / 4, wr = warp % 4, r = lane / 4, t = lane % 4;
    const int mine = 1 + turn * 3, other = 1 + (turn + 1) % TURNS * 3;
    const u32 own = sums + (r & 1) * 64 + t * 16;
    const bool odd = r & 1;
    const u32 nothing = step.dim % 64;  // 0, but who knows
    const int all = count();
    if (turn == TURNS - 1 && all > 0) barrier_arrive(other, 256), barrier_arrive(other + 1, 256);
    int stage = turn * AT_ONCE % step.input_stages;
    for (int n = turn * AT_ONCE; n < all; n += TURNS * AT_ONCE) {
      float products[BLOCKS][32];
      u32 inputs[BLOCKS];  // two of 16 bits
      int at = stage;
#pragma unroll
      for (int u = 0; u < AT_ONCE; u++) {  // the last is multiplied whatever is there, and not added where there are no more
        const u32 w = stages + at * TAKEN_BYTES, dy = w + WEIGHT_BYTES, list = lists + at * LIST_BYTES + (16 * wr + r) * 2;
        if (u == 0 || n + u < all) mbarrier_wait(full + 8 * ((n + u) % PASSAGES), (n + u) / PASSAGES & 1);
        const u64 weights = wgmma_matrix(w, 1024, 1024, 1), grads = wgmma_matrix(dy, 16, 8 * ROW, SWIZZLE);
        wgmma_fence();
#pragma unroll
        for (int p = 0; p < PARTS; p++)
#pragma unroll
          for (int j = 0; j < G / 16; j++)
            Wgmma<T, 64, 0>::template ss<1>(products[u * PARTS + p], weights + ((p * (G * 128) + j * 2048) >> 4),
                                            grads + ((j * 32) >> 4), j > 0);
        wgmma_commit();
#pragma unroll
        for (int p = 0; p < PARTS; p++)
          inputs[u * PARTS + p] = __byte_perm(load_index(list + p * 128), load_index(list + p * 128 + 16), 0x5410);
        wgmma_wait<0>();
        __syncwarp();
        u32 read = 0;
#pragma unroll
        for (int p = 0; p < PARTS; p++) read |= inputs[u * PARTS + p];
        if (lane == 0 && (u == 0 || n + u < all)) mbarrier_arrive(empty + 8 * at + (read & nothing));
        if (++at == step.input_stages) at = 0;
      }
      // The piece at `place ^ 64 c` is of rows c of 2 x 16 for even lanes, of rows c ^ 1 for odd ones. They are exchanged before a turn
      // begins, as the number of its barrier seems to depend on it.
      u32 bits = 0;
#pragma unroll
      for (int i = 0; i < BLOCKS * 16; i++) {
        float &low = products[0][i / 8 * 16 + i % 8], &high = products[0][i / 8 * 16 + i % 8 + 8];
        const float one = odd ? high : low;
        high = odd ? low : high, low = one;
        bits |= __float_as_uint(low) | __float_as_uint(high);
      }
#pragma unroll
      for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int b = 0; b < BLOCKS; b++) {
          if (b == 0) barrier(mine + half + (bits & nothing), 256);
          if (b == PARTS && n + 1 == all) break;
          if (b == PARTS) barrier(mine + 2, 128);  // another list: inputs of one are distinct
          const u32 places[2] = {own + (inputs[b] & 0xffff) * 256 + half * 128, own + (inputs[b] >> 16) * 256 + half * 128};
          float4 sum[2][2];
#pragma unroll
          for (int c = 0; c < 2; c++)
#pragma unroll
            for (int h = 0; h < 2; h++) sum[c][h] = load_sums(places[h] ^ c * 64);
#pragma unroll
          for (int c = 0; c < 2; c++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
              const float* more = products[b] + half * 16 + c * 8 + h * 2;
              float4& to = sum[c][h];
              to.x += more[0], to.y += more[1], to.z += more[4], to.w += more[5];
              store_sums(places[h] ^ c * 64, to);
            }
        }
        if (n + AT_ONCE < all) barrier_arrive(other + half, 256);
      }
      for (stage += TURNS * AT_ONCE; stage >= step.input_stages;) stage -= step.input_stages;
    }
  }

  // Add to the sums of all parts, each part from another place on: they end together. By all threads of the block, which have
  // fenced what they have added.
  DEVICE void reduce() const {
    if (threadIdx.x != 0) return;
    float* to = step.sums + static_cast<i64>(slice) * step.dim * 64;
    const int all = step.dim * 256, first = part * (step.dim / parts) * 256;
    bulk_add(to + first / 4, sums + first, all - first);
    if (first > 0) bulk_add(to, sums, first);
    bulk_commit();
    bulk_wait<0>();
  }
};
