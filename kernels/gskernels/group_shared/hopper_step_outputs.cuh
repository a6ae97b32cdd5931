// The blocks of hopper_step.cu that own labels: logits, loss, dY, dW and the update.
//
// A block takes every `blocks`-th unit with the whole batch, in a pipeline of stages: two loading warps gather the rows of X^T
// that the unit's list names (they come from L2); four warpgroups make logits, loss and dY, each of 64 rows; two more, in turns,
// multiply dY^T X over all rows and update the weights; two storing warps (hopper_step_send.cuh) send the old weights and dY to
// the ring.
#pragma once
#include "hopper_step.cuh"
#include "step_math.cuh"

constexpr int COPIES = SLICES * 8 / LOADERS, OCTET = COPIES < 8 ? COPIES : 8;  // of 32 inputs by a loading warp, 512 bytes each
constexpr int TEAMS = 4 / SLICES;  // of warpgroups, that are at different items
constexpr int TOGETHER = K == 64 ? G * K / 1024 : 1;  // of a lane's pieces of an update: registers are short
constexpr int AHEAD = 8;  // units whose weights are on their way to L2
constexpr int BIAS_AT = 16, FACTOR_AT = BIAS_AT + BIAS * G * 2, SUMS_AT = FACTOR_AT + FACTOR * G * 4;
constexpr int EXTRA_BYTES = SUMS_AT + BIAS * SLICES * 4 * G * 4;  // head, bias, factors, column sums of each warp

