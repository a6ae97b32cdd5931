// Both gradients for Hopper, from one launch: dX = dY W and dW = dY^T X over groups.
//
// The two sums want different things on chip: dX^T 64 batch rows of all inputs, dW the whole batch of few labels. So blocks are of two
// kinds, one a multiprocessor: the first `row_blocks` own batch rows (hopper_grad_input.cuh), the others own labels
// (hopper_backward.cuh). Both walk the labels in the same order, so that what one kind reads of dY the other finds in L2. That they
// advance alike is a matter of how many there are of each; who is ahead looks again before it goes on. Sums are in a fixed order.
//
// Macros: those of the two headers.
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

extern "C" __global__ void __launch_bounds__(THREADS, 1)
hopper_backward(const __grid_constant__ TensorMap weights, const __grid_constant__ TensorMap grads, const u16* __restrict__ lists,
                float* __restrict__ partial, const T* __restrict__ x, const T* __restrict__ xt, T* __restrict__ dw, u32* __restrict__ progress,
                int batch, int dim, int labels, int slices, int row_blocks) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const int thread = threadIdx.x, block = blockIdx.x, warp = (thread - CONSUMERS) / 32;
  const bool owns_rows = block < row_blocks, both = row_blocks > 0 && row_blocks < gridDim.x;
  const grad_input::Layout rows(shared_address(shared), dim);
  const grad_weight::Layout places{shared_address(shared)};
  // Made anew in each branch: what lives across them takes registers of the loading warps.
  auto tiles = [&] { return grad_input::Work(block / slices, row_blocks / slices, labels); };
  auto steps = [&] { return grad_weight::Work(block - row_blocks, gridDim.x - row_blocks, labels, slices); };
  start_next();  // the sum of the row blocks' parts, once all of this runs: it waits
  if (owns_rows) rows.init(thread);
  else places.init(thread);
  __syncthreads();
  if (thread < CONSUMERS) {
    more_registers<112>();
    if (owns_rows) {
      grad_input::consume<4>(rows, tiles(), dim, thread);
      grad_input::write<4>(rows, partial + static_cast<i64>(block) * dim * 64, dim, thread);
    } else {
      grad_weight::weigh(places, steps(), x, xt, lists, dw, batch, dim);
    }
  } else {
    fewer_registers<32>();
    if (owns_rows) {
      const grad_input::Work work = tiles();
      if (warp == 0) grad_input::load_grads<2>(rows, &grads, work, Paced{{work, block % slices * 64}, {progress, progress + 1, 1u, slices, both}});
      else if (warp <= 2) grad_input::load_weights<2>(rows, &weights, lists, work, warp - 1);
    } else if (warp == 0) {
      grad_weight::load(places, &grads, steps(), {progress + 1, progress, static_cast<u32>(slices), slices, both});
    }
  }
}

// Before it: progress [2] = 0; xt [dim][stride] = x [batch, dim] transposed, rows in the order of `grad_weight::row_at`, zero beyond the batch. A block
// of 256 threads makes a square of 32 x 32.
extern "C" __global__ void __launch_bounds__(256)
hopper_backward_prepare(const T* __restrict__ x, T* __restrict__ xt, u32* __restrict__ progress, int batch, int dim, int stride) {
  __shared__ T square[32][34];
  const int across = dim / 32, d0 = blockIdx.x % across * 32, place0 = blockIdx.x / across * 32;
  const int column = threadIdx.x % 32, group = threadIdx.x / 32;
  if (blockIdx.x == 0 && threadIdx.x < 2) progress[threadIdx.x] = 0, __threadfence();
  __syncthreads();
  start_next();  // row blocks and what is resident do not wait for this
  if (stride == 0) return;
  for (int row = group; row < 32; row += 8) {
    const int b = grad_weight::row_at(place0 + row);
    square[row][column] = b < batch ? x[static_cast<i64>(b) * dim + d0 + column] : from_float<T>(0.f);
  }
  __syncthreads();
  for (int row = group; row < 32; row += 8) xt[static_cast<i64>(d0 + row) * stride + place0 + column] = square[column][row];
}
#endif  // sm_90a
