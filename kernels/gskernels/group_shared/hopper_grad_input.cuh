// The parts of grad_input on Hopper, for kernels that give them warps and say where dY comes from.
//
// A block owns 64 batch rows and a sequence of tiles of 64 labels. dX^T of its rows stays in shared memory, fp32
// [dim][64]. A unit is 64 inputs of one group: `consume` multiplies W^T [64 x GROUP] of the unit by dY^T [GROUP x 64] and
// adds the product to the rows that the list names. Warpgroups take units in turns. All multiply when they like; to add
// they wait their turn, separately for the two halves of 32 rows, so two of them add at a time, in different halves, while
// the others wait for memory or multiply. The order of every sum is fixed, and as a list holds distinct inputs, no addition
// needs an atomic.
//
// Inputs are the rows of the product, batch rows its columns. Lane (r, t) of a warp holds four neighbouring sums twice for
// each of two inputs and half: 16-byte pieces, of which four lanes make 64 bytes of one input. Lanes of even r take the
// first 64 bytes of their 128 first, those of odd r the second: eight lanes never meet in a bank, whatever the list.
//
// Macros: ELEMENT, K (multiple of 64), G (16, 32, 64; 128 if K is 64: labels that are summed before they are added), LIST
// (labels of a real group, a multiple of G), BOX (32, 64: rows that come together).
#pragma once
#include "hopper.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
namespace grad_input {

constexpr int TILE = 64, BOXES = 64 / BOX;                // labels of a tile; boxes of a tile
constexpr int STAGE = G < 32 ? 16 : 32;                   // labels of a stage of W
constexpr int GROUP = G < TILE ? G : TILE;                // labels of a tile that are multiplied together
constexpr int STAGES = GROUP / STAGE, GROUPS = TILE / GROUP, PARTS = K / 64;  // of a group; of a tile; of a list
constexpr int TILES = G / GROUP;                          // whose products are summed before they are added
constexpr int UNITS = GROUPS * PARTS;                     // of a tile
constexpr int BOX_BYTES = BOX * 128, STAGE_BYTES = STAGE * 128, LIST_BYTES = 128;
static_assert(TILES == 1 || PARTS == 1);

// Places in shared memory, from `at` (on 1024 bytes) on: sums, `boxes` of dY, `stages` of W and of lists, barriers.
struct Layout {
  u32 sums, grads, weights, lists, full, empty, box_full, box_empty;
  int boxes, stages;
  DEVICE Layout(u32 at, int dim, int boxes_, int stages_) : boxes(boxes_), stages(stages_) {
    sums = at, grads = sums + ((dim * 256 + 1023) & ~1023), weights = grads + boxes * BOX_BYTES;
    lists = weights + stages * STAGE_BYTES, full = lists + stages * LIST_BYTES, empty = full + 8 * stages;
    box_full = empty + 8 * stages, box_empty = box_full + 8 * boxes;
  }
  // By all threads of the block, before a barrier of the block. arrivals: on a full stage of W.
  DEVICE void init(int thread, int arrivals) const {
    if (thread < stages) mbarrier_init(full + 8 * thread, arrivals), mbarrier_init(empty + 8 * thread, 4);
    if (thread < boxes) mbarrier_init(box_full + 8 * thread, 1), mbarrier_init(box_empty + 8 * thread, 4 * UNITS);
    mbarrier_fence();
  }
};

// The tiles of a block: every parts-th TILES of them.
struct Work {
  int part, parts, labels, tiles;
  DEVICE Work(int part_, int parts_, int labels_) : part(part_), parts(parts_), labels(labels_) {
    const int all = cdiv(labels, TILE * TILES);
    tiles = (all > part ? cdiv(all - part, parts) : 0) * TILES;
  }
  DEVICE int label(int tile) const { return (tile / TILES * parts + part) * (TILE * TILES) + tile % TILES * TILE; }
};

// A place in a ring, and the parity of its barriers there.
struct Ring {
  int size, stage, phase;
  DEVICE void advance(int n = 1) {
    stage += n;
    while (stage >= size) stage -= size, phase ^= 1;
  }
};

// Nobody to wait for, nobody to tell; dY is [rows, labels], these rows begin at `row`.
struct Whole {
  const Work& work;
  int row;
  DEVICE void ready(int) const {}
  DEVICE void done(int) const {}
  DEVICE int2 at(int tile) const { return make_int2(work.label(tile), row); }
};

// By one thread: dY, in boxes. Source: at(tile) is where in `map` the 64 x 64 numbers of a tile begin; ready(tile) returns
// once the copy engine may read them; done(tile) is told, in order, when they have been read and used.
template <class Source> DEVICE void load_grads(const Layout& s, const TensorMap* map, const Work& work, const Source& source,
                                               int ahead = 0) {
  Ring y = {s.boxes, 0, 1};
  const int all = work.tiles * BOXES;
  for (int i = 0; i < all + s.boxes; i++, y.advance()) {
    if (ahead && i + ahead * BOXES < all) {
      const int2 at = source.at(i / BOXES + ahead);
      tma_prefetch(map, at.x, at.y + i % BOXES * BOX);
    }
    if (i < all && i % BOXES == 0) source.ready(i / BOXES);
    mbarrier_wait(s.box_empty + 8 * y.stage, y.phase);
    const int used = i - s.boxes;
    if (used >= 0 && used % BOXES == BOXES - 1) source.done(used / BOXES);
    if (i < all) {
      const int2 at = source.at(i / BOXES);
      mbarrier_expect(s.box_full + 8 * y.stage, BOX_BYTES);
      tma_load(s.grads + y.stage * BOX_BYTES, map, s.box_full + 8 * y.stage, at.x, at.y + i % BOXES * BOX);
    }
  }
}

// Stage i of W and of the lists, in the order in which units take them.
struct Stage {
  int label, k;
  i64 list;  // of the number of the first index
  DEVICE Stage(const Work& work, int i) {
    const int e = i % STAGES, unit = i / STAGES, part = unit % PARTS, g = unit / PARTS % GROUPS, tile = unit / UNITS;
    label = work.label(tile) + g * GROUP + e * STAGE, k = part * 64;
    list = min(label, work.labels - 1) / LIST * static_cast<i64>(K) + k;
  }
};

// By one thread: W and the lists by the copy engine; `ahead` stages earlier every `turns`-th stage into the L2 cache.
DEVICE void load_weights(const Layout& s, const TensorMap* map, const u16* __restrict__ lists, const Work& work, int ahead = 0,
                         int turn = 0, int turns = 1) {
  Ring w = {s.stages, 0, 1};
  const int all = work.tiles * UNITS * STAGES;
  for (int i = 0; i < all; i++, w.advance()) {
    if (ahead && i % turns == turn && i + ahead < all) {
      const Stage later(work, i + ahead);
      tma_prefetch(map, later.k, later.label);
    }
    const Stage stage(work, i);
    mbarrier_wait(s.empty + 8 * w.stage, w.phase);
    mbarrier_expect(s.full + 8 * w.stage, STAGE_BYTES + LIST_BYTES);
    tma_load(s.weights + w.stage * STAGE_BYTES, map, s.full + 8 * w.stage, stage.k, stage.label);
    bulk_load(s.lists + w.stage * LIST_BYTES, lists + stage.list, LIST_BYTES, s.full + 8 * w.stage);
  }
}

// The same by 64 threads through registers, EARLY stages early: what is on its way needs no shared memory.
template <int EARLY> DEVICE void carry_weights(const Layout& s, const T* __restrict__ weights, const u16* __restrict__ lists,
                                               const Work& work, int thread) {
  Ring w = {s.stages, 0, 1};
  const int all = work.tiles * UNITS * STAGES, piece = thread % 8, row = thread / 8;
  uint4 held[EARLY][STAGE / 8];
  u16 index[EARLY];
  auto fetch = [&](int i, int d) {
    const Stage stage(work, i);
    index[d] = lists[stage.list + thread];
#pragma unroll
    for (int j = 0; j < STAGE / 8; j++) {
      const int label = stage.label + j * 8 + row;
      held[d][j] = make_uint4(0, 0, 0, 0);
      if (label < work.labels) held[d][j] = load_once(weights + static_cast<i64>(label) * K + stage.k + piece * 8);
    }
  };
#pragma unroll
  for (int d = 0; d < EARLY; d++)
    if (d < all) fetch(d, d);
  for (int i = 0; i < all; i += EARLY)
#pragma unroll
    for (int d = 0; d < EARLY; d++)
      if (i + d < all) {
        mbarrier_wait(s.empty + 8 * w.stage, w.phase);
        const u32 to = s.weights + w.stage * STAGE_BYTES + row * 128 + (piece ^ (row & 7)) * 16;
#pragma unroll
        for (int j = 0; j < STAGE / 8; j++) asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to + j * 1024), "r"(held[d][j].x), "r"(held[d][j].y), "r"(held[d][j].z), "r"(held[d][j].w) : "memory");
        asm volatile("st.shared.u16 [%0], %1;" ::"r"(s.lists + w.stage * LIST_BYTES + thread * 2), "h"(index[d]) : "memory");
        __syncwarp();
        if (thread % 32 == 0) mbarrier_arrive(s.full + 8 * w.stage);
        w.advance();
        if (i + d + EARLY < all) fetch(i + d + EARLY, d);
      }
}

