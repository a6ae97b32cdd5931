// dW on Hopper by blocks that own labels, beside others that own batch rows (hopper_backward.cu).
//
// A block takes every `blocks`-th step: TILES neighbouring tiles of 64 labels, with the whole batch. A *job* is 64 inputs of
// one group and its UNIT labels; a warpgroup has one at a time, in registers: dW^T [64 inputs x UNIT] = X^T dY, 64 batch rows
// at a time. dY comes by the copy engine, tiles of [64 rows][64 labels] in a ring of stages that all warpgroups with jobs of that tile
// read. X^T goes to the registers that wgmma takes it from by ldmatrix, in *halves* of a slice, 32 batch rows, of two kinds:
//
//   near  NEAR of them, resident in shared memory: [dim][32 rows], of all inputs;
//   far   from a copy of X^T in L2 by cp.async to a ring of DEEP halves in shared memory, a warp its own 16 inputs, which it alone reads.
//
// Both kinds are spread evenly over the batch, so that loads have the time of all products. No sums leave the warpgroup, whose dW leaves
// by the copy engine: no barrier between warpgroups but for the ring of dY.
//
// In shared memory 16-byte piece p of an input's half, at input * 64, lies at p ^ (input / 2 mod 4): where depends on input mod 8 alone, for
// which lists are ordered (`turn_halves`, `gather_half`).
//
// Macros: ELEMENT, K (multiple of 64), G (labels that share a list, at most), LIST (labels of a real group, a multiple of G), SLICES (of 64
// batch rows), NEAR, DEEP (1 up to the far halves, 0 if there are none), RING (stages, a multiple of TILES), OVERLAP (1: the products of a slice
// run until those of the next are under way, which takes two stages; 0: until the next operand is in registers).
#pragma once
#include "hopper.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
namespace grad_weight {

constexpr int WARPGROUPS = 4, TILE = 64, ROWS = 64, HALF = 32;
constexpr int UNIT = G < TILE ? G : TILE, PARTS = K / 64;
constexpr int JOBS = TILE / UNIT * PARTS;                       // of a tile
constexpr int TILES = JOBS < 3 ? WARPGROUPS / JOBS : 1;         // of a step
constexpr int SHARERS = WARPGROUPS / TILES;                     // warpgroups that are at the same tile
constexpr int ROUNDS = (JOBS + SHARERS - 1) / SHARERS;          // how often a tile comes
constexpr int STAGE_BYTES = ROWS * TILE * 2;
constexpr int PIECE = UNIT < 32 ? UNIT : 32;                    // labels of dW that leave together
constexpr int PIECE_BYTES = PIECE * 128;
// As many stages, so that each holds tiles of the same warpgroups: who skips a stage could take one passage for the next.
static_assert(RING % TILES == 0 && RING <= 32 && RING > OVERLAP * TILES);

// Halves by their place in the batch: the n-th near one is at `near_place(n)`, the n-th far one at `far_place(n)`.
constexpr int HALVES = 2 * SLICES, FAR = HALVES - NEAR, SLOT_BYTES = 16 * HALF * 2;  // of a warp's ring
static_assert(FAR ? 1 <= DEEP && DEEP <= FAR : DEEP == 0);
DEVICE constexpr int near_before(int place) { return place * NEAR / HALVES; }
DEVICE constexpr bool is_near(int place) { return near_before(place + 1) > near_before(place); }
DEVICE constexpr int near_place(int n) { return cdiv((n + 1) * HALVES, (NEAR ? NEAR : 1)) - 1; }
DEVICE constexpr int far_place(int n) { return n * HALVES / (FAR ? FAR : 1); }

// Places in shared memory, from `at` (on 1024 bytes) on: barriers, stages, pieces of dW on their way, rings of X^T, halves of X^T.
struct Layout {
  u32 at;
  DEVICE u32 full(int stage) const { return at + stage * 8; }
  DEVICE u32 empty(int stage) const { return at + 256 + stage * 8; }
  DEVICE u32 came(int wg) const { return at + 512 + wg * 8; }  // near halves that warpgroup `wg` transposes
  DEVICE u32 stage(int i) const { return at + 1024 + i * STAGE_BYTES; }
  DEVICE u32 piece(int wg) const { return stage(RING) + wg * PIECE_BYTES; }
  DEVICE u32 slots(int warp) const { return piece(WARPGROUPS) + warp * (DEEP * SLOT_BYTES); }
  DEVICE u32 inputs() const { return slots(WARPGROUPS * 4); }
  // By all threads of the block, before a barrier of the block.
  DEVICE void init(int thread) const {
    if (thread < RING) mbarrier_init(full(thread), 1), mbarrier_init(empty(thread), 4 * SHARERS);
    mbarrier_fence();
  }
};

// Near halves come by the copy engine, as squares of 32 rows x 64 inputs, of which warpgroup `wg` transposes every WARPGROUPS-th in its place.
// By one lane, who asks for them; `x` is a map of such boxes.
DEVICE void ask_halves(const Layout& s, const TensorMap* x, int wg, int dim) {
  const int across = dim / 64, squares = NEAR * across;
  mbarrier_init(s.came(wg), 1);
  mbarrier_fence();
  if (wg < squares) mbarrier_expect(s.came(wg), cdiv(squares - wg, WARPGROUPS) * 4096);
#pragma unroll 1
  for (int i = wg; i < squares; i += WARPGROUPS)
    tma_load(s.inputs() + i * 4096, x, s.came(wg), i % across * 64, near_place(i / across) * HALF);
}
// By the warpgroup, a warp 16 inputs. Barrier 2 + wg is its own.
DEVICE void turn_halves(const Layout& s, int wg, int warp, int lane, int dim) {
  const int squares = NEAR * (dim / 64), line = lane % 8, octet = 2 * warp + lane / 8 % 2, half = lane / 16;
  if (wg < squares) mbarrier_wait(s.came(wg), 0);
#pragma unroll 1
  for (int i = wg; i < squares; i += WARPGROUPS) {
    const u32 square = s.inputs() + i * 4096;
    u32 v[2][4];  // matrices: 8 rows, 8 or 16 rows on; 8 inputs, or the next 8
#pragma unroll
    for (int q = 0; q < 2; q++) load_matrices_transposed(v[q], square + ((2 * q + half) * 8 + line) * 128 + ((octet ^ line) << 4));
    barrier(2 + wg, 128);
#pragma unroll
    for (int q = 0; q < 2; q++)
      store_matrices(square + (octet * 8 + line) * 64 + (((2 * q + half) ^ (line / 2)) << 4), v[q][0], v[q][1], v[q][2], v[q][3]);
  }
}
// What a lane has to say to ldmatrix of its warp's 16 inputs, of which it names `input`, in a half at 0.
DEVICE u32 place_of(u32 input, int lane) { return input * 64 + ((lane / 16 ^ (input / 2 & 3)) << 4); }
DEVICE void gather_half(u32 (&a)[4], u32 (&b)[4], u32 at) { load_matrices(a, at), load_matrices(b, at ^ 32); }

// What a block does: of each of its steps ROUNDS times SLICES times TILES stages, in this order.
struct Work {
  int block, blocks, labels, steps;
  DEVICE Work(int block_, int blocks_, int labels_) : block(block_), blocks(blocks_), labels(labels_) { steps = cdiv(labels, TILE * TILES); }
  DEVICE int step(int i) const { return block + i * blocks; }
  DEVICE static int label(int step, int tile) { return (step * TILES + tile) * TILE; }
};

// How far blocks of a kind may be ahead of the others, so that what one kind reads of dY is in L2 for the other. Only a hint: who has
// looked too often goes on, so blocks need not run at the same time. Counters begin at 0; a block adds the labels that it has asked for.
struct Pace {
  u32 *mine, *others;
  u32 factor;            // what the others add for a label
  int ahead;             // labels
  mutable u32 seen = 0;  // of `others`, as of the check before
  mutable int patience;  // looks in a row, 1 ms or so
  DEVICE Pace(u32* mine_, u32* others_, u32 factor_, int ahead_, bool both) : mine(mine_), others(others_), factor(factor_), ahead(ahead_) {
    patience = both ? 1 << 11 : 0;
  }
  // By all lanes of a warp, before labels from `label` on are asked for.
  DEVICE void wait(int label) const {
    const int needed = label - ahead;
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

// By one warp: dY, boxes of 64 x 64.
DEVICE void load(const Layout& s, const TensorMap* map, const Work& work, const Pace& pace) {
  const bool one = elect();
  int stage = 0, parity = 1;
#pragma unroll 1
  for (int step = work.block; step < work.steps; step += work.blocks) {
    const int label = work.label(step, 0);
    pace.wait(label);
    if (one) pace.tell(TILE * TILES);
#pragma unroll 1
    for (int round = 0; round < ROUNDS; round++) {
#pragma unroll 1
      for (int row = 0; row < SLICES * ROWS; row += ROWS) {
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
          mbarrier_wait(s.empty(stage), parity);
          if (one) {
            mbarrier_expect(s.full(stage), STAGE_BYTES);
            tma_load(s.stage(stage), map, s.full(stage), label + tile * TILE, row);
          }
          if (++stage == RING) stage = 0, parity ^= 1;
        }
      }
    }
  }
}

// By the block's first WARPGROUPS warpgroups. xt: [dim][FAR halves][32], ready once the previous kernel is over. outputs: dW in boxes of
// PIECE labels x 64 inputs. Barriers 1 to 5 are theirs.
DEVICE void weigh(const Layout& s, const Work& work, const T* __restrict__ xt, const u16* __restrict__ lists, const TensorMap* outputs, int dim) {
  const int wg = __shfl_sync(~0u, threadIdx.x / 128, 0), warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, r = lane / 4, t = lane % 4;
  const int tile = wg / SHARERS;
  const u32 half_bytes = dim * (HALF * 2);
  auto job_of = [&](int round) { return round % ROUNDS * SHARERS + wg % SHARERS; };
  // The inputs of the warp's 16 rows of a job, a lane one of them.
  auto inputs_of = [&](int round) -> u32 {
    const int job = min(job_of(round), JOBS - 1), label = work.label(work.step(round / ROUNDS), tile) + job / PARTS * UNIT;
    return lists[static_cast<i64>(min(label, work.labels - 1) / LIST) * K + job % PARTS * 64 + warp * 16 + lane % 16];
  };
  u32 next = inputs_of(0), after = inputs_of(1);

  // Far halves: a slot is asked for again as soon as it has been read, so that DEEP are always on their way, those of the next job at the end.
  // A lane fetches 16 bytes of two of the warp's inputs.
  const u32 slots = s.slots(threadIdx.x / 32), own = place_of(lane % 16, lane), to = r * 64 + ((t ^ (r / 2 & 3)) << 4);
  u32 slot = slots;  // to be read next
  const T* from[2];
  auto point = [&](u32 inputs) {
#pragma unroll
    for (int j = 0; j < 2; j++) from[j] = xt + __shfl_sync(~0u, inputs, r + 8 * j) * (FAR * HALF) + t * 8;
  };
  auto ask = [&](int f) {  // the f-th far half, for the slot, which the next one follows
    copy_async(slot + to, from[0] + f * HALF), copy_async(slot + to + 512, from[1] + f * HALF);
    copy_commit();
    if ((slot += SLOT_BYTES) == slots + DEEP * SLOT_BYTES) slot = slots;
  };
  if (FAR) {
    wait_for_earlier();  // which wrote xt
    point(next);
#pragma unroll
    for (int f = 0; f < DEEP; f++) ask(f);
  }
  turn_halves(s, wg, warp, lane, dim);
  barrier(1, WARPGROUPS * 128);

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
    mbarrier_wait(s.full(stage), parity);
    const u64 grads = wgmma_matrix(s.stage(stage) + offset, 1024, 1024, 1);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++) Wgmma<T, UNIT, 1>::rs(d, a[k], grads + (k * (16 * TILE * 2) >> 4), k > 0 || add);
    wgmma_commit();
    if (running) wgmma_wait<1>(), give_back();
    taken = s.empty(stage);
    if ((stage += TILES) >= RING) stage = tile, parity ^= 1;
  };

