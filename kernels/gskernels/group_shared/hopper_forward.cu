// Y = X W^T over groups, for Hopper.
//
// A block holds X^T of one slice of 64 batch rows in shared memory and stays on its multiprocessor. Each of its
// warpgroups computes tiles of 64 rows x 64 labels on its own: weights and lists come by the copy engine, 64 inputs of a
// tile at a time (a chunk) and STAGES chunks ahead, asked for by a warp of its own; rows of X^T that a group reads go straight
// to registers by ldmatrix, whose row addresses are the list; wgmma multiplies. Each warp stores its 16 rows through shared
// memory by the copy engine, WIDE tiles at once, so that 128 or 256 bytes of a row go together: the wider, the faster memory
// takes them. No warp waits for another but to multiply.
//
// Units of work have an owner, but the last DRAWN rounds of them are drawn from a counter by whoever comes first.
//
// Macros: ELEMENT, K (multiple of 64), G (16, 32 or 64 labels that share a list; 64 stands for every multiple of it), LIST
// (labels of a real group), WARPGROUPS, STAGES, BIAS (0, 1), WIDE (1; 2 if `y` is a map of [batch][labels / 64][64]).
#include "hopper.cuh"

constexpr int PRODUCTS = 64 / G, CHUNKS = K / 64;
constexpr int WEIGHT_BYTES = 64 * 128, LIST_BYTES = PRODUCTS * 128, TILE_BYTES = 64 * 128;
constexpr int THREADS = WARPGROUPS * 160;
// Products whose rows of X^T are in registers at once: 16 registers each.
constexpr int TOGETHER = (WARPGROUPS > 3 || CHUNKS > 1) && PRODUCTS > 2 ? 2 : PRODUCTS;

constexpr int DRAWN = 4;
constexpr int AHEAD = 8;  // units: more than the warp which loads is ahead
static_assert(STAGES < AHEAD);

DEVICE void prefetch_map(const TensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }

