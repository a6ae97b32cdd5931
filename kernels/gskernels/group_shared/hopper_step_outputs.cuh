// The blocks of hopper_step.cu that own labels: logits, loss, dY, dW and the update.
//
// A block takes every `blocks`-th unit with the whole batch, in a pipeline of stages: two loading warps gather the rows of X^T
// that the unit's list names (they come from L2); four warpgroups make logits, loss and dY, each of 64 rows; two more, in turns,
// multiply dY^T X over all rows and update the weights; a warp sends the old weights and dY to the ring, one more announces them.
#pragma once
#include "hopper_step.cuh"
#include "step_math.cuh"

constexpr int X_BYTES = K * ROWS * 2;
constexpr bool EARLY = !UPDATE || K == 64;  // whether registers hold a unit's old weights
constexpr int STAGE_BYTES = X_BYTES + SLOT_BYTES;
constexpr int COPIES = SLICES * 8 / LOADERS, OCTET = COPIES < 8 ? COPIES : 8;  // of 32 inputs by a loading warp, 512 bytes each
constexpr int TEAMS = 4 / SLICES;  // of warpgroups, that are at different items
constexpr int AHEAD = 8;  // units whose weights and lists are on their way to L2
static_assert(WEIGHERS == 8);
constexpr int LAG = 2;    // items that were sent and may not be written yet
constexpr int BIAS_AT = 16, FACTOR_AT = BIAS_AT + BIAS * G * 2, SUMS_AT = FACTOR_AT + FACTOR * G * 4;
constexpr int EXTRA_BYTES = SUMS_AT + BIAS * SLICES * 4 * G * 4;  // head, bias, factors, column sums of each warp

