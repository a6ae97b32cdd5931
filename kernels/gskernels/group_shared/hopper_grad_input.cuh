// The parts of grad_input on Hopper, for kernels that give them warps and say where dY comes from.
//
// A block owns 64 batch rows and a sequence of tiles of 64 labels. dX^T of its rows stays in shared memory, fp32
// [dim][64]. A unit is 64 inputs of one group: `consume` multiplies W^T [64 x GROUP] by dY^T [GROUP x 64] and adds the
// product to the rows that the list names. Warpgroups take units in turns, TOGETHER of them at once. They multiply as soon as
// operands are there; to add they wait for the units before, separately for the two halves of 32 rows. So two warpgroups add
// at a time, in different halves, while others multiply or wait for memory with their products in registers. The order of
// every sum is fixed, and as a list holds distinct inputs, no addition needs an atomic.
//
// Inputs are the rows of the product, batch rows its columns. Lane (r, t) of a warp holds four neighbouring sums twice for
// each of two inputs and half: 16-byte pieces, of which four lanes make 64 bytes of one input. Lanes of even r take the
// first 64 bytes of their 128 first, those of odd r the second: eight lanes never meet in a bank, whatever the list.
//
// Macros: ELEMENT, K (multiple of 64), G (16, 32, 64; 128 if K is 64: labels that are summed before they are added), LIST
// (labels of a real group, a multiple of G), RING_Y, RING_W (places for tiles of dY and for stages of W, powers of two).
#pragma once
#include "hopper.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
namespace grad_input {

constexpr int TILE = 64, ROWS = 64;                       // labels and batch rows of a tile of dY
constexpr int STAGE = G < 32 ? 16 : 32;                   // labels of a stage of W
constexpr int GROUP = G < TILE ? G : TILE;                // labels of a tile that are multiplied together
constexpr int STAGES = GROUP / STAGE, GROUPS = TILE / GROUP, PARTS = K / 64;  // of a group; of a tile; of a list
constexpr int TILES = G / GROUP;                          // whose products are summed before they are added
constexpr int UNITS = GROUPS * PARTS;                     // of a tile
constexpr int TOGETHER = GROUP <= 32 && UNITS % 2 == 0 ? 2 : 1;  // units that a warpgroup takes at once
constexpr int TILE_BYTES = ROWS * TILE * 2, UNIT_BYTES = STAGE * 128, LIST_BYTES = 128;
constexpr int LOADED = G < 32 ? TOGETHER : 1, LOADS = TOGETHER / LOADED;  // units of a stage of W; stages for those taken at once
constexpr int STAGE_BYTES = LOADED * UNIT_BYTES, LISTS_BYTES = LOADED * LIST_BYTES;
constexpr int MOST = 16;  // places of a ring; no fewer than all warpgroups together wait for
static_assert(TILES == 1 || PARTS == 1);

// Places in shared memory, from `at` (on 1024 bytes) on: barriers, sums, dY, W, lists.
struct Layout {
  u32 at, grads;
  DEVICE Layout(u32 at_, int dim) : at(at_) { grads = sums() + ((dim * 256 + 1023) & ~1023); }
  DEVICE u32 sums() const { return at + 1024; }
  DEVICE u32 grads_at(int i) const { return grads + i % RING_Y * TILE_BYTES; }
  DEVICE u32 weights_at(int i) const { return grads + RING_Y * TILE_BYTES + i % RING_W * STAGE_BYTES; }
  DEVICE u32 lists_at(int i) const { return grads + RING_Y * TILE_BYTES + RING_W * STAGE_BYTES + i % RING_W * LISTS_BYTES; }
  // Barriers of the i-th stage and tile, and their parity. A warpgroup skips what others take, so it could take one passage
  // through a short ring for the next: there are MOST of them, however many places are used.
  DEVICE u32 full(int i) const { return at + i % MOST * 8; }
  DEVICE u32 empty(int i) const { return full(i) + MOST * 8; }
  DEVICE u32 tile_full(int i) const { return full(i) + MOST * 16; }
  DEVICE u32 tile_empty(int i) const { return full(i) + MOST * 24; }
  DEVICE static int passage(int i) { return i / MOST & 1; }
  // By all threads of the block, before a barrier of the block.
  DEVICE void init(int thread) const {
    if (thread < MOST) {
      mbarrier_init(full(thread), 1), mbarrier_init(empty(thread), 4);
      mbarrier_init(tile_full(thread), 1), mbarrier_init(tile_empty(thread), 4 * UNITS / TOGETHER);
    }
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

// dY is [rows, labels], the block's rows begin at `row`; nobody to wait for, nobody to tell.
struct Whole {
  const Work& work;
  int row;
  DEVICE void ready(int) const {}
  DEVICE void done(int) const {}
  DEVICE int2 at(int tile) const { return make_int2(work.label(tile), row); }
};

// By one warp: dY. Source: at(tile) is where in `map` (boxes of 64 x 64) the block's tile of that number begins; ready(tile)
// returns once the copy engine may read it; done(tile) is told, in order, when it has been read and multiplied. All lanes
// call all three. AHEAD: tiles that are asked into the L2 cache before there is room for them here.
template <int AHEAD, class Source> DEVICE void load_grads(const Layout& s, const TensorMap* map, const Work& work, const Source& source) {
  const bool one = elect();
#pragma unroll 1
  for (int i = 0; i < work.tiles + RING_Y; i++) {
    if (AHEAD && i + AHEAD < work.tiles && one) {
      const int2 at = source.at(i + AHEAD);
      tma_prefetch(map, at.x, at.y);
    }
    if (i < work.tiles) source.ready(i);
    if (i >= RING_Y) {
      mbarrier_wait(s.tile_empty(i - RING_Y), s.passage(i - RING_Y));
      source.done(i - RING_Y);
    }
    if (i < work.tiles && one) {
      const int2 at = source.at(i);
      mbarrier_expect(s.tile_full(i), TILE_BYTES);
      tma_load(s.grads_at(i), map, s.tile_full(i), at.x, at.y);
    }
  }
}

// By LOADING warps (1 or 2) in turns, of which this is number `turn`: W (boxes of STAGE labels x 64 inputs) and the lists.
template <int LOADING> DEVICE void load_weights(const Layout& s, const TensorMap* map, const u16* __restrict__ lists, const Work& work,
                                                int turn) {
  const bool one = elect();
  const int all = work.tiles * UNITS / LOADED * STAGES;
#pragma unroll 1
  for (int i = turn; i < all; i += LOADING) {
    if (i >= RING_W) mbarrier_wait(s.empty(i - RING_W), s.passage(i - RING_W));
    if (one) {
      mbarrier_expect(s.full(i), STAGE_BYTES + LISTS_BYTES);
#pragma unroll
      for (int u = 0; u < LOADED; u++) {
        const int e = i % STAGES, unit = i / STAGES * LOADED + u, k = unit % PARTS * 64;
        const int label = work.label(unit / UNITS) + unit / PARTS % GROUPS * GROUP + e * STAGE;
        const u16* list = lists + min(label, work.labels - 1) / LIST * static_cast<i64>(K) + k;
        tma_load(s.weights_at(i) + u * UNIT_BYTES, map, s.full(i), k, label);
        bulk_load(s.lists_at(i) + u * LIST_BYTES, list, LIST_BYTES, s.full(i));
      }
    }
  }
}

// By ADDING whole warpgroups (2 to 4), `thread` 0 the first of theirs: zeroes the sums, adds all units, waits for each
// other. Barriers FIRST to FIRST + 3 ADDING of the block are theirs.
template <int ADDING, int FIRST = 1> DEVICE void consume(const Layout& s, const Work& work, int dim, int thread) {
  for (int i = thread; i < dim * 16; i += ADDING * 128) store_sums(s.sums() + i * 16, make_float4(0, 0, 0, 0));
  barrier(FIRST, ADDING * 128);
  const int number = __shfl_sync(~0u, thread / 32, 0), wg = number / 4, warp = number % 4;  // known to be the same for all lanes
  const int lane = thread % 32, r = lane / 4, t = lane % 4;
  const bool odd = r & 1;
  const u32 own = s.sums() + odd * 64 + t * 16;
  // Row lane % 8 of matrix lane / 8: labels 0 to 7 or 8 to 15 of 16, inputs 0 to 7 or 8 to 15 of the warp's 16.
  const u32 matrix = (lane / 16 * 8 + lane % 8) * 128 + ((2 * warp + lane / 8 % 2) ^ (lane % 8)) * 16;
  const int units = work.tiles / TILES * UNITS;
  // Barriers of both halves, and one of this warpgroup alone.
  const int mine = FIRST + 1 + wg * 3, before = FIRST + 1 + (wg + ADDING - 1) % ADDING * 3;
  const u32 nothing = dim % 64;  // 0, but who knows
  for (int unit = wg * TOGETHER; unit < units; unit += ADDING * TOGETHER) {
    const int turn = unit / TOGETHER;
    float products[TOGETHER][ROWS / 2];
    u32 inputs[TOGETHER];  // two of 16 bits
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
      u32 a[TOGETHER][GROUP / 16][4];
      const int first = (turn * TILES + tile) * STAGES * LOADS, of = unit / UNITS * TILES + tile;
#pragma unroll
      for (int e = 0; e < STAGES * LOADS; e++) {
        const int stage = first + e;
        mbarrier_wait(s.full(stage), s.passage(stage));
        u32 read = 0;  // of what was read of the stage
#pragma unroll
        for (int v = 0; v < LOADED; v++) {
          const int u = LOADS == 1 ? v : e, part = LOADS == 1 ? e : 0;
          if (tile == 0 && part == 0) {
            const u32 list = s.lists_at(stage) + v * LIST_BYTES + (16 * warp + r) * 2;
            inputs[u] = __byte_perm(load_index(list), load_index(list + 16), 0x5410);
            read |= inputs[u];
          }
#pragma unroll
          for (int j = 0; j < STAGE / 16; j++) {
            u32 (&to)[4] = a[u][part * (STAGE / 16) + j];
            load_matrices_transposed(to, s.weights_at(stage) + v * UNIT_BYTES + j * 2048 + matrix);
            read |= to[0];
          }
        }
        __syncwarp();
        if (lane == 0) mbarrier_arrive(s.empty(stage) + (read & nothing));
      }
      mbarrier_wait(s.tile_full(of), s.passage(of));
      wgmma_fence();
#pragma unroll
      for (int u = 0; u < TOGETHER; u++)
#pragma unroll
        for (int j = 0; j < GROUP / 16; j++) {
          const u32 from = s.grads_at(of) + (unit % UNITS + u) / PARTS * (GROUP * 2) + j * 32;
          Wgmma<T, ROWS, 0>::rs(products[u], a[u][j], wgmma_matrix(from, 16, 1024, 1), j + tile > 0);
        }
      wgmma_commit();
      wgmma_wait<0>();
      if (lane == 0) mbarrier_arrive(s.tile_empty(of));
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
      for (int u = 0; u < TOGETHER; u++) {
        float4 v[2][2];  // the piece at `at ^ 64 c` belongs to 16 rows c of 32 for even lanes, c ^ 1 for odd ones
#pragma unroll
        for (int c = 0; c < 2; c++)
#pragma unroll
          for (int h = 0; h < 2; h++) {
            const float *even = products[u] + half * 16 + c * 8 + h * 2, *other = products[u] + half * 16 + (c ^ 1) * 8 + h * 2;
            v[c][h] = make_float4(odd ? other[0] : even[0], odd ? other[1] : even[1], odd ? other[4] : even[4], odd ? other[5] : even[5]);
          }
        if (u == 0 && unit > 0) barrier(before + half, 256);
        if (u > 0 && PARTS % TOGETHER) barrier(mine + 2, 128);  // else both are of one group, whose inputs are distinct
        const u32 at[2] = {own + (inputs[u] & 0xffff) * 256, own + (inputs[u] >> 16) * 256};
        float4 sum[2][2];
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
      }
      if (unit + TOGETHER < units) barrier_arrive(mine + half, 256);
    }
  }
  barrier(FIRST, ADDING * 128);
}

// By the same threads: the sums to [dim][64].
template <int ADDING> DEVICE void write(const Layout& s, float* __restrict__ to, int dim, int thread) {
#pragma unroll 4
  for (int i = thread; i < dim * 16; i += ADDING * 128) __stcg(reinterpret_cast<float4*>(to) + i, load_sums(s.sums() + i * 16));
}

// By the same threads: adds the sums to those at [dim][64] in memory, by the copy engine, in pieces of 32 inputs from the `first`-th on, and ends
// once they are there. In which order several blocks do is up to the memory.
template <int ADDING> DEVICE void add_to(const Layout& s, float* __restrict__ to, int dim, int first, int thread) {
  const int pieces = dim / 32;
  fence_async();
  barrier(1, ADDING * 128);
  if (!elect()) return;
  for (int i = thread / 32; i < pieces; i += ADDING * 4) {
    const int piece = (first + i) % pieces;
    bulk_add(to + piece * 2048, s.sums() + piece * 8192, 8192);
  }
  bulk_commit();
  bulk_wait<0>();
}

}  // namespace grad_input
#endif  // sm_90a
