// A training step of a group-shared layer for Hopper, in one cooperative launch: logits, loss, both gradients and the update.
//
// Blocks are of two kinds, one a multiprocessor. Those that own labels (hopper_step_outputs.cuh) make logits, loss and dY of a
// unit of G labels for the whole batch, then dW and the update. dY goes, with the weights it belongs to, to a ring in
// global memory, which is small enough to stay in L2. Those that own batch rows (hopper_step_inputs.cuh) take it from there
// and add dY W to dX. Flags in global memory say which slots of the ring are filled and which are taken; that all blocks run at
// the same time, which a cooperative launch grants, is what keeps them from waiting for ever.
//
// Macros: ELEMENT (bf16, fp16), INDEX (of the positives' lists: int, i64), K (multiple of 64), G (16, 32 labels of a unit), LIST
// (labels of a real group, a multiple of G), SLICES (1, 2, 4, of 64 batch rows, of an item), STAGES, BIAS (0, 1),
// UPDATE (0: dW is stored instead), and those of step_math.cuh.
#include "hopper_step_inputs.cuh"
#include "hopper_step_outputs.cuh"
#include "hopper_step_send.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
hopper_step(const __grid_constant__ TensorMap weights, const T* xt, const u16* lists, const u32* heads, const int4* links, const T* bias,
            const float* factor, unsigned char* ring, u32* ready, u32* done, float* sums, double* losses, T* weight, T* dw, T* buffer,
            T* lost, float* db, int batch, int dim, int labels, int row_blocks, int input_blocks, int input_stages, int slots, float lr,
            float momentum, float decay, u32 seed_low, u32 seed_high) {
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ __align__(8) u64 barriers[64];
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32, units = cdiv(labels, G);  // warp: of all lanes alike
  const u32 base = shared_address(shared), bars = shared_address(barriers);
  const Step step = {xt, lists, heads, links, bias, factor, ring, ready, done, sums, losses, weight, dw, buffer, lost, db,
                     batch, dim, labels, row_blocks, input_stages, slots};
  if (threadIdx.x == 0) barriers[63] = 0;  // a count, of either kind of block
  start_next();  // what adds up waits for the end
  const u32 output_blocks = gridDim.x - input_blocks;
  u32 before;
  const bool owns_labels = owns_labels_at(blockIdx.x, output_blocks, gridDim.x, before);
  const int number = owns_labels ? before : blockIdx.x - before;  // of its kind
  if (!owns_labels) {
    const int slices = row_blocks * SLICES;
    const u32 stages = base + ((dim * 256 + 1023) & ~1023), full = bars, empty = bars + 8 * PASSAGES, count = bars + 8 * 63;
    const Inputs inputs = {step, base, stages, stages + input_stages * TAKEN_BYTES, full, empty, count,
                           number % slices, number / slices, input_blocks / slices, units};
    if (warp == 0 && elect()) {  // with `mbarrier_init_each`, ptxas orders the loss so that G = 16 takes some 5 % longer
#pragma unroll
      for (int i = 0; i < PASSAGES; i++) mbarrier_init(full + 8 * i, 1), mbarrier_init(empty + 8 * i, 4);
    }
    mbarrier_fence();
    for (int i = threadIdx.x; i < dim * 16; i += THREADS) reinterpret_cast<float4*>(shared)[i] = make_float4(0, 0, 0, 0);
    __syncthreads();
    if (warp < CONSUMERS) {
      more_registers<104>();  // two products of 64 x 64 wait for their turn
      inputs.compute(warp, lane);
    } else if (warp < CONSUMERS + 4) {
      fewer_registers<40>();
      if (warp == CONSUMERS) inputs.watch(lane);
      else if (warp <= CONSUMERS + LOADERS) inputs.load(warp - CONSUMERS - 1);
    } else {
      fewer_registers<24>();
    }
    fence_async();  // the copy engine adds the sums to those of others
    __syncwarp();
    __syncthreads();
    inputs.reduce();
  } else {
    const u32 full = bars, filled = bars + 8 * STAGES, empty = bars + 16 * STAGES, count = bars + 8 * 63;
    const Outputs outputs = {step, base, base + STAGES * STAGE_BYTES, full, filled, empty,
                             number, static_cast<int>(output_blocks), units};
    const Sending sending = {step, base, filled, empty, count, outputs.block, outputs.blocks, outputs.items()};
    if (warp == 0 && elect()) {
#pragma unroll
      for (int i = 0; i < STAGES; i++)
        mbarrier_init(full + 8 * i, LOADERS * 32 + 1), mbarrier_init(filled + 8 * i, SLICES * 4), mbarrier_init(empty + 8 * i, 4 + 1);
    }
    mbarrier_fence();
    __syncthreads();
    if (warp < CONSUMERS) outputs.compute(warp, lane);
    else if (warp < CONSUMERS + WEIGHERS) outputs.weigh(warp - CONSUMERS, lane, Rates{lr, momentum, decay, seed_low, seed_high});
    else if (warp < CONSUMERS + WEIGHERS + LOADERS) outputs.load(&weights, warp - CONSUMERS - WEIGHERS, lane);
    else if (lane == 0 && warp % STORERS == 0) sending.send();
    else if (lane == 0) sending.announce();
  }
}

