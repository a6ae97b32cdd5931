// The parts of grad_input on Hopper, for kernels that give them warps and say how soon dY may be read.
//
// A block owns 64 batch rows and a sequence of tiles of 64 labels. dX^T of its rows stays in shared memory, fp32
// [dim][64]. A unit is 64 inputs of one group: `consume` multiplies W^T [64 x GROUP] by dY^T [GROUP x 64] and adds the
// product to the rows that the list names. Warpgroups take units in turns, TOGETHER of them at once. They multiply as soon as
// operands are there; to add they wait for the units before, separately for the two halves of 32 rows. So two warpgroups add
// at a time, in different halves, while others multiply or wait for memory with their products in registers. The order of
// every sum is fixed, and as a list holds distinct inputs, no addition needs an atomic.
//
// dY comes to shared memory by the copy engine. So does W of small groups. W of large ones comes straight to registers, a turn
// ahead, by way of L1, which has the lines that the four warps share: all of shared memory beside the sums is left for dY.
//
// Inputs are the rows of the product, batch rows its columns. Lane (r, t) of a warp holds four neighbouring sums twice for
// each of two inputs and half: 16-byte pieces, of which four lanes make 64 bytes of one input. Lanes of even r take the
// first 64 bytes of their 128 first, those of odd r the second: eight lanes never meet in a bank, whatever the list.
//
// Macros: ELEMENT, K (multiple of 64), G (16, 32, 64; 128 if K is 64: labels that are summed before they are added), LIST
// (labels of a real group, a multiple of G), RING_Y, RING_W (places for tiles of dY and, where G is below 64, for W of those units
// that a warpgroup takes at once, powers of two).
#pragma once
#include "hopper.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
namespace grad_input {

constexpr int TILE = 64, ROWS = 64;                       // labels and batch rows of a tile of dY
constexpr int GROUP = G < TILE ? G : TILE;                // labels of a tile that are multiplied together
constexpr int GROUPS = TILE / GROUP, PARTS = K / 64;      // of a tile; of a list
constexpr int TILES = G / GROUP;                          // whose products are summed before they are added
constexpr int UNITS = GROUPS * PARTS;                     // of a tile
constexpr bool DIRECT = GROUP == TILE;                    // W comes straight to registers
constexpr int TOGETHER = DIRECT ? 1 : 2;                  // units that a warpgroup takes at once
constexpr bool ALONE = !DIRECT && UNITS == TOGETHER;      // a tile of dY and W of all its units are waited for at once
constexpr int TILE_BYTES = ROWS * TILE * 2, UNIT_BYTES = GROUP * 128, LIST_BYTES = 128;
constexpr int STAGE_BYTES = TOGETHER * UNIT_BYTES, LISTS_BYTES = TOGETHER * LIST_BYTES;
constexpr int WARPGROUPS = 4, ADDERS = WARPGROUPS * 128;  // that multiply and add
constexpr int MOST = 16;                                  // places of a ring; no fewer than all warpgroups together wait for
static_assert(UNITS % TOGETHER == 0 && (TILES == 1 || PARTS == 1));

// Places in shared memory, from `at` (on 1024 bytes) on: barriers, sums, dY, W, lists.
struct Layout {
  u32 at, grads;
  DEVICE Layout(u32 at_, int dim) : at(at_) { grads = sums() + ((dim * 256 + 1023) & ~1023); }
  DEVICE u32 sums() const { return at + 1024; }
  DEVICE u32 grads_at(int i) const { return grads + i % RING_Y * TILE_BYTES; }
  DEVICE u32 weights_at(int i) const { return grads + RING_Y * TILE_BYTES + i % RING_W * STAGE_BYTES; }
  DEVICE u32 lists_at(int i) const { return grads + RING_Y * TILE_BYTES + RING_W * STAGE_BYTES + i % RING_W * LISTS_BYTES; }
  // Barriers of the i-th stage of W and tile, and their parity. A warpgroup skips what others take, so it could take one passage
  // through a short ring for the next: there are MOST of them, however many places are used.
  DEVICE u32 full(int i) const { return at + i % MOST * 8; }
  DEVICE u32 empty(int i) const { return full(i) + MOST * 8; }
  DEVICE u32 tile_full(int i) const { return full(i) + (ALONE ? 0 : MOST * 16); }
  DEVICE u32 tile_empty(int i) const { return full(i) + MOST * 24; }
  DEVICE static int passage(int i) { return i / MOST & 1; }
  // By the block's first MOST warps, before a barrier of the block.
  DEVICE void init(int warp) const {
    mbarrier_init_each<MOST>(full(0), MOST, ALONE ? 2 : 1, warp), mbarrier_init_each<MOST>(empty(0), MOST, 4, warp);
    if (!ALONE) mbarrier_init_each<MOST>(tile_full(0), MOST, 1, warp);
    mbarrier_init_each<MOST>(tile_empty(0), MOST, 4 * UNITS / TOGETHER, warp);
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

// By one warp: dY (boxes of 64 x 64), of which the block's rows begin at `row`. ready(tile) returns once the copy engine may read that tile; all
// lanes call it. AHEAD: tiles that are asked into L2 before there is room for them here.
template <int AHEAD, class Ready> DEVICE void load_grads(const Layout& s, const TensorMap* map, const Work& work, int row, const Ready& ready) {
  const bool one = elect();
#pragma unroll 1
  for (int i = 0; i < work.tiles; i++) {
    if (AHEAD && i + AHEAD < work.tiles && one) tma_prefetch(map, work.label(i + AHEAD), row);
    ready(i);
    const u32 to = here(s.grads_at(i)), full = here(s.tile_full(i)), label = here(work.label(i));
    if (i >= RING_Y) mbarrier_wait(s.tile_empty(i - RING_Y), s.passage(i - RING_Y));
    if (one) {
      mbarrier_expect(full, TILE_BYTES);
      tma_load(to, map, full, label, row);
    }
  }
}

// By one warp, unless DIRECT: W (boxes of GROUP labels x 64 inputs) and the lists, of the units that a warpgroup takes at once.
DEVICE void load_weights(const Layout& s, const TensorMap* map, const u16* __restrict__ lists, const Work& work) {
  const bool one = elect();
  const int turns = work.tiles * UNITS / TOGETHER;
#pragma unroll 1
  for (int i = 0; i < turns; i++) {
    const u32 to = here(s.weights_at(i)), names = here(s.lists_at(i)), full = here(s.full(i));
    u32 k[TOGETHER], label[TOGETHER], list[TOGETHER];
#pragma unroll
    for (int u = 0; u < TOGETHER; u++) {
      const int unit = i * TOGETHER + u, first = work.label(unit / UNITS) + unit % UNITS / PARTS * GROUP;
      k[u] = here(unit % PARTS * 64), label[u] = here(first), list[u] = here(min(first, work.labels - 1) / LIST);
    }
    if (i >= RING_W) mbarrier_wait(s.empty(i - RING_W), s.passage(i - RING_W));
    if (one) {
      mbarrier_expect(full, STAGE_BYTES + LISTS_BYTES);
#pragma unroll
      for (int u = 0; u < TOGETHER; u++) {
        tma_load(to + u * UNIT_BYTES, map, full, k[u], label[u]);
        bulk_load(names + u * LIST_BYTES, lists + list[u] * static_cast<i64>(K) + k[u], LIST_BYTES, full);
      }
    }
  }
}

// What a lane holds of W^T for the units that its warpgroup takes at once, and two inputs of each list; two of 16 bits a word.
struct Operands {
  u32 a[TOGETHER * TILES][GROUP / 16][4], inputs[TOGETHER];
};

// DIRECT: asks for the lane's part of a unit. Words are pairs of inputs, those at `place` of 64 the first.
DEVICE void ask(Operands& to, int unit, u32 place, const T* __restrict__ weights, const u16* __restrict__ lists, const Work& work) {
  const int k = unit % PARTS * 64, first = work.label(unit / UNITS * TILES);
  to.inputs[0] = load_word(lists + static_cast<i64>(min(first, work.labels - 1) / LIST) * K + k + place % 64);
#pragma unroll
  for (int tile = 0; tile < TILES; tile++) {
    const int label = first + tile * TILE, left = work.labels - label - static_cast<int>(place / (2 * K) * 2);
    const T* from = weights + static_cast<i64>(label) * K + k + place;
#pragma unroll
    for (int i = 0; i < GROUP / 4; i++) {
      const int row = i / 4 * 16 + i % 4 / 2 * 8 + i % 2;
      to.a[tile][i / 4][i % 4] = 0;
      if (label + TILE <= work.labels || row < left) to.a[tile][i / 4][i % 4] = load_word(from + row * K);
    }
  }
}
// Of what it has brought, pairs of labels.
DEVICE void turn_pairs(Operands& to, const Operands& from) {
  to.inputs[0] = from.inputs[0];
#pragma unroll
  for (int i = 0; i < TILES * (GROUP / 4); i++) {
    const u32(&w)[4] = from.a[i / (GROUP / 4)][i / 4 % (GROUP / 16)];
    to.a[i / (GROUP / 4)][i / 4 % (GROUP / 16)][i % 4] = __byte_perm(w[i & 2], w[i % 4 | 1], i % 2 ? 0x7632 : 0x5410);
  }
}

// Else: reads stage i of W and of lists, and gives it back. `nothing` is 0, which the compiler must not know.
DEVICE void take(Operands& to, const Layout& s, int i, int warp, int lane, u32 nothing) {
  // Row lane % 8 of matrix lane / 8: labels 0 to 7 or 8 to 15 of 16, inputs 0 to 7 or 8 to 15 of the warp's 16.
  const u32 matrix = s.weights_at(i) + (lane / 16 * 8 + lane % 8) * 128 + ((2 * warp + lane / 8 % 2) ^ (lane % 8)) * 16;
  // Columns of a matrix whose rows are the halves of the warp's 16 inputs, again and again: a lane has numbers r and 8 + r; of both lists.
  const u32 halves = s.lists_at(i) + lane / 8 % 2 * LIST_BYTES + (2 * warp + lane % 2) * 16;
  mbarrier_wait(s.full(i), s.passage(i));
  load_matrices_transposed(to.inputs[0], to.inputs[TOGETHER - 1], halves);
  u32 read = to.inputs[0] | to.inputs[TOGETHER - 1];
#pragma unroll
  for (int u = 0; u < TOGETHER; u++)
#pragma unroll
    for (int j = 0; j < GROUP / 16; j++) {
      load_matrices_transposed(to.a[u][j], matrix + u * UNIT_BYTES + j * 2048);
      read |= to.a[u][j][0];
    }
  __syncwarp();
  if (lane == 0) mbarrier_arrive(s.empty(i) + (read & nothing));
}

// By ADDERS threads, `thread` 0 the first: zeroes the sums, adds all units, waits for each other. Barriers 1 to 1 + 3 WARPGROUPS of the
// block are theirs.
DEVICE void consume(const Layout& s, const Work& work, const T* __restrict__ weights, const u16* __restrict__ lists, int dim, int thread) {
  const int number = __shfl_sync(~0u, thread / 32, 0), wg = number / 4, warp = number % 4;  // known to be the same for all lanes
  const int lane = thread % 32, r = lane / 4, t = lane % 4;
  const bool odd = r & 1;
  const u32 own = s.sums() + odd * 64 + t * 16, place = t * (2 * K) + warp * 16 + r * 2, nothing = dim % 64;
  const int units = work.tiles / TILES * UNITS;
  // Barriers of both halves, and one of this warpgroup alone.
  const int mine = 2 + wg * 3, before = 2 + (wg + WARPGROUPS - 1) % WARPGROUPS * 3;
  Operands now, next;  // DIRECT: of the turn to come, a few hundred cycles
  if (DIRECT && wg < units) ask(next, wg, place, weights, lists, work);
  for (int i = thread; i < dim * 16; i += ADDERS) store_sums(s.sums() + i * 16, make_float4(0, 0, 0, 0));
  barrier(1, ADDERS);
#pragma unroll 1
  for (int unit = wg * TOGETHER; unit < units; unit += WARPGROUPS * TOGETHER) {
    float products[TOGETHER][ROWS / 2];
    if (DIRECT) turn_pairs(now, next);
    else take(now, s, unit / TOGETHER, warp, lane, nothing);
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
      const int of = unit / UNITS * TILES + tile;
      if (!ALONE) mbarrier_wait(s.tile_full(of), s.passage(of));
      wgmma_fence();
#pragma unroll
      for (int u = 0; u < TOGETHER; u++)
#pragma unroll
        for (int j = 0; j < GROUP / 16; j++) {
          const u32 from = s.grads_at(of) + (unit % UNITS + u) / PARTS * (GROUP * 2) + j * 32;
          Wgmma<T, ROWS, 0>::rs(products[u], now.a[u + tile][j], wgmma_matrix(from, 16, 1024, 1), j + tile > 0);
        }
      wgmma_commit();
      wgmma_wait<0>();
      if (lane == 0) mbarrier_arrive(s.tile_empty(of));
    }
    if (DIRECT && unit + WARPGROUPS < units) ask(next, unit + WARPGROUPS, place, weights, lists, work);
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
        const u32 at[2] = {own + (now.inputs[u] & 0xffff) * 256, own + (now.inputs[u] >> 16) * 256};
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
  barrier(1, ADDERS);
}

// Parts of dX leave in 24 bits a number, sign and exponent as in fp32 and 15 bits of the mantissa, for sums that are rounded to 16 bits in the end.
// A lane has four pieces of four numbers, which are twelve words.
struct Packed {
  alignas(16) u32 words[12];
  DEVICE uint4& piece(int i) { return reinterpret_cast<uint4*>(words)[i]; }
};
DEVICE Packed pack_sums(const float4 (&v)[4]) {
  constexpr float HALF = 1 + 1.f / (3 << 15);  // the other 8 bits are cut off: without it sums would be 2/3 of 2^-16 too small; NaN and inf stay
  Packed to;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const u32 a = __float_as_uint(v[i].x * HALF), b = __float_as_uint(v[i].y * HALF);
    const u32 c = __float_as_uint(v[i].z * HALF), d = __float_as_uint(v[i].w * HALF);
    u32* const w = to.words + 3 * i;
    w[0] = __byte_perm(a, b, 0x5321), w[1] = __byte_perm(b, c, 0x6532), w[2] = __byte_perm(c, d, 0x7653);
  }
  return to;
}
DEVICE void add_packed(float4 (&sum)[4], const Packed& from) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const u32* const w = from.words + 3 * i;
    sum[i].x += __uint_as_float(w[0] << 8), sum[i].w += __uint_as_float(w[2] & ~0xffu);
    sum[i].y += __uint_as_float(__byte_perm(w[0], w[1], 0x5430) & ~0xffu);
    sum[i].z += __uint_as_float(__byte_perm(w[1], w[2], 0x4320) & ~0xffu);
  }
}

// By the same threads: the sums to [dim / 8][3][32] packed pieces: of eight inputs, lane l's are the pieces l, l + 32, l + 64, l + 96.
constexpr int PART_PIECES = 12;  // uint4 an input
DEVICE void write(const Layout& s, uint4* __restrict__ to, int dim, int thread) {
  const int lane = thread % 32;
#pragma unroll 2
  for (int i = thread / 32; i < dim / 8; i += ADDERS / 32) {
    float4 v[4];
#pragma unroll
    for (int k = 0; k < 4; k++) v[k] = load_sums(s.sums() + i * 2048 + k * 512 + lane * 16);
    Packed packed = pack_sums(v);
#pragma unroll
    for (int k = 0; k < 3; k++) __stcg(to + i * 96 + k * 32 + lane, packed.piece(k));
  }
}

}  // namespace grad_input
#endif  // sm_90a
