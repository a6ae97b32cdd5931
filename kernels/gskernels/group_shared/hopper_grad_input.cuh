// The parts of grad_input on Hopper, for kernels that give them warps and say where dY comes from.
//
// A block owns 64 batch rows and a sequence of tiles of 64 labels. dX^T of its rows stays in shared memory, fp32
// [dim][64]. A unit is 64 inputs of one group: `consume` multiplies W^T [64 x GROUP] by dY^T [GROUP x 64] and adds the
// product to the rows that the list names. Warpgroups take units in turns. They multiply as soon as operands are there; to
// add they wait for the unit before, separately for the two halves of 32 rows. So two of them add at a time, in different
// halves, while others multiply or wait for memory with their products in registers. The order of every sum is fixed, and
// as a list holds distinct inputs, no addition needs an atomic.
//
// Inputs are the rows of the product, batch rows its columns. Lane (r, t) of a warp holds four neighbouring sums twice for
// each of two inputs and half: 16-byte pieces, of which four lanes make 64 bytes of one input. Lanes of even r take the
// first 64 bytes of their 128 first, those of odd r the second: eight lanes never meet in a bank, whatever the list.
//
// Macros: ELEMENT, K (multiple of 64), G (16, 32, 64; 128 if K is 64: labels that are summed before they are added), LIST
// (labels of a real group, a multiple of G).
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
constexpr int TILE_BYTES = ROWS * TILE * 2, STAGE_BYTES = STAGE * 128, LIST_BYTES = 128;
constexpr int FULL = 16;  // barriers that say what has arrived: no fewer than all warpgroups together wait for
static_assert(TILES == 1 || PARTS == 1);

