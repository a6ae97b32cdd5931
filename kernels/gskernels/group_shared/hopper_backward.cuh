// dW on Hopper by blocks that own labels, beside others that own batch rows (hopper_backward.cu).
//
// A block takes every `blocks`-th step: TILES neighbouring tiles of 64 labels, with the whole batch. A *job* is 64 inputs of
// one group and its UNIT labels; a warpgroup has one at a time, in registers: dW^T [64 inputs x UNIT] = X^T dY, ROWS batch rows
// at a time. dY comes by the copy engine, tiles of [ROWS][64 labels] in a ring of stages that all warpgroups with jobs of that tile
// read. X^T comes from a copy in L2 by cp.async, a slice of 64 batch rows of an input, 128 bytes, at a time, to a ring of DEEP slices
// in shared memory: a warp its own 16 inputs, which it alone reads. No sums leave the warpgroup, whose dW leaves by the copy
// engine. A warp of its own asks for that: the fence before it is dear to threads that have X^T on its way.
//
// Macros: ELEMENT, K (multiple of 64), G (labels that share a list, at most), LIST (labels of a real group, a multiple of G), SLICES (of 64
// batch rows), DEEP (slices of X^T), RING (stages, a multiple of TILES).
#pragma once
#include "hopper.cuh"
#include "hopper_pace.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
namespace grad_weight {

constexpr int WARPGROUPS = 4, TILE = 64;
constexpr int TOGETHER = SLICES % 2 ? 1 : 2, ROWS = 64 * TOGETHER, STAGES = SLICES / TOGETHER;  // slices of a stage; its batch rows; of the batch
constexpr int UNIT = G < TILE ? G : TILE, PARTS = K / 64;
constexpr int JOBS = TILE / UNIT * PARTS;                       // of a tile
constexpr int TILES = JOBS < 3 ? WARPGROUPS / JOBS : 1;         // of a step
constexpr int SHARERS = WARPGROUPS / TILES;                     // warpgroups that are at the same tile
constexpr int ROUNDS = (JOBS + SHARERS - 1) / SHARERS;          // how often a tile comes
constexpr int CYCLE = SLICES % DEEP ? DEEP : 1;                 // rounds until slices come to the same slots again
constexpr int STAGE_BYTES = ROWS * TILE * 2, SLOT_BYTES = 16 * 128;  // of the ring of dY; of a warp's ring of X^T
constexpr int PIECE = UNIT < 32 ? UNIT : 32;                    // labels of dW that leave together
constexpr int PIECE_BYTES = PIECE * 128;
// As many stages, so that each holds tiles of the same warpgroups: who skips a stage could take one passage for the next.
static_assert(RING % TILES == 0 && RING <= 32 && DEEP >= 1);

// Places in shared memory, from `at` (on 1024 bytes) on: barriers, stages, pieces of dW on their way, rings of X^T.
struct Layout {
  u32 at;
  DEVICE u32 full(int stage) const { return at + stage * 8; }
  DEVICE u32 empty(int stage) const { return at + 256 + stage * 8; }
  DEVICE u32 left(int wg, int which) const { return at + 512 + (wg * 2 + which) * 8; }  // a piece is there
  DEVICE u32 taken(int wg, int which) const { return left(wg, which) + 64; }            // and has been read
  DEVICE u32 stage(int i) const { return at + 1024 + i * STAGE_BYTES; }
  DEVICE u32 piece(int wg, int which) const { return stage(RING) + (wg * 2 + which) * PIECE_BYTES; }
  DEVICE u32 slots(int warp) const { return piece(WARPGROUPS, 0) + warp * (DEEP * SLOT_BYTES); }
  // By the block's first warps, before a barrier of the block.
  DEVICE void init(int warp) const {
    mbarrier_init_each<WARPGROUPS * 4>(full(0), RING, 1, warp), mbarrier_init_each<WARPGROUPS * 4>(empty(0), RING, 4 * SHARERS, warp);
    mbarrier_init_each<WARPGROUPS * 4>(left(0, 0), WARPGROUPS * 2, 4, warp);
    mbarrier_init_each<WARPGROUPS * 4>(taken(0, 0), WARPGROUPS * 2, 1, warp);
    mbarrier_fence();
  }
};

// What a block does: of each of its steps ROUNDS times STAGES times TILES stages, in this order.
struct Work {
  int block, blocks, labels, steps;
  DEVICE Work(int block_, int blocks_, int labels_) : block(block_), blocks(blocks_), labels(labels_) { steps = cdiv(labels, TILE * TILES); }
  DEVICE int step(int i) const { return block + i * blocks; }
  DEVICE static int label(int step, int tile) { return (step * TILES + tile) * TILE; }
  // A warpgroup's job in a round of a step, and the first label of that job.
  DEVICE static int job(int round, int wg) { return round * SHARERS + wg % SHARERS; }
  DEVICE static int label_of(int step, int wg, int job) { return label(step, wg / SHARERS) + job / PARTS * UNIT; }
};

// By one warp: dY, boxes of ROWS x 64.
DEVICE void load(const Layout& s, const TensorMap* map, const Work& work, const Pace<false>& pace) {
  const bool one = elect();
  int stage = 0, parity = 1;
#pragma unroll 1
  for (int step = work.block; step < work.steps; step += work.blocks) {
    const int label = work.label(step, 0);
    pace.wait(label, TILE * TILES);
#pragma unroll 1
    for (int i = 0; i < ROUNDS * STAGES; i++) {
#pragma unroll
      for (int tile = 0; tile < TILES; tile++) {
        const u32 to = here(s.stage(stage)), full = here(s.full(stage)), from = here(label + tile * TILE), row = here(i % STAGES * ROWS);
        mbarrier_wait(s.empty(stage), parity);
        if (one) {
          mbarrier_expect(full, STAGE_BYTES);
          tma_load(to, map, full, from, row);
        }
        if (++stage == RING) stage = 0, parity ^= 1;
      }
    }
  }
}

// By one warp: dW, as `weigh` leaves it. outputs: boxes of PIECE labels x 64 inputs.
DEVICE void store(const Layout& s, const Work& work, const TensorMap* outputs) {
  const bool one = elect();
  int which = 0, parity = 0;
  u32 before = 0;  // who waits for the piece before
#pragma unroll 1
  for (int step = work.block; step < work.steps; step += work.blocks)
#pragma unroll 1
    for (int round = 0; round < ROUNDS; round++)
#pragma unroll 1
      for (int first = 0; first < UNIT; first += PIECE) {
#pragma unroll 1
        for (int wg = 0; wg < WARPGROUPS; wg++) {
          const int job = work.job(round, wg), label = work.label_of(step, wg, job) + first;
          mbarrier_wait(s.left(wg, which), parity);
          fence_async();
          if (one) {
            if (job < JOBS) tma_store(outputs, s.piece(wg, which), job % PARTS * 64, label);
            bulk_commit();
            bulk_wait_read<1>();
            if (before) mbarrier_arrive(before);
          }
          before = s.taken(wg, which);
        }
        if ((which ^= 1) == 0) parity ^= 1;
      }
  if (one) bulk_wait<0>();
}

// By the block's first WARPGROUPS warpgroups. xt: [dim][SLICES][64], ready once the previous kernel is over.
DEVICE void weigh(const Layout& s, const Work& work, const T* __restrict__ xt, const u16* __restrict__ lists) {
  const int wg = __shfl_sync(~0u, threadIdx.x / 128, 0), warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const int tile = wg / SHARERS;
  auto job_of = [&](int round) { return min(work.job(round % ROUNDS, wg), JOBS - 1); };  // who has none multiplies as if it had the last
  // Those of the warp's 16 inputs of a job that a lane fetches a piece of, every fourth, a job ahead.
  u32 coming[4];
  int asked = 0;
  auto ask_inputs = [&] {
    const int job = job_of(asked), label = work.label_of(work.step(asked / ROUNDS), wg, job);
    const u16* const list = lists + static_cast<i64>(min(label, work.labels - 1) / LIST) * K + job % PARTS * 64 + warp * 16 + lane / 8;
#pragma unroll
    for (int j = 0; j < 4; j++) coming[j] = list[4 * j];
    asked++;
  };

  // A slot is asked for again once it has been read, so that up to DEEP slices are on their way, also of the jobs to come. A lane fetches 16
  // bytes of each of its inputs. Piece p of an input's 128 bytes lies at p ^ (its place in the list mod 8).
  const u32 slots = s.slots(threadIdx.x / 32), to = lane / 8 * 128 + ((lane % 8 ^ lane / 8) << 4), own = lane % 16 * 128 + ((lane / 16 ^ lane % 8) << 4);
  const T* from[4];
  auto ask = [&](int count) {  // slices are counted from the first of a cycle on
    const int slice = count % SLICES;
    if (slice == 0) {
#pragma unroll
      for (int j = 0; j < 4; j++) from[j] = xt + coming[j] * (SLICES * 64) + lane % 8 * 8;
      ask_inputs();
    }
#pragma unroll
    for (int j = 0; j < 4; j++) copy_async(slots + count % DEEP * SLOT_BYTES + (to ^ j % 2 * 64) + j * 512, from[j] + slice * 64);
    copy_commit();
  };
  ask_inputs();
  wait_for_earlier();  // which wrote xt
#pragma unroll
  for (int i = 0; i < DEEP; i++) ask(i);

  int stage = tile, parity = 0, which = 0, free_parity = 1;
  float d[UNIT / 2];
  // PIECE labels of dW, for `store`; there must be room.
  auto room = [&] { mbarrier_wait(s.taken(wg, which), free_parity); };
  auto put = [&](const float* v) {
    const int row = lane / 16 * 8 + lane % 8, half = lane / 8 % 2;  // of 16 labels, of the warp's inputs: where stmatrix has a lane's row
    const u32 at = s.piece(wg, which) + row * 128 + (((2 * warp + half) ^ (row & 7)) << 4);
#pragma unroll
    for (int i = 0; i < PIECE / 16; i++, v += 8)
      store_matrices_transposed(at + i * 2048, pack<T>(v[0], v[1]), pack<T>(v[2], v[3]), pack<T>(v[4], v[5]), pack<T>(v[6], v[7]));
    __syncwarp();
    if (lane == 0) mbarrier_arrive(s.left(wg, which));
    if ((which ^= 1) == 0) free_parity ^= 1;
  };
  // The operands of a stage. The first half is read while the last products of the stage before run; the slot of the second is asked for again
  // behind the next products, which must not wait for the copies to be queued.
  u32 a[TOGETHER][4][4];
  auto load = [&](u32 (&a)[4][4], int count) {
    copy_wait<DEEP - 1>();
    __syncwarp();
#pragma unroll
    for (int k = 0; k < 4; k++) load_matrices(a[k], slots + count % DEEP * SLOT_BYTES + (own ^ k * 32));
  };
#pragma unroll
  for (int n = 0; n < TOGETHER; n++) {
    load(a[n], n);
    if (n + 1 < TOGETHER) ask(n + DEEP);
  }
  for (int round = 0;;) {
#pragma unroll
    for (int cycle = 0; cycle < CYCLE; cycle++, round++) {
      if (work.step(round / ROUNDS) >= work.steps) return copy_wait<0>();
      const u32 offset = job_of(round) / PARTS * (UNIT * 2);
#pragma unroll
      for (int i = 0; i < SLICES; i += TOGETHER) {
        const int next = cycle * SLICES + i + TOGETHER;  // slice to be read
        mbarrier_wait(s.full(stage), parity);
        const u64 grads = wgmma_matrix(s.stage(stage) + offset, 1024, 1024, 1);
        wgmma_fence();
#pragma unroll
        for (int n = 0; n < TOGETHER; n++) {
#pragma unroll
          for (int k = 0; k < 4; k++) Wgmma<T, UNIT, 1>::rs(d, a[n][k], grads + ((4 * n + k) * (16 * TILE * 2) >> 4), i + n + k > 0);
          wgmma_commit();
        }
        ask(next - 1 + DEEP);
        if (TOGETHER > 1) wgmma_wait<1>(), load(a[0], next), ask(next + DEEP);
        if (i + TOGETHER == SLICES) room();
        wgmma_wait<0>();
        if (lane == 0) mbarrier_arrive(s.empty(stage));
        if ((stage += TILES) >= RING) stage = tile, parity ^= 1;
        load(a[TOGETHER - 1], next + TOGETHER - 1);
      }
#pragma unroll
      for (int i = 0; i < UNIT / PIECE; i++) {
        if (i > 0) room();
        put(d + i * (PIECE / 2));
      }
    }
  }
}

}  // namespace grad_weight
#endif  // sm_90a
