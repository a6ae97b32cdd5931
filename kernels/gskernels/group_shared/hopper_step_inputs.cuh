// The blocks of hopper_step.cu that own batch rows: dX^T of 64 rows, fp32 [dim][64] in shared memory.
//
// A block takes every `parts`-th unit from the ring, and adds the K x 64 products to the rows that the unit's list names. Two
// warpgroups have 32 rows each, and two more the same rows in turns: while one adds, the other multiplies. Additions to the
// same rows are handed over by barriers, so no sum needs an atomic. Where a sum lies is told in hopper_grad_input.cu.
#pragma once
#include "hopper_step.cuh"

constexpr int LIST_BYTES = K * 2, TAKEN_BYTES = WEIGHT_BYTES + SLICE_BYTES;  // of a unit: its list; weights and dY

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

  // By one lane of each loading warp, which takes every LOADERS-th unit; there are as many stages, or a multiple.
  DEVICE void load(int loader) const {
    const int all = count(), stride = LOADERS * parts * step.row_blocks % step.slots;  // slots between two units of this warp
    int filled = 0;                                                                    // units that are known to be in the ring
    int slot = item(part + loader * parts) % step.slots, leaving = slot;               // of unit n, and of the one it takes the stage of
    auto next = [&](int at) { return at + stride < step.slots ? at + stride : at + stride - step.slots; };
    int stage = loader, phase = 0;
    for (int n = loader; n < all; n += LOADERS) {
      const int unit = part + n * parts;
      const u32 to = stages + stage * TAKEN_BYTES, bar = full + 8 * stage;
      mbarrier_wait(empty + 8 * stage, phase ^ 1);
      if (n >= step.input_stages) {  // it has been used, so it was read: nothing is left for others to see first
        add_relaxed(step.done + leaving, 1);
        leaving = next(leaving);
      }
      while (filled <= n) filled = told(arrived);
      const unsigned char* from = step.ring + static_cast<i64>(slot) * SLOT_BYTES;
      mbarrier_expect(bar, TAKEN_BYTES + LIST_BYTES);
      bulk_load(to, from, WEIGHT_BYTES, bar);
      bulk_load(to + WEIGHT_BYTES, from + WEIGHT_BYTES + slice % SLICES * SLICE_BYTES, SLICE_BYTES, bar);
      bulk_load(lists + stage * LIST_BYTES, step.lists + static_cast<i64>(unit) * G / LIST * K, LIST_BYTES, bar);
      slot = next(slot);
      if ((stage += LOADERS) >= step.input_stages) stage = loader, phase ^= 1;
    }
  }

  DEVICE void compute(int warp, int lane) const {
    const int group = warp / 4, half = group % 2, turn = group / 2, wr = warp % 4, r = lane / 4, t = lane % 4;
    const int mine = 1 + half * 2 + turn, other = 1 + half * 2 + (turn ^ 1);  // barriers: of whose turn it is
    const u32 own = sums + half * 128 + (r & 1) * 64 + t * 16;
    const bool odd = r & 1;
    const int all = count();
    if (turn == 1 && all > 0) barrier_arrive(other, 256);
    Ring ring;
    for (int n = 0; n < all; n++, ring.advance(step.input_stages)) {
      if (n % 2 != turn) continue;
      const u32 w = stages + ring.stage * TAKEN_BYTES, dy = w + WEIGHT_BYTES, list = lists + ring.stage * LIST_BYTES + (16 * wr + r) * 2;
      mbarrier_wait(full + 8 * ring.stage, ring.phase);
      const u64 weights = wgmma_matrix(w, 1024, 1024, 1), grads = wgmma_matrix(dy + half * (32 * ROW), 16, 8 * ROW, SWIZZLE);
#pragma unroll
      for (int p = 0; p < PARTS; p++) {
        float products[16];
        wgmma_fence();
#pragma unroll
        for (int j = 0; j < G / 16; j++)
          Wgmma<T, 32, 0>::template ss<1>(products, weights + ((p * (G * 128) + j * 2048) >> 4), grads + ((j * 32) >> 4), j > 0);
        wgmma_commit();
        u32 at[2];
#pragma unroll
        for (int h = 0; h < 2; h++) at[h] = own + load_index(list + p * 128 + h * 16) * 256;
        wgmma_wait<0>();
        __syncwarp();
        if (lane == 0 && p == PARTS - 1) mbarrier_arrive(empty + 8 * ring.stage);
        if (p == 0) barrier(mine, 256);
        float4 sum[2][2];
#pragma unroll
        for (int c = 0; c < 2; c++)
#pragma unroll
          for (int h = 0; h < 2; h++) sum[c][h] = load_sums(at[h] ^ c * 64);
#pragma unroll
        for (int c = 0; c < 2; c++)
#pragma unroll
          for (int h = 0; h < 2; h++) {  // the piece at `at ^ 64 c` belongs to chunk c of even lanes, c ^ 1 of odd ones
            const float *even = products + c * 8 + h * 2, *swapped = products + (c ^ 1) * 8 + h * 2;
            float4& v = sum[c][h];
            v.x += odd ? swapped[0] : even[0], v.y += odd ? swapped[1] : even[1];
            v.z += odd ? swapped[4] : even[4], v.w += odd ? swapped[5] : even[5];
            store_sums(at[h] ^ c * 64, v);
          }
      }
      if (n + 1 < all) barrier_arrive(other, 256);
    }
  }

  // Add to the sums of all parts, each part from another place on: they end together. By all threads of the block.
  DEVICE void reduce() const {
    float* to = step.sums + static_cast<i64>(slice) * step.dim * 64;
    const int all = step.dim * 16, first = part * (all / parts);
    for (int i = threadIdx.x; i < all; i += THREADS) {
      const int at = i + first < all ? i + first : i + first - all;
      const float4 v = load_sums(sums + at * 16);
      asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to + at * 4), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
    }
  }
};
