// Both gradients for Hopper, from one launch: dX = dY W and dW = dY^T X over groups.
//
// The two sums want different things on chip: dX^T 64 batch rows of all inputs, dW the whole batch of few labels. So blocks are of two
// kinds, one a multiprocessor: `row_blocks` own batch rows (hopper_grad_input.cuh), the others own labels (hopper_backward.cuh). Both walk
// the labels in the same order, so that what one kind reads of dY the other finds in L2. That they advance alike is a matter of how
// many there are of each; who is ahead looks again before it goes on, and waits for a block that lags. Both are summed in a fixed
// order: blocks that own rows leave their parts of dX in memory, which hopper_grad_input_sum adds.
//
// Macros: those of the two headers.
#include "hopper_backward.cuh"
#include "hopper_grad_input.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr int OFTEN = 4;  // tiles of rows between two looks at how far the others are
constexpr int CONSUMERS = grad_input::ADDERS, THREADS = CONSUMERS + 128;
static_assert(CONSUMERS == grad_weight::WARPGROUPS * 128);

// Where the blocks of a grid come is not quite regular, and long runs suffer: then blocks of a kind are drawn, by the multiprocessor's number.
constexpr bool PLACED = SLICES > 8;

// 0: rows, 1: labels, as the multiprocessor's number would have it, unless all `drawn` of that kind are taken; and which block of its kind.
DEVICE int choose_kind(u32* drawn, int row_blocks, int label_blocks, int& block) {
  const int blocks = row_blocks + label_blocks, at = multiprocessor() % blocks;
  const int wanted = owners_before(at + 1, label_blocks, blocks) - owners_before(at, label_blocks, blocks);
  block = atomicAdd(drawn + wanted, 1);
  if (block < (wanted ? label_blocks : row_blocks)) return wanted;
  block = atomicAdd(drawn + 1 - wanted, 1);
  return 1 - wanted;
}

// lead, lag: see hopper_pace.cuh. sums: the row blocks' parts of dX, as `write` leaves them.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
hopper_backward(const __grid_constant__ TensorMap map, const __grid_constant__ TensorMap grads, const __grid_constant__ TensorMap stages,
                const __grid_constant__ TensorMap outputs, const T* __restrict__ weights, const u16* __restrict__ lists,
                uint4* __restrict__ sums, const T* __restrict__ xt, Progress* __restrict__ progress, int dim, int labels, int row_blocks,
                int lead, int lag) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const int thread = threadIdx.x, warp = __shfl_sync(~0u, thread / 32, 0);
  const int label_blocks = gridDim.x - row_blocks;
  u32 before;
  bool owns_rows = !owns_labels_at(blockIdx.x, label_blocks, gridDim.x, before);
  int block = owns_rows ? blockIdx.x - before : before;  // of its kind
  if (PLACED) {
    __shared__ int place[2];
    if (thread == 0) place[0] = choose_kind(progress->drawn, row_blocks, label_blocks, place[1]);
    __syncthreads();
    owns_rows = place[0] == 0, block = place[1];
  }
  const grad_input::Layout rows(shared_address(shared), dim);
  const grad_weight::Layout places{shared_address(shared)};
  // Made anew in each branch: what lives across them takes registers of the loading warps.
  auto tiles = [&] { return grad_input::Work(block / SLICES, row_blocks / SLICES, labels); };
  auto steps = [&] { return grad_weight::Work(block, label_blocks, labels); };
  start_next();  // the sum of the row blocks' parts, once all of this runs: it waits
  if (owns_rows) rows.init(warp);
  else places.init(warp);
  __syncthreads();
  if (thread < CONSUMERS) {
    more_registers<112>();
    if (owns_rows) {
      grad_input::consume(rows, tiles(), weights, lists, dim, thread);
      grad_input::write(rows, sums + static_cast<i64>(block) * dim * grad_input::PART_PIECES, dim, thread);
    } else {
      grad_weight::weigh(places, steps(), xt, lists);
    }
  } else {
    fewer_registers<32>();
    if (owns_rows) {
      const grad_input::Work work = tiles();
      const Pace<true> pace(progress, lead, lag);
      auto at_a_pace = [&](int tile) {
        if (tile % OFTEN) return;
        pace.wait(work.label(tile), grad_weight::TILE * min(OFTEN, work.tiles - tile));
      };
      if (warp == CONSUMERS / 32) {
        grad_input::load_grads<0>(rows, &grads, work, block % SLICES * 64, at_a_pace);  // labels' loads ask it into L2
        pace.end();
      } else if (!grad_input::DIRECT && warp == CONSUMERS / 32 + 1) {
        grad_input::load_weights(rows, &map, lists, work);
      }
    } else if (warp == CONSUMERS / 32) {
      grad_weight::load(places, &stages, steps(), {progress, lead, lag});
    } else if (warp == CONSUMERS / 32 + 1) {
      grad_weight::store(places, steps(), &outputs);
    }
  }
}

// Before it: progress = 0; xt [dim][SLICES * 64] = x [batch, dim] transposed, zero beyond the batch: a thread two inputs of eight rows.
// Blocks need no shared memory and few registers, so that those of the other kernel start beside them.
extern "C" __global__ void __launch_bounds__(128)
hopper_backward_prepare(const T* __restrict__ x, T* __restrict__ xt, Progress* __restrict__ progress, int batch, int dim) {
  if (blockIdx.x == 0) {
    if (threadIdx.x == 0) *progress = {}, __threadfence();
    __syncthreads();
  }
  start_next();  // row blocks do not wait for more
  const int thread = blockIdx.x * blockDim.x + threadIdx.x, d = thread % (dim / 2) * 2, b = thread / (dim / 2) * 8;
  u32 v[8];
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] = b + i < batch ? load_word(x + static_cast<i64>(b + i) * dim + d) : 0;
  if (b >= SLICES * 64) return;
  T* const to = xt + d * (SLICES * 64) + b;
  *reinterpret_cast<uint4*>(to) = eight_of(v, false), *reinterpret_cast<uint4*>(to + SLICES * 64) = eight_of(v, true);
}
#endif  // sm_90a
