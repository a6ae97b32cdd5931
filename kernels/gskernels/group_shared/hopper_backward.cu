// Both gradients for Hopper, from one launch: dX = dY W and dW = dY^T X over groups.
//
// The two sums want different things on chip: dX^T 64 batch rows of all inputs, dW the whole batch of few labels. So blocks are of two
// kinds, one a multiprocessor: `row_blocks` own batch rows (hopper_grad_input.cuh), the others own labels (hopper_backward.cuh). Both walk
// the labels in the same order, so that what one kind reads of dY the other finds in L2. That they advance alike is a matter of how
// many there are of each; who is ahead looks again before it goes on. dW is summed in a fixed order.
//
// Macros: those of the two headers, SHARED_SUMS (1: blocks that own the same rows add their parts of dX to the same sums in memory, in any order;
// 0: each leaves its part, and who adds these does so in a fixed order).
#include "hopper_backward.cuh"
#include "hopper_grad_input.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// As grad_input::Whole, at a pace.
struct Paced {
  grad_input::Whole whole;
  grad_weight::Pace pace;
  static constexpr int OFTEN = 4;  // tiles
  DEVICE void ready(int tile) const {
    if (tile % OFTEN) return;
    pace.wait(whole.work.label(tile));
    if (elect()) pace.tell(grad_weight::TILE * min(OFTEN, whole.work.tiles - tile));
  }
  DEVICE void done(int) const {}
  DEVICE int2 at(int tile) const { return whole.at(tile); }
};

constexpr int CONSUMERS = 4 * 128, THREADS = CONSUMERS + 128;

// lead: labels that a kind may be ahead of the other. sums: fp32 [parts][SLICES][dim][64], a part for each block that owns the slice or one for all.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
hopper_backward(const __grid_constant__ TensorMap weights, const __grid_constant__ TensorMap grads, const __grid_constant__ TensorMap stages,
                const __grid_constant__ TensorMap outputs, const u16* __restrict__ lists, float* __restrict__ sums, const T* __restrict__ xt,
                u32* __restrict__ progress, int dim, int labels, int row_blocks, int lead) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const int thread = threadIdx.x, warp = __shfl_sync(~0u, (thread - CONSUMERS) / 32, 0);
  // Kinds alternate: neighbouring blocks come to neighbouring multiprocessors, which share a way to L2, and who owns labels needs more of it.
  const int label_blocks = gridDim.x - row_blocks, before = blockIdx.x * label_blocks / gridDim.x;
  const bool owns_rows = (blockIdx.x + 1) * label_blocks / gridDim.x == before;
  const int block = owns_rows ? blockIdx.x - before : before;  // of its kind
  const grad_input::Layout rows(shared_address(shared), dim);
  const grad_weight::Layout places{shared_address(shared)};
  // Made anew in each branch: what lives across them takes registers of the loading warps.
  auto tiles = [&] { return grad_input::Work(block / SLICES, row_blocks / SLICES, labels); };
  auto steps = [&] { return grad_weight::Work(block, label_blocks, labels); };
  start_next();  // the sum of the row blocks' parts, once all of this runs: it waits
  if (owns_rows) rows.init(thread);
  else if (thread < CONSUMERS) places.init(thread);
  __syncthreads();
  if (thread < CONSUMERS) {
    more_registers<112>();
    if (owns_rows) {
      grad_input::consume<4>(rows, tiles(), dim, thread);
      const i64 part = static_cast<i64>(dim) * 64;
      if (SHARED_SUMS) {
        wait_for_earlier();  // which zeroed them
        grad_input::add_to<4>(rows, sums + block % SLICES * part, dim, block / SLICES * (dim / 32) / (row_blocks / SLICES), thread);
      } else {
        grad_input::write<4>(rows, sums + block * part, dim, thread);
      }
    } else {
      grad_weight::weigh(places, steps(), xt, lists, &outputs);
    }
  } else {
    fewer_registers<32>();
    if (owns_rows) {
      const grad_input::Work work = tiles();
      if (warp == 0) grad_input::load_grads<4>(rows, &grads, work, Paced{{work, block % SLICES * 64}, {progress, progress + 1, 1u, lead}});
      else if (warp <= 2) grad_input::load_weights<2>(rows, &weights, lists, work, warp - 1);
    } else if (warp == 0) {
      grad_weight::load(places, &stages, steps(), {progress + 1, progress, static_cast<u32>(SLICES), lead});
    }
  }
}

// Before it: progress [2] = 0; sums [zeros] = 0; xt [dim][SLICES * 64] = x [batch, dim] transposed, zero beyond the batch. Blocks are large, so that
// most multiprocessors are free for row blocks at once.
extern "C" __global__ void __launch_bounds__(1024)
hopper_backward_prepare(const T* __restrict__ x, T* __restrict__ xt, u32* __restrict__ progress, float4* __restrict__ sums, int zeros, int batch, int dim) {
  __shared__ T squares[4][32][33];
  if (blockIdx.x == 0) {
    if (threadIdx.x < 2) progress[threadIdx.x] = 0, __threadfence();
    __syncthreads();
  }
  start_next();  // row blocks do not wait for more
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < zeros / 4; i += gridDim.x * blockDim.x) sums[i] = float4{0, 0, 0, 0};
  const int mine = threadIdx.x / 256;
  transpose_square(squares[mine], threadIdx.x % 256, blockIdx.x * 4 + mine, x, xt, batch, dim, SLICES * 64);
}
#endif  // sm_90a