DEVICE void copy_async_4(u32 to, const void* from) { asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory"); }
// Arrives when all copies of this thread so far have.
DEVICE void copy_arrive(u32 barrier) { asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory"); }
DEVICE void prefetch(const void* from, u32 bytes) { asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory"); }
DEVICE void bulk_store(void* to, u32 from, u32 bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from), "r"(bytes) : "memory");
}
DEVICE u32 load_shared(u32 at) {
  u32 v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
  return v;
}
// Of dY in shared memory: 16-byte piece `piece` of row `row`.
DEVICE u32 swizzled(int row, int piece) { return row * ROW + ((piece ^ (row * ROW / 128 & (ROW / 16 - 1))) << 4); }

struct Outputs {
  const Step& step;
  u32 stages, extras, full, filled, empty, written, room;  // shared memory: stages, what is beside them, barriers, counts
  int block, blocks, units;

  DEVICE u32 stage(int s) const { return stages + s * STAGE_BYTES; }
  DEVICE u32 extra(int s) const { return extras + s * EXTRA_BYTES; }
  DEVICE int items() const { return (units > block ? cdiv(units - block, blocks) : 0) * step.row_blocks; }  // of this block
  DEVICE int list_of(int unit) const { return static_cast<int>(static_cast<i64>(unit) * G / LIST); }

  DEVICE void load(const TensorMap* weights, int warp, int lane) const {
    const i64 stride = static_cast<i64>(step.row_blocks) * ROWS;
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
      for (int h = 0; h < K / 32; h++) list[h] = next[h];
      fetch(unit + blocks);
      for (int rows = 0; rows < step.row_blocks; rows++) {
        const u32 at = stage(ring.stage), bar = full + 8 * ring.stage;
        mbarrier_wait(empty + 8 * ring.stage, ring.phase ^ 1);
        if (warp == 0 && lane == 0) {
          mbarrier_expect(bar, WEIGHT_BYTES);
#pragma unroll
          for (int p = 0; p < PARTS; p++) tma_load(at + X_BYTES + p * (G * 128), weights, bar, p * 64, unit * G);
          const int ahead = unit + AHEAD * blocks;
          if (rows == 0 && ahead < units - 1) {
            prefetch(step.weight + static_cast<i64>(ahead) * (G * K), WEIGHT_BYTES);
            prefetch(step.lists + static_cast<i64>(list_of(ahead)) * K, K * 2);
          }
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
              const u32 input = __shfl_sync(~0u, list[h], k);
              copy_async(at + (h * 32 + k) * 128 + (column ^ ((SLICES == 4 ? o : k & 7) << 4)), from + static_cast<i64>(input) * (stride * 2));
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

  DEVICE int item_of(int n) const { return (block + n / step.row_blocks * blocks) * step.row_blocks + n % step.row_blocks; }

  // By one lane: old weights and dY of each item to the ring. A stage is free once it was read: this lane waits for nothing
  // else while there is room, and for nothing as far away as L2.
  DEVICE void send() const {
    const int all = items();
    int free = 0;      // items for which there is room
    int reading = -1;  // stage that the copy engine may still read
    auto release = [&] {
      if (reading < 0) return;
      bulk_wait_read<0>();
      mbarrier_arrive(empty + 8 * reading);
      reading = -1;
    };
    for (int n = 0; n < all; n++) {
      const int s = n % STAGES;
      if (!mbarrier_test(filled + 8 * s, n / STAGES & 1)) {
        release();
        mbarrier_wait(filled + 8 * s, n / STAGES & 1);
      }
      if (free <= n) free = told(room);
      if (free <= n) {  // what others wait for goes first
        release();
        bulk_wait<0>();
        tell(written, n);
        while ((free = told(room)) <= n) __nanosleep(32);
      }
      bulk_store(step.ring + static_cast<i64>(item_of(n) % step.slots) * SLOT_BYTES, stage(s) + X_BYTES, SLOT_BYTES);
      bulk_commit();
      if (reading >= 0) {
        bulk_wait_read<1>();
        mbarrier_arrive(empty + 8 * reading);
      }
      reading = s;
      if (n >= LAG) {
        bulk_wait<LAG>();
        tell(written, n + 1 - LAG);
      }
    }
    release();
    bulk_wait<0>();
    tell(written, all);
  }

  // By another warp: tell the readers what was written, and the sender for how many items there is room: whose slots' readers
  // have what was there before. Both take trips to L2, longer than sending does; a fence is enough for all items that were
  // written meanwhile, and lanes look at 32 slots at once.
  DEVICE void announce(int lane) const {
    const int all = items();
    for (int n = 0, free = 0; n < all || free < all;) {
      const int until = __shfl_sync(~0u, told(written), 0);
      if (lane == 0 && n < until) {
        fence_gpu();
        for (int i = n; i < until; i++) store_relaxed(step.ready + item_of(i) % step.slots, item_of(i) + 1);
      }
      n = max(n, until);
      const int at = item_of(free + lane);
      const bool there = free + lane < all && load_acquire(step.done + at % step.slots) >= static_cast<u32>(at / step.slots) * SLICES;
      const u32 missing = ~__ballot_sync(~0u, there);
      const int more = missing ? __ffs(missing) - 1 : 32;
      __syncwarp();
      free += more;
      if (lane == 0 && more) tell(room, free);
      if (!more) __nanosleep(32);
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
    step.losses[block * (CONSUMERS * 32) + threadIdx.x] = loss.total;
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
      uint4 old[PARTS][G / 16];
      if (UPDATE && EARLY && rows + 1 == step.row_blocks)
#pragma unroll
        for (int q = 0; q < PARTS * G / 16; q++) old[q / (G / 16)][q % (G / 16)] = read_old(w, wr, lane, q / (G / 16), q % (G / 16));
      wgmma_wait<0>();
      auto free = [&] {
        __syncwarp();
        if (lane == 0) mbarrier_arrive(empty + 8 * s);
      };
      const bool last = ++rows == step.row_blocks;
      if (EARLY || !last) free();
      if (last) {
        const i64 label = static_cast<i64>(unit) * G;
        const int left = min(G, step.labels - unit * G);
#if BIAS
        if (thread < left) step.db[label + thread] = db;
        db = 0;
#endif
        finish(dw, old, w, wr, lane, label, left, rates, free);
        rows = 0, unit += skip ? 2 * blocks : blocks, n += skip;
      }
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

  // Eight numbers of eight lanes exchanged: number c of lane r becomes number r of lane c. Lanes of one t.
  DEVICE static void exchange(float (&v)[8], int r) {
#pragma unroll
    for (int m = 1; m < 8; m *= 2) {
      const bool upper = r & m;
#pragma unroll
      for (int c = 0; c < 8; c++)
        if (!(c & m)) {
          const float other = __shfl_xor_sync(~0u, upper ? v[c] : v[c + m], 4 * m);
          v[c] = upper ? other : v[c], v[c + m] = upper ? v[c + m] : other;
        }
    }
  }

  // Of the q-th 16 labels and 64 inputs p, the old weights that the lane updates.
  DEVICE static uint4 read_old(u32 w, int wr, int lane, int p, int q) {
    const int one = lane / 16 * 8 + lane % 4 * 2 + lane / 8 % 2, piece = wr * 2 + lane / 4 % 2;
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(w + p * (G * 128) + (q * 16 + one) * 128 + ((piece ^ (one & 7)) << 4)) : "memory");
    return v;
  }

  // Two neighbouring weights and their states, each in a word.
  DEVICE static void update_two(u32& now, u32& buffer, u32& lost, float g0, float g1, i64 at, const Rates& rates) {
    const T *w = reinterpret_cast<const T*>(&now), *b = reinterpret_cast<const T*>(&buffer), *l = reinterpret_cast<const T*>(&lost);
    float b0 = to_float(b[0]), b1 = to_float(b[1]), l0 = to_float(l[0]), l1 = to_float(l[1]);
    const float w0 = updated<T>(to_float(w[0]), g0, b0, l0, at, rates), w1 = updated<T>(to_float(w[1]), g1, b1, l1, at + 1, rates);
    now = pack<T>(w0, w1), buffer = pack<T>(b0, b1), lost = pack<T>(l0, l1);
  }

  // Update the weights of the unit, or store their gradient. A lane has one input of many labels; after an exchange it has eight
  // inputs of one label, a piece, and the lane 4 further the next piece: of 16 labels, then of the next. `free` is told once nobody
  // of this warp needs the stage.
  template <class Free>
  DEVICE void finish(const float (&dw)[PARTS][G / 2], uint4 (&old)[PARTS][G / 16], u32 w, int wr, int lane, i64 label, int left,
                     const Rates& rates, const Free& free) const {
    const int r = lane / 4, t = lane % 4, one = r / 4 * 8 + t * 2 + r / 2 % 2, piece = wr * 2 + r % 2;  // of the first 16
    const i64 first = (label + one) * K + piece * 8;
#pragma unroll
    for (int p = 0; p < PARTS; p++)
#pragma unroll
      for (int q = 0; q < G / 16; q++) {
        float g[8];  // number c: label c / 4 * 8 + c / 2 % 2, half c % 2 of the warp's 16 inputs
#pragma unroll
        for (int c = 0; c < 8; c++) g[c] = dw[p][q * 8 + c / 4 * 4 + c % 2 * 2 + c / 2 % 2];
        if (!EARLY) __syncwarp();  // registers are short: one piece after the other
        exchange(g, r);
#if UPDATE
        if (!EARLY) old[p][q] = read_old(w, wr, lane, p, q);
#endif
        if (!EARLY && p == PARTS - 1 && q == G / 16 - 1) free();
        if (q * 16 + one >= left) continue;
        const i64 at = first + (q * 16 * K + p * 64);
#if UPDATE
        uint4 now = old[p][q], buffer = {}, lost = {};
#if MOMENTUM
        buffer = load_eight(step.buffer + at);
#endif
#if ROUNDING == 2
        lost = load_eight(step.lost + at);
#endif
        update_two(now.x, buffer.x, lost.x, g[0], g[1], at, rates);  // all as words: registers are short
        update_two(now.y, buffer.y, lost.y, g[2], g[3], at + 2, rates);
        update_two(now.z, buffer.z, lost.z, g[4], g[5], at + 4, rates);
        update_two(now.w, buffer.w, lost.w, g[6], g[7], at + 6, rates);
        store_eight(step.weight + at, now);
#if MOMENTUM
        store_eight(step.buffer + at, buffer);
#endif
#if ROUNDING == 2
        store_eight(step.lost + at, lost);
#endif
#else
        store_eight(step.dw + at, packed<T>(g));
#endif
      }
  }
};
