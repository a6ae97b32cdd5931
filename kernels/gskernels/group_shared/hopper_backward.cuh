// dW on Hopper by blocks that own labels, beside others that own batch rows (hopper_backward.cu).
//
// A block takes every `blocks`-th step: TILES neighbouring tiles of 64 labels, with the whole batch. A *job* is 64 inputs of
// one group and its UNIT labels; a warpgroup has one at a time, in registers: dW^T [64 inputs x UNIT] = X^T dY, 64 batch rows
// at a time. dY comes by the copy engine, tiles of [64 rows][64 labels] in a ring of stages that all warpgroups with jobs of that tile
// read. X^T goes straight to the registers that wgmma takes it from: RESIDENT slices of 64 rows stay in shared memory,
// [dim][64] as `load_slice` leaves them, and are gathered by ldmatrix; the others come from L2, CHUNK slices early, from a copy of
// X^T whose rows are in such an order that a lane's 16 bytes are what it needs for 32 of them. No sums leave the warpgroup, which
// stores dW by 32 bytes of a label: no barrier between warps but for the ring.
//
// Macros: ELEMENT, K (multiple of 64), G (labels that share a list, at most), LIST (labels of a real group, a multiple of G),
// RESIDENT, CHUNK (slices; CHUNK is 0 where all are resident), RING (stages, a multiple of TILES), OVERLAP (1: the products of a
// slice run until those of the next are under way, which takes two stages; 0: until the next operand is in registers), STORE (dW leaves 0: from
// registers, 1: by the copy engine from each warp, 2: from the warpgroup), PIECE (labels that leave together).
#pragma once
#include "hopper.cuh"
#ifndef ABLATE  // for measurements: what is left out. 2: stores of dW, 4: dY, 8: far slices
#define ABLATE 0
#endif
#ifndef ASK  // a far slice's registers are filled again 0: once its product is over, 1: at once, 2: as 0, but a job's last behind its stores
#define ASK 0
#endif
#ifndef START
#define START 0
#endif

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
namespace grad_weight {

constexpr int WARPGROUPS = 4, TILE = 64, ROWS = 64;
constexpr int UNIT = G < TILE ? G : TILE, PARTS = K / 64;
constexpr int JOBS = TILE / UNIT * PARTS;                       // of a tile
constexpr int TILES = JOBS < 3 ? WARPGROUPS / JOBS : 1;         // of a step
constexpr int SHARERS = WARPGROUPS / TILES;                     // warpgroups that are at the same tile
constexpr int ROUNDS = (JOBS + SHARERS - 1) / SHARERS;          // how often a tile comes
constexpr int STAGE_BYTES = ROWS * TILE * 2;
constexpr int BUFFERS = CHUNK ? CHUNK : 1;
constexpr int PIECE_BYTES = STORE ? PIECE * 128 : 0;            // of dW, as a warpgroup stores it: 64 inputs
// As many stages, so that each holds tiles of the same warpgroups: who skips a stage could take one passage for the next.
static_assert(RING % TILES == 0 && RING <= 32 && RING > OVERLAP * TILES);

// Slices in the order of their places in the batch: near ones (in shared memory) and far ones in turns, as long as there are both in the
// first chunk, so that few wait in registers at once; then the others. Of a place there: which kind, and number of its kind.
constexpr int TURNS = RESIDENT < CHUNK ? RESIDENT : CHUNK;
DEVICE constexpr bool is_near(int place) { return place < 2 * TURNS ? place % 2 == 0 : place < RESIDENT + TURNS; }
DEVICE constexpr int number(int place) { return place < 2 * TURNS ? place / 2 : is_near(place) ? place - TURNS : place - RESIDENT; }
DEVICE constexpr int near_place(int q) { return q < TURNS ? 2 * q : q + TURNS; }

// Places in shared memory, from `at` (on 1024 bytes) on: barriers, words of `Steps`, stages, pieces of dW on their way, slices of X^T.
struct Layout {
  u32 at;
  DEVICE u32 full(int stage) const { return at + stage * 8; }
  DEVICE u32 empty(int stage) const { return at + 256 + stage * 8; }
  DEVICE u32 words() const { return at + 512; }
  DEVICE u32 stage(int i) const { return at + 1024 + i * STAGE_BYTES; }
  DEVICE u32 piece(int wg) const { return stage(RING) + wg * PIECE_BYTES; }
  DEVICE u32 inputs() const { return piece(WARPGROUPS); }
  // By all threads of the block, before a barrier of the block.
  DEVICE void init(int thread) const {
    if (thread < RING) mbarrier_init(full(thread), 1), mbarrier_init(empty(thread), 4 * SHARERS);
    Steps::init(words(), thread);
    mbarrier_fence();
  }
};

// What a block does in each of its steps: ROUNDS times `slices` times TILES stages, in this order.
struct Work : Steps {
  int labels, slices;
  DEVICE Work(const Layout& s, int part, int parts, int labels_, int slices_, int drawn)
      : Steps(part, parts, cdiv(labels_, TILE * TILES), drawn, s.words()), labels(labels_), slices(slices_) {}
  DEVICE static int label(int step, int tile) { return (step * TILES + tile) * TILE; }
};

// How far blocks of a kind may be ahead of the others, so that what one kind reads of dY is in L2 for the other. Only a hint: who has
// looked too often goes on, so blocks need not run at the same time. Counters begin at 0; a block adds the labels that it has asked for.
struct Pace {
  u32 *mine, *others;
  u32 factor;            // what the others add for a label
  int ahead, labels;     // labels; those of the layer
  mutable u32 seen = 0;  // of `others`, as of the check before
  mutable int patience;  // looks in a row, 1 ms or so
  DEVICE Pace(u32* mine_, u32* others_, u32 factor_, int ahead_, int labels_, bool both)
      : mine(mine_), others(others_), factor(factor_), ahead(ahead_), labels(labels_) {
    patience = both ? 1 << 11 : 0;
  }
  // By all lanes of a warp, before labels from `label` on are asked for.
  DEVICE void wait(int label) const {
    const int needed = min(label - ahead, labels);
    int looks = patience;
    while (needed > 0 && needed * factor > seen && looks > 0) seen = look(), looks--;
    if (looks == 0) patience = 0;
    seen = look();  // arrives while other things are done
  }
  DEVICE u32 look() const {
    u32 v;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(others) : "memory");
    return v;
  }
  DEVICE void tell(u32 labels) const { asm volatile("red.relaxed.gpu.global.add.u32 [%0], %1;" ::"l"(mine), "r"(labels) : "memory"); }
};

