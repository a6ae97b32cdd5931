// dX = dY W over groups, for Hopper, in a fixed order: hopper_grad_input.cuh by persistent blocks, one a multiprocessor, that
// own 64 batch rows each and every parts-th tile; then the sum of what the blocks of the same rows hold.
//
// Macros: those of hopper_grad_input.cuh.
#include "hopper_grad_input.cuh"

constexpr int THREADS = grad_input::ADDERS + 128;

extern "C" __global__ void __launch_bounds__(THREADS, 1)
hopper_grad_input(const __grid_constant__ TensorMap map, const __grid_constant__ TensorMap grads, const T* __restrict__ weights,
                  const u16* __restrict__ lists, float* __restrict__ partial, int dim, int labels, int slices) {
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
    write(layout, partial + static_cast<i64>(blockIdx.x) * dim * 64, dim, thread);
  } else {
    fewer_registers<32>();
    if (warp == ADDERS / 32) load_grads<DIRECT ? 0 : 2>(layout, &grads, work, static_cast<int>(blockIdx.x) % slices * 64, [](int) {});
    else if (!DIRECT && warp == ADDERS / 32 + 1) load_weights(layout, &map, lists, work);
  }
}

// dx [batch, dim]: the sums of all parts, in a fixed order. A block takes 4 inputs of 64 rows; 64 of its threads every n-th part of n, up to
// MOST_TURNS. Blocks leave registers for loads on their way, and all of the grid at once where D = 768: so n is larger for few slices.
constexpr int MOST_TURNS = 8;
extern "C" __global__ void __launch_bounds__(MOST_TURNS * 64, 3)
hopper_grad_input_sum(const float* __restrict__ partial, T* __restrict__ dx, int batch, int dim, int slices, int parts) {
  __shared__ float4 sums[MOST_TURNS][64];
  __shared__ float tile[4][65];
  const int blocks = dim / 4, slice = blockIdx.x / blocks, d0 = blockIdx.x % blocks * 4;
  const int turns = blockDim.x / 64, turn = threadIdx.x / 64, piece = threadIdx.x % 64;
  float4 sum = {0, 0, 0, 0};
  wait_for_earlier();
  auto add = [&](float4 v) { sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w; };
  constexpr int AT_ONCE = 6;  // on their way together: all, of 96 blocks with four slices
  const i64 part = static_cast<i64>(slices) * dim * 16;
  const float4* const mine = reinterpret_cast<const float4*>(partial + (static_cast<i64>(slice) * dim + d0) * 64) + piece;
#pragma unroll 1
  for (int p = turn; p < parts; p += turns * AT_ONCE) {
    float4 v[AT_ONCE];
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) v[i] = p + turns * i < parts ? __ldcg(mine + (p + turns * i) * part) : float4{0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) add(v[i]);
  }
  sums[turn][piece] = sum;
  __syncthreads();
  if (turn == 0) {
    for (int t = 1; t < turns; t++) add(sums[t][piece]);
    const int b = piece % 16 / 4 * 16 + piece % 4 * 2;  // a piece: rows b, b + 1, b + 8, b + 9
    float* row = tile[piece / 16];
    row[b] = sum.x, row[b + 1] = sum.y, row[b + 8] = sum.z, row[b + 9] = sum.w;
  }
  __syncthreads();
  const int b = slice * 64 + piece;
  if (turn == 0 && b < batch)
    *reinterpret_cast<uint2*>(dx + static_cast<i64>(b) * dim + d0) =
        make_uint2(pack<T>(tile[0][piece], tile[1][piece]), pack<T>(tile[2][piece], tile[3][piece]));
}