// At first: zeroes. A block of 256 threads takes 1024 words.
extern "C" __global__ void __launch_bounds__(256) hopper_step_clear(u32* __restrict__ words, int count) {
  start_next();
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int at = blockIdx.x * 1024 + i * 256 + threadIdx.x;
    if (at < count) words[at] = 0;
  }
}

// Before it: xt [dim][stride] = x transposed, zero beyond the batch; the positives as a list for each unit, of links
// {next, row, label within the unit} counted from 1, in any order. Blocks of 256 threads: first those that transpose squares of
// 32 x 32, then those that link the positives of 8 rows each. Only these wait for hopper_step_clear, which has zeroed heads [units].
extern "C" __global__ void __launch_bounds__(256)
hopper_step_prepare(const T* __restrict__ x, T* __restrict__ xt, const INDEX* __restrict__ pointers, const INDEX* __restrict__ positives,
                    u32* __restrict__ heads, int4* __restrict__ links, int batch, int dim, int stride) {
  const int squares = cdiv(dim, 32) * cdiv(stride, 32), column = threadIdx.x % 32, first = threadIdx.x / 32;
  if (static_cast<int>(blockIdx.x) < squares) {
    transpose_square(blockIdx.x, x, xt, batch, dim, stride);
  } else {
    wait_for_earlier();
    const int row = (blockIdx.x - squares) * 8 + first;
    if (row >= batch) return;
    for (i64 i = pointers[row] + column; i < pointers[row + 1]; i += 32) {
      const i64 label = positives[i];
      const u32 next = atomicExch(heads + label / G, static_cast<u32>(i) + 1);
      links[i] = make_int4(static_cast<int>(next), row, static_cast<int>(label % G), 0);
    }
  }
}

// After it: dx [batch, dim] from the sums, and the loss. A block takes 16 inputs of 64 rows; one more adds the losses. `early`.
extern "C" __global__ void __launch_bounds__(256)
hopper_step_finish(const float* __restrict__ sums, T* __restrict__ dx, const double* __restrict__ losses, float* __restrict__ loss, int batch,
                   int dim, int slices, int count) {
  __shared__ float tile[16][65];
  __shared__ double parts[8];
  const int blocks = dim / 16, slice = blockIdx.x / blocks;
  wait_for_earlier();
  if (slice == slices) {
    double total = 0;
    for (int i = threadIdx.x; i < count; i += 256) total += losses[i];
#pragma unroll
    for (int m = 16; m > 0; m /= 2) total += __shfl_xor_sync(~0u, total, m);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = total;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int i = 1; i < 8; i++) total += parts[i];
      *loss = static_cast<float>(total);
    }
    return;
  }
  const int d0 = blockIdx.x % blocks * 16, d = d0 + threadIdx.x / 16, v = threadIdx.x % 16;
  const float4 sum = reinterpret_cast<const float4*>(sums + (static_cast<i64>(slice) * dim + d) * 64)[v];
  const int b = v / 4 * 16 + v % 4 * 2;  // a lane's piece: rows b, b + 1, b + 8, b + 9
  float* row = tile[threadIdx.x / 16];
  row[b] = sum.x, row[b + 1] = sum.y, row[b + 8] = sum.z, row[b + 9] = sum.w;
  __syncthreads();
  for (int i = threadIdx.x; i < 64 * 8; i += 256) {
    const int bb = i / 8, dd = i % 8 * 2;
    if (slice * 64 + bb < batch)
      *reinterpret_cast<u32*>(dx + static_cast<i64>(slice * 64 + bb) * dim + d0 + dd) = pack<T>(tile[dd][bb], tile[dd + 1][bb]);
  }
}