// By one warp: dY, boxes of 64 x 64. counter: of `Draws`.
DEVICE void load(const Layout& s, const TensorMap* map, const Work& work, const Pace& pace, u32* counter) {
  const bool one = elect();
  int stage = 0, parity = 1, label;
  Draws draws(work, counter, one);
#pragma unroll 1
  for (int i = 0; (label = work.label(work.step(i), 0)) < work.labels; i++) {
    draws.before(i);
    pace.wait(label);
    if (one) pace.tell(TILE * TILES);
#pragma unroll 1
    for (int round = 0; round < ROUNDS; round++) {
#pragma unroll 1
      for (int row = 0; row < work.slices * ROWS; row += ROWS) {
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
          if (!(ABLATE & 4)) mbarrier_wait(s.empty(stage), parity);
          if (one && !(ABLATE & 4)) {
            mbarrier_expect(s.full(stage), STAGE_BYTES);
            tma_load(s.stage(stage), map, s.full(stage), label + tile * TILE, row);
          }
          if (++stage == RING) stage = 0, parity ^= 1;
        }
      }
    }
  }
}

DEVICE uint4 load_early(const unsigned char* from) {  // stays where it is written
  uint4 v;
  asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from));
  return v;
}
// A copy that the compiler does not see through: made here, not where the original arrives. nothing: 0, but who knows.
DEVICE u32 copied(u32 v, u32 nothing) {
  u32 copy;
  asm volatile("xor.b32 %0, %1, %2;" : "=r"(copy) : "r"(v), "r"(nothing));
  return copy;
}
DEVICE u32 transposed(u32 v) {  // an 8 x 8 matrix of 16-bit numbers across the warp
  u32 o;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(o) : "r"(v));
  return o;
}