  // PIECE labels of dW, by the copy engine. `slot` is free to write to.
  const bool one = elect() && warp == 0;
  auto put = [&](const float* v, u32 slot, int job, int label) {
    const int row = lane / 16 * 8 + lane % 8, half = lane / 8 % 2;  // of 16 labels, of the warp's inputs: where stmatrix has a lane's row
    const u32 at = slot + row * 128 + (((2 * warp + half) ^ (row & 7)) << 4);
#pragma unroll
    for (int i = 0; i < PIECE / 16; i++, v += 8)
      store_matrices_transposed(at + i * 2048, pack<T>(v[0], v[1]), pack<T>(v[2], v[3]), pack<T>(v[4], v[5]), pack<T>(v[6], v[7]));
    fence_async();
    barrier(2 + wg, 128);
    if (one && job < JOBS) tma_store(outputs, slot, job % PARTS * 64, label);
    if (one) bulk_commit();
  };
#pragma unroll 1
  for (int round = 0;; round++) {
    const int step = work.step(round / ROUNDS);
    if (step >= work.steps) break;
    const int job = job_of(round);
    const u32 near = s.inputs() + place_of(next, lane), offset = min(job, JOBS - 1) / PARTS * (UNIT * 2);
    next = after, after = inputs_of(round + 2);
#pragma unroll
    for (int i = 0; i < SLICES; i++) {
      u32 a[4][4];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int half = 2 * i + h, n = near_before(half), f = half - n;
        if (is_near(half)) {
          gather_half(a[2 * h], a[2 * h + 1], near + n * half_bytes);
        } else {
          copy_wait<DEEP ? DEEP - 1 : 0>();
          __syncwarp();
          gather_half(a[2 * h], a[2 * h + 1], slot + own);
          if (f + DEEP == FAR) point(next);
          ask((f + DEEP) % (FAR ? FAR : 1));
        }
      }
      multiply(a, offset, i > 0, i > 0);
    }
    drain();
    const int label = work.label(step, tile) + job / PARTS * UNIT;
#pragma unroll
    for (int i = 0; i < UNIT / PIECE; i++) {
      if (one) bulk_wait_read<0>();  // of the piece before
      barrier(2 + wg, 128);
      put(d + i * (PIECE / 2), s.piece(wg), job, label + i * PIECE);
    }
  }
  copy_wait<0>();
  if (one) bulk_wait<0>();
}

// The batch row at place `place` of a row of xt.
DEVICE int row_at(int place) { return far_place(place / HALF) * HALF + place % HALF; }

}  // namespace grad_weight
#endif  // sm_90a
