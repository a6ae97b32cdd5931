// dX = dY W over groups, for Hopper, in a fixed order: hopper_grad_input.cuh by persistent blocks, one a multiprocessor, that
// own 64 batch rows each and every parts-th tile; then the sum of what the blocks of the same rows hold.
//
// Macros: those of hopper_grad_input.cuh; of the sum, FEW.
#include "hopper_grad_input.cuh"

constexpr int THREADS = grad_input::ADDERS + 128;

extern "C" __global__ void __launch_bounds__(THREADS, 1)
hopper_grad_input(const __grid_constant__ TensorMap map, const __grid_constant__ TensorMap grads, const T* __restrict__ weights,
                  const u16* __restrict__ lists, uint4* __restrict__ partial, int dim, int labels, int slices) {
  extern __shared__ __align__(1024) unsigned char shared[];
  using namespace grad_input;
  const int thread = threadIdx.x, warp = __shfl_sync(~0u, thread / 32, 0);
  const Layout layout(shared_address(shared), dim);
  const Work work(blockIdx.x / slices, gridDim.x / slices, labels);
  layout.init(warp);
  __syncthreads();
  if (thread < ADDERS) {
    more_registers<112>();
    consume(layout, work, weights, lists, dim, thread);
    write(layout, partial + static_cast<i64>(blockIdx.x) * dim * PART_PIECES, dim, thread);
  } else {
    fewer_registers<32>();
    if (warp == ADDERS / 32) load_grads<DIRECT ? 0 : 2>(layout, &grads, work, static_cast<int>(blockIdx.x) % slices * 64, [](int) {});
    else if (!DIRECT && warp == ADDERS / 32 + 1) load_weights(layout, &map, lists, work);
  }
}

// dx [batch, dim]: the sums of all parts, in a fixed order. A block takes 8 inputs of 64 rows; a warp of it every n-th part of n, up to TURNS,
// AT_ONCE of them on their way together. FEW (slices, two at most, hence few blocks and many parts): all parts at once, of up to 105 for one slice;
// else of up to 24, and all of the grid at once where D = 768.
#if FEW
constexpr int TURNS = 21, AT_ONCE = 5, BLOCKS = 1;
#else
constexpr int TURNS = 12, AT_ONCE = 2, BLOCKS = 3;
#endif
extern "C" __global__ void __launch_bounds__(TURNS * 32, BLOCKS)
hopper_grad_input_sum(const uint4* __restrict__ partial, T* __restrict__ dx, int batch, int dim, int slices, int parts) {
  using namespace grad_input;
  __shared__ float4 sums[TURNS][4][32];
  __shared__ float tile[8][65];
  const int blocks = dim / 8, slice = blockIdx.x / blocks, d0 = blockIdx.x % blocks * 8;
  const int turns = blockDim.x / 32, turn = threadIdx.x / 32, lane = threadIdx.x % 32;
  float4 sum[4] = {};
  wait_for_earlier();
  const i64 part = static_cast<i64>(slices) * dim * PART_PIECES;
  const uint4* const mine = partial + (static_cast<i64>(slice) * dim + d0) * PART_PIECES + lane;
#pragma unroll 1
  for (int p = turn; p < parts; p += turns * AT_ONCE) {
    Packed v[AT_ONCE];
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++)
#pragma unroll
      for (int k = 0; k < 3; k++) v[i].piece(k) = p + turns * i < parts ? __ldcg(mine + (p + turns * i) * part + k * 32) : uint4{0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) add_packed(sum, v[i]);
  }
#pragma unroll
  for (int k = 0; k < 4; k++) sums[turn][k][lane] = sum[k];
  __syncthreads();
  if (threadIdx.x < 128) {
    const int piece = threadIdx.x;  // 16 an input: rows b, b + 1, b + 8, b + 9
    float4 all = sums[0][piece / 32][lane];
    for (int t = 1; t < turns; t++) {
      const float4 v = sums[t][piece / 32][lane];
      all.x += v.x, all.y += v.y, all.z += v.z, all.w += v.w;
    }
    float* row = tile[piece / 16] + piece % 16 / 4 * 16 + piece % 4 * 2;
    row[0] = all.x, row[1] = all.y, row[8] = all.z, row[9] = all.w;
  }
  __syncthreads();
  const int row = threadIdx.x, b = slice * 64 + row;
  if (row < 64 && b < batch)
    *reinterpret_cast<uint4*>(dx + static_cast<i64>(b) * dim + d0) = make_uint4(
        pack<T>(tile[0][row], tile[1][row]), pack<T>(tile[2][row], tile[3][row]), pack<T>(tile[4][row], tile[5][row]), pack<T>(tile[6][row], tile[7][row]));
}