// By the block's first WARPGROUPS warpgroups. xt: [dim][(work.slices - RESIDENT) * 64] as `row_at` says, ready once the previous kernel
// is over. outputs: dW in boxes as they are stored. Barriers 1 to 5 are theirs.
DEVICE void weigh(const Layout& s, const Work& work, const T* __restrict__ x, const T* __restrict__ xt, const u16* __restrict__ lists,
                  T* __restrict__ dw, const TensorMap* outputs, int batch, int dim) {
  const int wg = __shfl_sync(~0u, threadIdx.x / 128, 0), warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, r = lane / 4, t = lane % 4;
  const int tile = wg / SHARERS, chunks = CHUNK ? (work.slices - RESIDENT) / BUFFERS : 0;
  const u32 nothing = dim % 64, pitch = (work.slices - RESIDENT) * (ROWS * 2);
  auto job_of = [&](int round) { return round % ROUNDS * SHARERS + wg % SHARERS; };
  // The inputs of the warp's 16 rows of a job, a lane one of them.
  auto inputs_of = [&](int round) -> u32 {
    const int job = min(job_of(round), JOBS - 1), label = work.label(work.step(round / ROUNDS), tile) + job / PARTS * UNIT;
    return lists[static_cast<i64>(min(label, work.labels - 1) / LIST) * K + job % PARTS * 64 + warp * 16 + lane % 16];
  };
  u32 next = inputs_of(0), after = inputs_of(1);
#pragma unroll 1
  for (int q = 0; q < RESIDENT; q++)
    load_slice<WARPGROUPS * 4, START ? 6 : 3>(s.inputs() + q * dim * 128, x, near_place(q) * ROWS, batch, dim);
  if (CHUNK) wait_for_earlier();  // which wrote xt
  barrier(1, WARPGROUPS * 128);
  auto row_of = [&](u32 input) { return input * pitch + t * 16; };  // in xt
  // Of two inputs 64 batch rows: what the lane needs of a slice.
  auto fetch = [&](uint4 (&to)[4], u32 first, u32 second, int at) {
    const unsigned char* const all = reinterpret_cast<const unsigned char*>(xt);
#pragma unroll
    for (int h = 0; h < 2; h++) to[2 * h] = load_early(all + first + (at + h * 64)), to[2 * h + 1] = load_early(all + second + (at + h * 64));
  };
  int stage = tile, parity = 0;
  u32 taken = 0;  // barrier of the stage whose products run
  float d[UNIT / 2];
  auto give_back = [&] {
    if (lane == 0) mbarrier_arrive(taken);
  };
  auto drain = [&] { wgmma_wait<0>(), give_back(); };
  // Begins the products of the next stage, whose first operand is there. running: those of the stage before are under way, and end here.
  auto multiply = [&](const u32 (&a)[4][4], u32 offset, bool add, bool running) {
    if (running && !OVERLAP) drain(), running = false;
    if (!(ABLATE & 4)) mbarrier_wait(s.full(stage), parity);
    const u64 grads = wgmma_matrix(s.stage(stage) + offset, 1024, 1024, 1);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++) Wgmma<T, UNIT, 1>::rs(d, a[k], grads + (k * (16 * TILE * 2) >> 4), k > 0 || add);
    wgmma_commit();
    if (running) wgmma_wait<1>(), give_back();
    taken = s.empty(stage);
    if ((stage += TILES) >= RING) stage = tile, parity ^= 1;
  };

  // PIECE labels of dW, by the copy engine: by a warp its 16 inputs, or by the warpgroup 64. `slot` is free to write to.
  const bool one = elect() && (STORE != 2 || warp == 0);
  auto put = [&](const float* v, u32 slot, int job, int label) {
    const int row = lane / 16 * 8 + lane % 8, half = lane / 8 % 2;  // of 16 labels, of the warp's inputs: where stmatrix has a lane's row
    const u32 at = slot + (STORE == 1 ? row * 32 + ((half ^ (row >> 2 & 1)) << 4) : row * 128 + (((2 * warp + half) ^ (row & 7)) << 4));
    if constexpr (PIECE == 8) {
      store_matrices_transposed(at, pack<T>(v[0], v[1]), pack<T>(v[2], v[3]));
    } else {
#pragma unroll
      for (int i = 0; i < PIECE / 16; i++, v += 8)
        store_matrices_transposed(at + i * (STORE == 1 ? 512 : 2048), pack<T>(v[0], v[1]), pack<T>(v[2], v[3]), pack<T>(v[4], v[5]),
                                  pack<T>(v[6], v[7]));
    }
    fence_async();
    if (STORE == 1) __syncwarp();
    else barrier(2 + wg, 128);
    if (one && job < JOBS && !(ABLATE & 2)) tma_store(outputs, slot, job % PARTS * 64 + (STORE == 1 ? warp * 16 : 0), label);
    if (one) bulk_commit();
  };
  uint4 early[BUFFERS][4];
  u32 first, second;
  auto point = [&](u32 inputs) { first = row_of(__shfl_sync(~0u, inputs, r)), second = row_of(__shfl_sync(~0u, inputs, r + 8)); };
  point(next);
  auto refill = [&](int q) {
    if (!(ABLATE & 8)) fetch(early[q], first, second, q * 128);
  };
  auto take = [&](u32 (&a)[4][4], const uint4 (&from)[4]) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const uint4 low = from[2 * h], high = from[2 * h + 1];
      a[2 * h][0] = copied(low.x, nothing), a[2 * h][1] = copied(high.x, nothing);
      a[2 * h][2] = copied(low.y, nothing), a[2 * h][3] = copied(high.y, nothing);
      a[2 * h + 1][0] = copied(low.z, nothing), a[2 * h + 1][1] = copied(high.z, nothing);
      a[2 * h + 1][2] = copied(low.w, nothing), a[2 * h + 1][3] = copied(high.w, nothing);
    }
  };