// Places in shared memory, from `at` (on 1024 bytes) on: sums, `tiles` of dY, `stages` of W and of lists, barriers.
struct Layout {
  u32 sums, grads, weights, lists, full, tile_full, empty, tile_empty;
  int tiles, stages;
  DEVICE Layout(u32 at, int dim, int tiles_, int stages_) : tiles(tiles_), stages(stages_) {
    sums = at, grads = sums + ((dim * 256 + 1023) & ~1023), weights = grads + tiles * TILE_BYTES;
    lists = weights + stages * STAGE_BYTES, full = lists + stages * LIST_BYTES, tile_full = full + 8 * FULL;
    empty = tile_full + 8 * FULL, tile_empty = empty + 8 * stages;
  }
  // By all threads of the block, before a barrier of the block.
  DEVICE void init(int thread) const {
    if (thread < FULL) mbarrier_init(full + 8 * thread, 1), mbarrier_init(tile_full + 8 * thread, 1);
    if (thread < stages) mbarrier_init(empty + 8 * thread, 4);
    if (thread < tiles) mbarrier_init(tile_empty + 8 * thread, 4 * UNITS);
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

// A place in a ring of `size`, which passage it is, and how many came before. A warpgroup skips what others take, so it could
// take the parity of a passage for that of the one before; there are as many barriers for what arrives as it can skip.
struct Ring {
  int size, place = 0, passage = 0, count = 0;
  DEVICE Ring(int size_) : size(size_) {}
  DEVICE void advance(int n = 1) {
    count += n, place += n;
    while (place >= size) place -= size, passage++;
  }
  DEVICE void wait_empty(u32 barriers) const { mbarrier_wait(barriers + 8 * place, ~passage & 1); }
  DEVICE u32 full(u32 barriers) const { return barriers + count % FULL * 8; }
  DEVICE void wait_full(u32 barriers) const { mbarrier_wait(full(barriers), count / FULL & 1); }
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
// call all three.
template <class Source> DEVICE void load_grads(const Layout& s, const TensorMap* map, const Work& work, const Source& source) {
  Ring y(s.tiles);
  const bool one = elect();
  for (int i = 0; i < work.tiles + s.tiles; i++, y.advance()) {
    if (i < work.tiles) source.ready(i);
    y.wait_empty(s.tile_empty);
    if (i >= s.tiles) source.done(i - s.tiles);
    if (i < work.tiles && one) {
      const int2 at = source.at(i);
      mbarrier_expect(y.full(s.tile_full), TILE_BYTES);
      tma_load(s.grads + y.place * TILE_BYTES, map, y.full(s.tile_full), at.x, at.y);
    }
  }
}

// By LOADING warps, of which this is number `turn`: W (boxes of STAGE labels x 64 inputs) and the lists. To ask for a stage takes
// one thread about as long as a unit takes to be added, so several take turns. LOADING divides the number of stages, so
// that each place in the ring is the business of one.
template <int LOADING> DEVICE void load_weights(const Layout& s, const TensorMap* map, const u16* __restrict__ lists, const Work& work,
                                                int turn) {
  Ring w(s.stages);
  w.advance(turn);
  const bool one = elect();
  const int all = work.tiles * UNITS * STAGES;
  for (int i = turn; i < all; i += LOADING, w.advance(LOADING)) {
    const int e = i % STAGES, unit = i / STAGES, k = unit % PARTS * 64;
    const int label = work.label(unit / UNITS) + unit / PARTS % GROUPS * GROUP + e * STAGE;
    w.wait_empty(s.empty);
    if (one) {
      mbarrier_expect(w.full(s.full), STAGE_BYTES + LIST_BYTES);
      tma_load(s.weights + w.place * STAGE_BYTES, map, w.full(s.full), k, label);
      bulk_load(s.lists + w.place * LIST_BYTES, lists + min(label, work.labels - 1) / LIST * static_cast<i64>(K) + k, LIST_BYTES, w.full(s.full));
    }
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

// By ADDING whole warpgroups (2 to 4), `thread` 0 the first of theirs: zeroes the sums, adds all units, waits for each
// other. Barriers FIRST to FIRST + 2 ADDING of the block are theirs.
template <int ADDING, int FIRST = 1> DEVICE void consume(const Layout& s, const Work& work, int dim, int thread) {
  for (int i = thread; i < dim * 16; i += ADDING * 128) store_sums(s.sums + i * 16, make_float4(0, 0, 0, 0));
  barrier(FIRST + 2 * ADDING, ADDING * 128);
  const int wg = thread / 128, warp = thread / 32 % 4, lane = thread % 32, r = lane / 4, t = lane % 4;
  const bool odd = r & 1;
  const u32 own = s.sums + odd * 64 + t * 16, list = s.lists + (16 * warp + r) * 2;
  // Row lane % 8 of matrix lane / 8: labels 0 to 7 or 8 to 15 of 16, inputs 0 to 7 or 8 to 15 of the warp's 16.
  const u32 matrix = s.weights + (lane / 16 * 8 + lane % 8) * 128 + ((2 * warp + lane / 8 % 2) ^ (lane % 8)) * 16;
  const int before = FIRST + (wg + ADDING - 1) % ADDING * 2, mine = FIRST + wg * 2;
  const int units = work.tiles / TILES * UNITS;
  Ring w(s.stages), y(s.tiles);
  w.advance(wg * TILES * STAGES), y.advance(wg / UNITS * TILES);
  int inner = wg % UNITS;  // of the tile
  for (int unit = wg; unit < units; unit += ADDING) {
    float products[ROWS / 2];
    u32 at[2];
    Ring z = y;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++, z.advance()) {
      u32 a[GROUP / 16][4];
#pragma unroll
      for (int e = 0; e < STAGES; e++, w.advance()) {
        w.wait_full(s.full);
        if (tile == 0 && e == 0)
#pragma unroll
          for (int h = 0; h < 2; h++) at[h] = own + load_index(list + w.place * LIST_BYTES + h * 16) * 256;
#pragma unroll
        for (int j = 0; j < STAGE / 16; j++) load_matrices_transposed(a[e * (STAGE / 16) + j], matrix + w.place * STAGE_BYTES + j * 2048);
        __syncwarp();
        if (lane == 0) mbarrier_arrive(s.empty + 8 * w.place);
      }
      z.wait_full(s.tile_full);
      wgmma_fence();
#pragma unroll
      for (int j = 0; j < GROUP / 16; j++) {
        const u32 from = s.grads + z.place * TILE_BYTES + inner / PARTS * (GROUP * 2) + j * 32;
        Wgmma<T, ROWS, 0>::rs(products, a[j], wgmma_matrix(from, 16, 1024, 1), j + tile > 0);
      }
      wgmma_commit();
      wgmma_wait<0>();
      if (lane == 0) mbarrier_arrive(s.tile_empty + 8 * z.place);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float4 v[2][2];  // the piece at `at ^ 64 c` belongs to 16 rows c of 32 for even lanes, c ^ 1 for odd ones
#pragma unroll
      for (int c = 0; c < 2; c++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const float *even = products + half * 16 + c * 8 + h * 2, *other = products + half * 16 + (c ^ 1) * 8 + h * 2;
          v[c][h] = make_float4(odd ? other[0] : even[0], odd ? other[1] : even[1], odd ? other[4] : even[4], odd ? other[5] : even[5]);
        }
      if (unit > 0) barrier(before + half, 256);
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
      if (unit + 1 < units) barrier_arrive(mine + half, 256);
    }
    w.advance((ADDING - 1) * TILES * STAGES);
    inner += ADDING;
    y.advance(inner / UNITS * TILES), inner %= UNITS;
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