DEVICE void copy_async_4(u32 to, const void* from) { asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory"); }
// Arrives when all copies of this thread so far have.
DEVICE void copy_arrive(u32 barrier) { asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory"); }
DEVICE void prefetch(const void* from, u32 bytes) { asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory"); }
DEVICE u32 load_shared(u32 at) {
  u32 v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
  return v;
}
// Of dY in shared memory: 16-byte piece `piece` of row `row`.
DEVICE u32 swizzled(int row, int piece) { return row * ROW + ((piece ^ (row * ROW / 128 & (ROW / 16 - 1))) << 4); }

struct Outputs {
  const Step& step;
  u32 stages, extras, full, filled, empty;  // shared memory: stages, what is beside them, barriers
  int block, blocks, units;

  DEVICE u32 stage(int s) const { return stages + s * STAGE_BYTES; }
  DEVICE u32 extra(int s) const { return extras + s * EXTRA_BYTES; }
  DEVICE int items() const { return (units > block ? cdiv(units - block, blocks) : 0) * step.row_blocks; }  // of this block
  DEVICE int list_of(int unit) const { return static_cast<int>(static_cast<i64>(unit) * G / LIST); }

  DEVICE void load(const TensorMap* weights, int warp, int lane) const {
    const u32 stride = step.row_blocks * ROWS * 2;  // bytes of a row of X^T, all of which has less than 2^32
    const int piece = lane % (SLICES * 8);
    const u32 column = piece / 8 * (K * 128) + piece % 8 * 16;
    u32 next[K / 32];
    auto fetch = [&](int unit) {
#pragma unroll
      for (int h = 0; h < K / 32; h++) next[h] = unit < units ? step.lists[static_cast<i64>(list_of(unit)) * K + h * 32 + lane] : 0;
    };
    fetch(block);
    Ring ring;
    for (int unit = block; unit < units; unit += blocks) {
      u32 list[K / 32];
#pragma unroll
      for (int h = 0; h < K / 32; h++) list[h] = next[h] * stride;
      fetch(unit + blocks);
      for (int rows = 0; rows < step.row_blocks; rows++) {
        const u32 at = stage(ring.stage), bar = full + 8 * ring.stage;
        mbarrier_wait(empty + 8 * ring.stage, ring.phase ^ 1);
        if (warp == 0 && lane == 0) {
          mbarrier_expect(bar, WEIGHT_BYTES);
#pragma unroll
          for (int p = 0; p < PARTS; p++) tma_load(at + X_BYTES + p * (G * 128), weights, bar, p * 64, unit * G);
          if (rows == 0 && unit + AHEAD * blocks < units - 1)
            prefetch(step.weight + static_cast<i64>(unit + AHEAD * blocks) * (G * K), WEIGHT_BYTES);
        }
        const unsigned char* from = reinterpret_cast<const unsigned char*>(step.xt + static_cast<i64>(rows) * ROWS + piece * 8);
        // A lane copies pieces of 16 bytes; a warp has half of 32 inputs.
#pragma unroll
        for (int h = 0; h < K / 32; h++)
#pragma unroll 1
          for (int octet = 0; octet < COPIES / OCTET; octet++)
#pragma unroll
            for (int o = 0; o < OCTET; o++) {
              const int number = warp * COPIES + octet * OCTET + o, k = number * (4 / SLICES) + lane / (SLICES * 8);
              const u32 offset = __shfl_sync(~0u, list[h], k);
              copy_async(at + (h * 32 + k) * 128 + (column ^ ((SLICES == 4 ? o : k & 7) << 4)), from + offset);
            }
        if (warp == 1) {
          const u32 beside = extra(ring.stage);
          if (lane == 0) copy_async_4(beside, step.heads + unit);
          const i64 label = static_cast<i64>(unit) * G;
          const int left = static_cast<int>(min(static_cast<i64>(G), step.labels - label));
          // What lies beyond the labels is masked where it is used, but must be within memory.
#if BIAS
          if (lane < G / 8) {
            const int bytes = max(0, min(16, (left - lane * 8) * 2));
            copy_async(beside + BIAS_AT + lane * 16, step.bias + label + (bytes ? lane * 8 : 0), bytes);
          }
#endif
#if FACTOR
          if (lane < G / 4) {
            const int bytes = max(0, min(16, (left - lane * 4) * 4));
            copy_async(beside + FACTOR_AT + lane * 16, step.factor + label + (bytes ? lane * 4 : 0), bytes);
          }
#endif
        }
        copy_arrive(bar);
        ring.advance(STAGES);
      }
    }
  }

  DEVICE void compute(int warp, int lane) const {
    const int group = warp / 4, team = group / SLICES, slice = group % SLICES, wr = warp % 4, r = lane / 4, t = lane % 4;
    const int all = items(), row = wr * 16 + (lane & 15);
    Loss loss;
    for (int n = team, rows = team % step.row_blocks, unit = block + team / step.row_blocks * blocks; n < all; n += TEAMS) {
      const int s = n % STAGES;
      const int left = min(G, step.labels - unit * G);                      // labels of the unit
      const int first = (rows * SLICES + slice) * 64 + wr * 16 + r;        // and 8 more: the lane's rows
      const u32 dy = stage(s) + X_BYTES + WEIGHT_BYTES + slice * SLICE_BYTES, beside = extra(s);
      mbarrier_wait(full + 8 * s, n / STAGES & 1);
      fence_async();  // X came by ordinary copies
      const u64 x = wgmma_matrix(stage(s) + slice * (K * 128), 1024, 1024, 1), w = wgmma_matrix(stage(s) + X_BYTES, 16, 1024, 1);
      float d[G / 2];
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < K / 16; k++)
        Wgmma<T, G, 0>::template ss<1>(d, x + (k * 2048 >> 4), w + ((k / 4 * (G * 128) + k % 4 * 32) >> 4), k > 0);
      wgmma_commit();
      const u32 head = load_shared(beside);
      const u32 hit = head ? hits(head, first, t) : 0;
      wgmma_wait<0>();
#if BIAS
#pragma unroll
      for (int j = 0; j < G / 8; j++) {
        const u32 both = load_shared(beside + BIAS_AT + (j * 8 + t * 2) * 2);
        const T* pair = reinterpret_cast<const T*>(&both);
        d[4 * j] += to_float(pair[0]), d[4 * j + 2] += to_float(pair[0]);
        d[4 * j + 1] += to_float(pair[1]), d[4 * j + 3] += to_float(pair[1]);
      }
#endif
      if (left < G || (rows * SLICES + slice + 1) * 64 > step.batch)
#pragma unroll
        for (int i = 0; i < G / 2; i++)
          if (i / 4 * 8 + t * 2 + i % 2 >= left || first + i % 4 / 2 * 8 >= step.batch) d[i] = __int_as_float(0xFF800000);
      float factors[FACTOR ? G / 4 : 1];
#if FACTOR
#pragma unroll
      for (int i = 0; i < G / 4; i++) factors[i] = __uint_as_float(load_shared(beside + FACTOR_AT + (i / 2 * 8 + t * 2 + i % 2) * 4));
#endif
      loss_and_slopes(d, hit, factors, loss);
#if BIAS
      column_sums(d, beside + SUMS_AT + (slice * 4 + wr) * (G * 4), r, t);
#endif
#pragma unroll
      for (int j = 0; j < G / 16; j++)
        store_matrices(dy + swizzled(row, j * 2 + (lane >> 4)), pack<T>(d[j * 8], d[j * 8 + 1]), pack<T>(d[j * 8 + 2], d[j * 8 + 3]),
                       pack<T>(d[j * 8 + 4], d[j * 8 + 5]), pack<T>(d[j * 8 + 6], d[j * 8 + 7]));
      fence_async();
      __syncwarp();
      if (lane == 0) mbarrier_arrive(filled + 8 * s);
      if (n / TEAMS % (LOSSES_A_FLUSH / (G / 2)) == 0) loss.flush();
      for (rows += TEAMS; rows >= step.row_blocks; rows -= step.row_blocks) unit += blocks;
    }
    loss.flush();
#pragma unroll
    for (int m = 16; m > 0; m /= 2) loss.total += __shfl_xor_sync(~0u, loss.total, m);
    if (lane == 0) step.losses[block * CONSUMERS + warp] = loss.total;
  }

  // By the other warpgroups, a unit each in turns: dW, and the update. Who waits for a stage must have waited for what was there
  // before, or a phase of its barrier is taken for another: where the stages do not hold two units each, by the first alone.
  DEVICE void weigh(int warp, int lane, const Rates& rates) const {
    const int group = warp / 4, wr = warp % 4;
    const int skip = STAGES % (2 * step.row_blocks) == 0 ? step.row_blocks : 0;  // items of the other group's unit
    if (group > 0 && skip == 0) return;
    float dw[PARTS][G / 2];
#if BIAS
    const int thread = wr * 32 + lane;
    float db = 0;
#endif
    for (int n = group * step.row_blocks, all = items(), rows = 0, unit = block + group * blocks; n < all; n++) {
      const int s = n % STAGES;
      const u32 x = stage(s), w = x + X_BYTES;
      mbarrier_wait(filled + 8 * s, n / STAGES & 1);  // behind fences for X and dY
      const u64 inputs = wgmma_matrix(x, 16, 1024, 1), grads = wgmma_matrix(w + WEIGHT_BYTES, 8 * ROW, 8 * ROW, SWIZZLE);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < SLICES; i++)
#pragma unroll
        for (int k = 0; k < 4; k++)
#pragma unroll
          for (int p = 0; p < PARTS; p++)
            Wgmma<T, G, 1>::template ss<0>(dw[p], inputs + ((i * (K * 128) + p * 8192 + k * 32) >> 4),
                                           grads + ((i * SLICE_BYTES + k * 16 * ROW) >> 4), rows + i + k > 0);
      wgmma_commit();
#if BIAS
      if (thread < G)
#pragma unroll
        for (int i = 0; i < SLICES * 4; i++) db += __uint_as_float(load_shared(extra(s) + SUMS_AT + (i * G + thread) * 4));
#endif
      wgmma_wait<0>();
      if (++rows == step.row_blocks) {
        const i64 label = static_cast<i64>(unit) * G;
        const int left = min(G, step.labels - unit * G);
#if BIAS
        if (thread < left) step.db[label + thread] = db;
        db = 0;
#endif
        finish(dw, x, w, group, wr, lane, label, left, rates);
        rows = 0, unit += skip ? 2 * blocks : blocks, n += skip;
      }
      __syncwarp();
      if (lane == 0) mbarrier_arrive(empty + 8 * s);
    }
  }

  // Bit i: the i-th accumulator of the lane, of rows `first` and `first` + 8, belongs to a positive.
  DEVICE u32 hits(u32 link, int first, int t) const {
    u32 hit = 0;
    while (link) {
      const int4 one = step.links[link - 1];
      const int row = one.y - first;
      if ((row == 0 || row == 8) && one.z % 8 / 2 == t) hit |= 1u << (one.z / 8 * 4 + row / 4 + one.z % 2);
      link = one.x;
    }
    return hit;
  }

  // to [G] fp32: the sums over a warp's 16 rows.
  DEVICE void column_sums(const float (&d)[G / 2], u32 to, int r, int t) const {
#pragma unroll
    for (int j = 0; j < G / 8; j++) {
      float low = d[4 * j] + d[4 * j + 2], high = d[4 * j + 1] + d[4 * j + 3];
#pragma unroll
      for (int m = 4; m < 32; m *= 2) low += __shfl_xor_sync(~0u, low, m), high += __shfl_xor_sync(~0u, high, m);
      if (r == j) asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to + (j * 8 + t * 2) * 4), "f"(low), "f"(high) : "memory");
    }
  }

  // Update the weights of the unit, or store their gradient, through X's place in the stage.
  DEVICE void finish(const float (&dw)[PARTS][G / 2], u32 x, u32 w, int group, int wr, int lane, i64 label, int left, const Rates& rates) const {
    barrier(1 + group, 128);  // all four warps have multiplied
#pragma unroll
    for (int p = 0; p < PARTS; p++)
#pragma unroll
      for (int i = 0; i < G / 2; i++) {
        const int one = i / 4 * 8 + lane % 4 * 2 + i % 2, k = p * 64 + wr * 16 + lane / 4 + i % 4 / 2 * 8;
        asm volatile("st.shared.f32 [%0], %1;" ::"r"(x + (one * PITCH + k) * 4), "f"(dw[p][i]) : "memory");
      }
    barrier(1 + group, 128);
#pragma unroll TOGETHER
    for (int i = 0; i < G * K / 1024; i++) {
      const int number = wr * 32 + lane + i * 128, one = number / (K / 8), piece = number % (K / 8);
      if (one >= left) continue;
      const i64 at = (label + one) * K + piece * 8;
      float g[8];
#pragma unroll
      for (int h = 0; h < 2; h++)
        asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(g[4 * h]), "=f"(g[4 * h + 1]), "=f"(g[4 * h + 2]), "=f"(g[4 * h + 3])
                     : "r"(x + (one * PITCH + piece * 8 + h * 4) * 4) : "memory");
#if UPDATE
      uint4 old;
      asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(old.x), "=r"(old.y), "=r"(old.z), "=r"(old.w)
                   : "r"(w + piece / 8 * (G * 128) + one * 128 + ((piece & 7) ^ (one & 7)) * 16) : "memory");
      float now[8], buffer[8] = {}, lost[8] = {};
      unpack<T>(now, old);
#if MOMENTUM
      unpack<T>(buffer, load_eight(step.buffer + at));
#endif
#if ROUNDING == 2
      unpack<T>(lost, load_eight(step.lost + at));
#endif
#pragma unroll
      for (int e = 0; e < 8; e++) now[e] = updated<T>(now[e], g[e], buffer[e], lost[e], at + e, rates);
      store_eight(step.weight + at, packed<T>(now));
#if MOMENTUM
      store_eight(step.buffer + at, packed<T>(buffer));
#endif
#if ROUNDING == 2
      store_eight(step.lost + at, packed<T>(lost));
#endif
#else
      store_eight(step.dw + at, packed<T>(g));
#endif
    }
  }
};
