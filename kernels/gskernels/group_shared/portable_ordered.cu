// grad_input in a fixed order of summation, for sm_80 and newer.
//
// A block owns SLICE rows of the batch and all of dx^T [D, SLICE] for them, in shared memory (ACCUMULATE_SHARED) or in
// global memory, and adds its parts one after another: SPLIT warps share 16 rows of the batch, a barrier between parts. No
// atomics, so the same bits every time. Blocks leave partial sums, which `portable_sum` adds in order.
#include "portable_gradients.cuh"

// grid: slices * any number of blocks. Shared memory: `ordered_shared_bytes` in portable.py.
// partial [blocks, D, stride] fp32, wholly written.
extern "C" __global__ void __launch_bounds__(SLICE / 16 * SPLIT * 32, 1)
portable_ordered_grad_input(const Element* __restrict__ grad_out,  // [B, L]
                            const Element* __restrict__ weight,    // [L, K]
                            const INDEX* __restrict__ indices,     // [groups, K]
                            float* __restrict__ partial, int dim, int batch, int stride, int labels, int fan_in,
                            int group_size, int parts, int tiles, int k_blocks, int slices) {
  extern __shared__ __align__(128) unsigned char shared[];
  constexpr int SETS = SLICE / 16, THREADS = SETS * SPLIT * 32, TILE_PARTS = 8 / PART_PIECES, TILE = 8 * V;
  constexpr int GRADS = SLICE * 128, WEIGHTS = TILE * 128, STAGE = GRADS + WEIGHTS, M = M_TILES / SPLIT;
  constexpr int INPUTS = TILE_PARTS * K_BLOCK;  // of an item
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int set = warp % SETS, m0 = warp / SETS * M;
  const int slice = blockIdx.x % slices, block = blockIdx.x / slices, blocks = gridDim.x / slices, b0 = slice * SLICE;
  float* mine = partial + (i64)block * dim * stride + b0;
  float* sums = ACCUMULATE_SHARED ? reinterpret_cast<float*>(shared + 2 * STAGE + 2 * INPUTS * 4) : mine;
  const int pitch = ACCUMULATE_SHARED ? SLICE : stride;
  for (int i = threadIdx.x; i < dim * (SLICE / 4); i += THREADS)
    reinterpret_cast<float4*>(sums + (i64)(i / (SLICE / 4)) * pitch)[i % (SLICE / 4)] = {0, 0, 0, 0};

  const Element *weight_end = weight + (i64)labels * fan_in, *grad_end = grad_out + (i64)batch * labels;
  int* targets = reinterpret_cast<int*>(shared + 2 * STAGE);
  const int column = threadIdx.x % 8, first = threadIdx.x / 8;
  constexpr int ROWS = THREADS / 8;  // threads of a column
  GradColumn<cdiv(SLICE, ROWS)> fill;
  static_assert(SLICE % ROWS == 0 || ROWS > SLICE, "tile sizes");
  uint4 weights[cdiv(TILE, ROWS)];
  fill.end = grad_end;
  fill.piece = column;

  // operands of an item (a tile, K_BLOCK of its inputs), on their way into one of two stages
  int kept[cdiv(INPUTS, THREADS)];  // inputs, -1 for none
  auto fetch = [&](int item, u32 to) {
    const int tile = item / k_blocks, k0 = item % k_blocks * K_BLOCK, label = column * V;
    const Part part = part_of(tile * TILE_PARTS + label / PART, labels, group_size, parts);
    fill.from = grad_out + part.first + label % PART;
    fill.valid = part.count - label % PART;
    if (first < SLICE) fill.fetch(to, first, ROWS, 8, b0, batch, labels);
#pragma unroll
    for (int i = 0; i < cdiv(TILE, ROWS); i++) {
      int row = first + i * ROWS;
      Part of = part_of(tile * TILE_PARTS + row / PART, labels, group_size, parts);
      weights[i] = row < TILE ? weights_of(weight, of, row % PART, k0 + column * V, fan_in, weight_end) : uint4{0, 0, 0, 0};
    }
#pragma unroll
    for (int i = 0; i < cdiv(INPUTS, THREADS); i++) {
      int at = threadIdx.x + i * THREADS, k = k0 + at % K_BLOCK;
      Part of = part_of(tile * TILE_PARTS + min(at, INPUTS - 1) / K_BLOCK, labels, group_size, parts);
      kept[i] = at < INPUTS && of.count > 0 && k < fan_in ? (int)indices[(i64)of.group * fan_in + k] : -1;
    }
  };
  auto settle = [&](u32 to, int turn) {
    if (first < SLICE) fill.settle(to, first, ROWS, 8);
#pragma unroll
    for (int i = 0; i < cdiv(TILE, ROWS); i++)
      if (first + i * ROWS < TILE) shared_store(weight_piece(to + GRADS, first + i * ROWS, column), weights[i]);
#pragma unroll
    for (int i = 0; i < cdiv(INPUTS, THREADS); i++)
      if (threadIdx.x + i * THREADS < INPUTS) targets[turn * INPUTS + threadIdx.x + i * THREADS] = kept[i];
    copy_wait<0>();
  };

  const u32 stages = shared_address(shared);
  const int items = tiles * k_blocks;
  if (block < items) {
    fetch(block, stages);
    settle(stages, 0);
  }
  __syncthreads();
  int turn = 0;
  for (int item = block; item < items; item += blocks, turn ^= 1) {
    const u32 stage = stages + turn * STAGE, other = stages + (turn ^ 1) * STAGE;
    const bool more = item + blocks < items;
    if (more) fetch(item + blocks, other);
    float c[TILE_PARTS][M][2][4] = {};
    int target[TILE_PARTS][2 * M];
#pragma unroll
    for (int part = 0; part < TILE_PARTS; part++) {
      input_product<Element>(c[part], stage, 8, part * PART_PIECES, 16 * set, stage + GRADS + part * PART * 128, m0, lane);
#pragma unroll
      for (int m = 0; m < 2 * M; m++) target[part][m] = targets[turn * INPUTS + part * K_BLOCK + 16 * m0 + 8 * m + g];
    }
#pragma unroll
    for (int part = 0; part < TILE_PARTS; part++) {
#pragma unroll
      for (int m = 0; m < 2 * M; m++) {
        const int row = target[part][m], h = m % 2, at = ACCUMULATE_SHARED ? set ^ (row & (SETS - 1)) : set;
        if (row < 0) continue;
        float4* to = reinterpret_cast<float4*>(sums + (i64)row * pitch + 16 * at + 4 * t);
        float4 v = *to;
        const float(&add)[2][4] = c[part][m / 2];
        v.x += add[0][2 * h], v.y += add[0][2 * h + 1], v.z += add[1][2 * h], v.w += add[1][2 * h + 1];
        *to = v;
      }
      barrier(1 + set, SPLIT * 32);
    }
    if (more) settle(other, turn ^ 1);
    __syncthreads();
  }
  if (!ACCUMULATE_SHARED) return;
  for (int i = threadIdx.x; i < dim * (SLICE / 4); i += THREADS) {
    int d = i / (SLICE / 4), b = i % (SLICE / 4) ^ (d & (SETS - 1)) * 4;
    reinterpret_cast<float4*>(mine + (i64)d * stride)[b] = reinterpret_cast<float4*>(sums)[i];
  }
}