#pragma unroll
  for (int q = 0; q < CHUNK; q++) refill(q);
#pragma unroll 1
  for (int round = 0;; round++) {
    const int step = work.step(round / ROUNDS);
    if (step >= work.all) break;
    const int job = job_of(round);
    const u32 now = next, offset = min(job, JOBS - 1) / PARTS * (UNIT * 2);
    next = after, after = inputs_of(round + 2);
    // What is asked for early is of the next chunk, or of the next job.
    auto move_on = [&](bool last) {
      if (last) point(next);
      else first += CHUNK * 128, second += CHUNK * 128;
    };
    if (CHUNK) move_on(chunks == 1);
#pragma unroll
    for (int i = 0; i < RESIDENT + CHUNK; i++) {
      u32 a[4][4];
      if (is_near(i)) {
#pragma unroll
        for (int k = 0; k < 4; k++)
          load_matrices(a[k], s.inputs() + number(i) * dim * 128 + now * 128 + (((2 * k + lane / 16) ^ (now & 7)) << 4));
      } else {
        take(a, early[number(i)]);
        if (ASK == 1) refill(number(i));
      }
      multiply(a, offset, i > 0, i > 0);
      if (ASK != 1 && i > 0 && !is_near(i - 1)) refill(number(i - 1));
    }
    drain();
    if ((!ASK || ASK == 2 && chunks > 1) && CHUNK && !is_near(RESIDENT + CHUNK - 1)) refill(number(RESIDENT + CHUNK - 1));
    if (CHUNK) {
#pragma unroll 1
      for (int chunk = 1; chunk < chunks; chunk++) {
        move_on(chunk + 1 == chunks);
#pragma unroll
        for (int q = 0; q < CHUNK; q++) {
          u32 a[4][4];
          take(a, early[q]);
          if (ASK == 1) refill(q);
          multiply(a, offset, true, q > 0);
          if (ASK != 1 && q > 0) refill(q - 1);
        }
        drain();
        if (!ASK || ASK == 2 && chunk + 1 < chunks) refill(CHUNK - 1);
      }
    }
    int label = work.label(step, tile) + job / PARTS * UNIT;
    if constexpr (STORE > 0) {
#pragma unroll
      for (int i = 0; i < UNIT / PIECE; i++) {
        if (one) bulk_wait_read<0>();  // of the piece before
        if (STORE == 1) __syncwarp();
        else barrier(2 + wg, 128);
        put(d + i * (PIECE / 2), s.piece(wg) + (STORE == 1 ? warp * (PIECE_BYTES / 4) : 0), job, label + i * PIECE);
      }
    }
    if (ASK == 2 && CHUNK) refill(CHUNK - 1);
    if constexpr (STORE == 0) {
      // 8 labels at a time, from the order of the sums to rows of dW.
      label += r;
      T* const to = dw + static_cast<i64>(label) * K + job % PARTS * 64 + warp * 16 + (t & 1 ? 6 + 2 * t : 2 * t);
#pragma unroll
      for (int j = 0; j < UNIT / 8; j++) {
        const u32 low = transposed(pack<T>(d[4 * j], d[4 * j + 1])), high = transposed(pack<T>(d[4 * j + 2], d[4 * j + 3]));
        const u32 other = __shfl_xor_sync(~0u, t & 1 ? low : high, 1);
        const uint2 v = t & 1 ? make_uint2(other, high) : make_uint2(low, other);
        if (job < JOBS && label + 8 * j < ((ABLATE & 2) ? -1 - static_cast<int>(v.x & 1) : work.labels)) *reinterpret_cast<uint2*>(to + 8 * j * K) = v;
      }
    }
  }
  if (STORE && one) bulk_wait<0>();
}

// The batch row at place `place` of a row of xt: the far slices after each other. Of 32 rows, places 8t to 8t + 7 are what lanes t of a warp
// need of two products of 16.
DEVICE int row_at(int place) {
  const int q = place / 64, slice = q < RESIDENT && q < CHUNK ? 2 * q + 1 : q + RESIDENT;
  return slice * 64 + place % 64 / 32 * 32 + place % 8 / 4 * 16 + place % 4 / 2 * 8 + place % 32 / 8 * 2 + place % 2;
}

}  // namespace grad_weight
#endif  // sm_90a