DEVICE u32 load_index(u32 at) {
  u32 v;
  asm volatile("{\n.reg .u16 h;\nld.shared.u16 h, [%1];\ncvt.u32.u16 %0, h;\n}" : "=r"(v) : "r"(at) : "memory");
  return v;
}
DEVICE float4 load_sums(u32 at) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(at) : "memory");
  return v;
}
DEVICE void store_sums(u32 at, float4 v) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(at), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}

// By ADDING whole warpgroups, thread 0 the first of them: zeroes the sums and adds all units. Barriers of the block
// FIRST to FIRST + 2 ADDING are theirs.
template <int ADDING, int FIRST = 1> DEVICE void consume(const Layout& s, const Work& work, int dim, int thread) {
  for (int i = thread; i < dim * 16; i += ADDING * 128) store_sums(s.sums + i * 16, make_float4(0, 0, 0, 0));
  barrier(FIRST + 2 * ADDING, ADDING * 128);
  const int wg = thread / 128, warp = thread / 32 % 4, lane = thread % 32, r = lane / 4, t = lane % 4;
  const bool odd = r & 1;
  const u32 own = s.sums + odd * 64 + t * 16, list = s.lists + (16 * warp + r) * 2;
  // Row lane % 8 of matrix lane / 8: labels 0-7 or 8-15 of 16, inputs 0-7 or 8-15 of the warp's 16.
  const u32 matrix = s.weights + (lane / 16 * 8 + lane % 8) * 128 + ((2 * warp + lane / 8 % 2) ^ (lane % 8)) * 16;
  const int before = FIRST + (wg + ADDING - 1) % ADDING * 2, mine = FIRST + wg * 2;
  Ring w = {s.stages, 0, 0}, y = {s.boxes, 0, 0};
  w.advance(wg * TILES * STAGES), y.advance(wg / UNITS * TILES * BOXES);
  int inner = wg % UNITS;
  const int units = work.tiles / TILES * UNITS;
  for (int unit = wg; unit < units; unit += ADDING) {
    float products[BOXES][BOX / 2];
    u32 at[2];
    Ring z = y;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
      u32 a[GROUP / 16][4];
#pragma unroll
      for (int e = 0; e < STAGES; e++) {
        mbarrier_wait(s.full + 8 * w.stage, w.phase);
        if (tile == 0 && e == 0)
#pragma unroll
          for (int h = 0; h < 2; h++) at[h] = own + load_index(list + w.stage * LIST_BYTES + h * 16) * 256;
#pragma unroll
        for (int j = 0; j < STAGE / 16; j++) load_matrices_transposed(a[e * (STAGE / 16) + j], matrix + w.stage * STAGE_BYTES + j * 2048);
        __syncwarp();
        if (lane == 0) mbarrier_arrive(s.empty + 8 * w.stage);
        w.advance();
      }
      u32 box[BOXES], box_empty[BOXES];
#pragma unroll
      for (int b = 0; b < BOXES; b++, z.advance()) {
        mbarrier_wait(s.box_full + 8 * z.stage, z.phase);
        box[b] = s.grads + z.stage * BOX_BYTES + inner / PARTS * (GROUP * 2), box_empty[b] = s.box_empty + 8 * z.stage;
      }
      wgmma_fence();
#pragma unroll
      for (int j = 0; j < GROUP / 16; j++)
#pragma unroll
        for (int b = 0; b < BOXES; b++)
          Wgmma<T, BOX, 0>::rs(products[b], a[j], wgmma_matrix(box[b] + j * 32, 16, 1024, 1), j + tile > 0);
      wgmma_commit();
      wgmma_wait<0>();
      if (lane == 0)
#pragma unroll
        for (int b = 0; b < BOXES; b++) mbarrier_arrive(box_empty[b]);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float4 v[2][2], sum[2][2];
#pragma unroll
      for (int c = 0; c < 2; c++)  // the piece at `at ^ 64 c` belongs to 16 rows c of 32 for even lanes, c ^ 1 for odd ones
#pragma unroll
        for (int h = 0; h < 2; h++) {
          constexpr int HALVES = BOX / 32;
          const float* of = products[half / HALVES] + half % HALVES * 16 + h * 2;
          const float *even = of + c * 8, *other = of + (c ^ 1) * 8;
          v[c][h] = make_float4(odd ? other[0] : even[0], odd ? other[1] : even[1], odd ? other[4] : even[4], odd ? other[5] : even[5]);
        }
      if (unit > 0) barrier(before + half, 256);  // the unit before has added to this half
#pragma unroll
      for (int c = 0; c < 2; c++)
#pragma unroll
        for (int h = 0; h < 2; h++) sum[c][h] = load_sums((at[h] ^ c * 64) + half * 128);
#pragma unroll
      for (int c = 0; c < 2; c++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          float4& to = sum[c][h];
          to.x += v[c][h].x, to.y += v[c][h].y, to.z += v[c][h].z, to.w += v[c][h].w;
          store_sums((at[h] ^ c * 64) + half * 128, to);
        }
      if (unit + 1 < units) barrier_arrive(mine + half, 256);
    }
    w.advance((ADDING - 1) * TILES * STAGES);
    inner += ADDING;
    y.advance(inner / UNITS * TILES * BOXES), inner %= UNITS;
  }
  barrier(FIRST + 2 * ADDING, ADDING * 128);
}

// By the same threads: the sums to [dim][64].
template <int ADDING> DEVICE void write(const Layout& s, float* __restrict__ to, int dim, int thread) {
#pragma unroll 4
  for (int i = thread; i < dim * 16; i += ADDING * 128) __stcg(reinterpret_cast<float4*>(to) + i, load_sums(s.sums + i * 16));
}

}  // namespace grad_input
#endif  // sm_90a