// A column of the grid has a slice, a row of it is a part of the labels. counters: one a slice, zero before and after.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
hopper_forward(const __grid_constant__ TensorMap weights, const __grid_constant__ TensorMap y, const __grid_constant__ TensorMap x,
               const u16* __restrict__ lists, const T* __restrict__ bias, u32* __restrict__ counters, int dim, int labels) {
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ __align__(8) u64 barriers[WARPGROUPS][2 * STAGES + 1];
  __shared__ int units_of[WARPGROUPS][AHEAD];
  // The same for all lanes, and the compiler knows: what follows from it goes to uniform registers.
  const int number = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const bool loads = number >= WARPGROUPS * 4;
  const int group = loads ? number - WARPGROUPS * 4 : number / 4, warp = number % 4;
  const int slice = blockIdx.x, part = blockIdx.y, parts = gridDim.y;
  const u32 xt = shared_address(shared), ring = xt + dim * 128 + group * (STAGES * WEIGHT_BYTES);
  const u32 out = xt + dim * 128 + WARPGROUPS * STAGES * WEIGHT_BYTES + (group * 4 + warp) * (TILE_BYTES / 2);
  const int list_offset = dim * 128 + WARPGROUPS * (STAGES * WEIGHT_BYTES + 2 * TILE_BYTES) + group * STAGES * LIST_BYTES;
  const u32 full = shared_address(barriers[group]), empty = full + STAGES * 8, came = empty + STAGES * 8;
  volatile int* const next_unit = units_of[group];
  const bool one = elect();
  if (loads) {
    if (one) {
      for (int s = 0; s < STAGES; s++) mbarrier_init(full + 8 * s, 1), mbarrier_init(empty + 8 * s, 4);
      mbarrier_init(came, 1);
      mbarrier_fence();
      ask_slice<WARPGROUPS>(xt, &x, came, group, slice * 64, dim);
      if (group == 0) prefetch_map(&weights), prefetch_map(&y);
    }
    __syncwarp();
  }
  __syncthreads();

  // A unit is WIDE neighbouring tiles. Every warpgroup of the slice has as many of the first `owned`.
  const int tiles = cdiv(labels, 64), units = cdiv(tiles, WIDE), first = part * WARPGROUPS + group, step = parts * WARPGROUPS;
  const int owned = max(0, units / step - DRAWN) * step;
  if (loads) {
    int n = 0;  // chunks asked for
    auto stage_of_next = [&] {
      if (n >= STAGES) mbarrier_wait(empty + 8 * (n % STAGES), n / STAGES - 1 & 1);
      return n % STAGES;
    };
    for (int i = 0;; i++) {
      int unit = first + i * step;
      if (unit >= owned) {  // each draws once in vain, which makes the counter zero again
        if (lane == 0) unit = owned + atomicInc(counters + slice, units - owned + step - 1);
        unit = __shfl_sync(~0u, unit, 0);
      }
      if (unit >= units) {
        const int stage = stage_of_next();
        if (one) {
          next_unit[i % AHEAD] = -1;
          mbarrier_arrive(full + 8 * stage);
        }
        return;
      }
      for (int tile = unit * WIDE; tile < min(unit * WIDE + WIDE, tiles); tile++) {
        const int at = tile * 64 / LIST, held = min(PRODUCTS, cdiv(labels, LIST) - at);
#pragma unroll 1
        for (int c = 0; c < CHUNKS; c++, n++) {
          const int stage = stage_of_next();
          if (!one) continue;
          // Lists that the last tile lacks would name any row: zero is one.
#pragma unroll 1
          for (int word = held * 32; word < LIST_BYTES / 4; word++) reinterpret_cast<u32*>(shared + list_offset + stage * LIST_BYTES)[word] = 0;
          next_unit[i % AHEAD] = unit;
          mbarrier_expect(full + 8 * stage, WEIGHT_BYTES + held * 128);
          tma_load(ring + stage * WEIGHT_BYTES, &weights, full + 8 * stage, c * 64, tile * 64);
          const u32 to = xt + list_offset + stage * LIST_BYTES;
          const u16* from = lists + static_cast<i64>(at) * K + c * 64;
          if (CHUNKS == 1) bulk_load(to, from, held * 128, full + 8 * stage);
          else
            for (int p = 0; p < held; p++) bulk_load(to + p * 128, from + p * K, 128, full + 8 * stage);
        }
      }
    }
  }
  turn_slice<WARPGROUPS>(xt, came, group, 2 + group, warp, lane, dim);
  barrier(1, WARPGROUPS * 128);

  const int piece = 2 * warp + ((lane >> 3) & 1);
  int n = 0, turn = 0;  // chunks taken, tiles
  for (int i = 0;; i++) {
    int unit = first + i * step;
    if (unit >= owned) {
      mbarrier_wait(full + 8 * (n % STAGES), n / STAGES & 1);
      unit = next_unit[i % AHEAD];
      if (unit < 0) break;
    }
#pragma unroll 1
    for (int half = 0; half < WIDE; half++, turn++) {
      const int tile = unit * WIDE + half;
      float sums[PRODUCTS][G / 2];
#pragma unroll CHUNKS <= 4 ? CHUNKS : 1
      for (int c = 0; c < CHUNKS; c++, n++) {
        const int stage = n % STAGES;
        mbarrier_wait(full + 8 * stage, n / STAGES & 1);
        const u16* list = reinterpret_cast<const u16*>(shared + list_offset + stage * LIST_BYTES);
        u32 a[TOGETHER][4][4];
#pragma unroll
        for (int p = 0; p < PRODUCTS; p++) {
          gather(a[p % TOGETHER], xt, list + p * 64, piece, lane);
          wgmma_fence();
#pragma unroll
          for (int k = 0; k < 4; k++)
            Wgmma<T, G, 0>::rs(sums[p], a[p % TOGETHER][k], wgmma_matrix(ring + stage * WEIGHT_BYTES + p * G * 128 + k * 32, 16, 1024, 1),
                               c > 0 || k > 0);
          wgmma_commit();
          if (p % TOGETHER == TOGETHER - 1 && p + 1 < PRODUCTS) wgmma_wait<0>();
        }
        if (one && half == 0 && c == CHUNKS - 1) bulk_wait_read<WIDE == 1>();  // what the buffer held before has left
        __syncwarp();
        wgmma_wait<0>();
        if (lane == 0) mbarrier_arrive(empty + 8 * stage);
      }
      // Rows of WIDE 128-byte pieces, whose 16-byte pieces the copy engine finds turned by the number of the 128 bytes, mod 8.
      // With 256 bytes a row, rows 4 to 7 of eight would meet rows 0 to 3 in the banks: they store the neighbouring column first.
      const int line = (lane & 15) * WIDE + (WIDE == 1 ? (turn & 1) * 16 : half);
      const bool later = WIDE == 2 && lane >= 16;
      const int side = lane >> 4 ^ (WIDE == 2 ? lane >> 2 & 1 : 0);
#pragma unroll
      for (int p = 0; p < PRODUCTS; p++)
#pragma unroll
        for (int j = 0; j < G / 16; j++) {
          const int column = p * (G / 8) + j * 2 + side;
          float* d = sums[p] + j * 8;
#if BIAS
#pragma unroll
          for (int h = 0; h < 2; h++) {
            const int label = tile * 64 + p * G + j * 16 + h * 8 + lane % 4 * 2;
            const float low = label < labels ? to_float(bias[label]) : 0, high = label + 1 < labels ? to_float(bias[label + 1]) : 0;
            d[4 * h] += low, d[4 * h + 1] += high, d[4 * h + 2] += low, d[4 * h + 3] += high;
          }
#endif
          const u32 r0 = pack<T>(d[0], d[1]), r1 = pack<T>(d[2], d[3]), r2 = pack<T>(d[4], d[5]), r3 = pack<T>(d[6], d[7]);
          store_matrices(out + line * 128 + ((column ^ (line & 7)) << 4), later ? r2 : r0, later ? r3 : r1, later ? r0 : r2, later ? r1 : r3);
        }
      if (half < WIDE - 1 && tile + 1 < tiles) continue;
      fence_async();
      __syncwarp();
      if (one) {
        if (WIDE == 1) tma_store(&y, out + (turn & 1) * 2048, tile * 64, slice * 64 + warp * 16);
        else tma_store(&y, out, 0, tile / WIDE * WIDE, slice * 64 + warp * 16);
        bulk_commit();
      }
      if (half < WIDE - 1) {  // the last tile has no neighbour
        turn++;
        break;
      }
    }
  }
  if (one) bulk_wait<0>();
}
