// fixed_fan_in/cuda, the ways to and from dense matrices. Macros: ELEMENT, INDEX, WARPS (of `expand`).
#include "common.cuh"

typedef ELEMENT T;

// dense[l, :] = zeros, but weight[l, k] at index[l, k]. A warp a label: the row is made in shared memory (D numbers a
// warp, on 16 bytes) and leaves in pieces of 16 bytes.
extern "C" __global__ void __launch_bounds__(WARPS * 32)
expand(const T* weight, const INDEX* index, T* dense, int labels, int fan_in, int dim) {
  extern __shared__ __align__(16) char shared[];
  constexpr int PIECE = 16 / sizeof(T);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, pieces = cdiv(dim, PIECE);
  uint4* wide = reinterpret_cast<uint4*>(shared) + warp * pieces;
  T* row = reinterpret_cast<T*>(wide);
  for (int i = lane; i < pieces; i += 32) wide[i] = make_uint4(0, 0, 0, 0);
  __syncwarp();
  for (int l = blockIdx.x * WARPS + warp; l < labels; l += gridDim.x * WARPS) {
    const T* weights = weight + i64(l) * fan_in;
    const INDEX* list = index + i64(l) * fan_in;
    T* to = dense + i64(l) * dim;
    for (int k = lane; k < fan_in; k += 32) row[list[k]] = weights[k];
    __syncwarp();
    if (dim % PIECE == 0)
      for (int i = lane; i < pieces; i += 32) reinterpret_cast<uint4*>(to)[i] = wide[i];
    else
      for (int i = lane; i < dim; i += 32) to[i] = row[i];
    __syncwarp();
    for (int k = lane; k < fan_in; k += 32) row[list[k]] = from_float<T>(0.f);
    __syncwarp();
  }
}

// weight[i] = dense[i / K, index[i]].
extern "C" __global__ void __launch_bounds__(256)
collect(const T* dense, const INDEX* index, T* weight, i64 count, int fan_in, int dim) {
  for (i64 i = i64(blockIdx.x) * 256 + threadIdx.x; i < count; i += i64(gridDim.x) * 256)
    weight[i] = dense[(count < (1ll << 31) ? u32(i) / u32(fan_in) : i / fan_in) * dim + index[i]];
}

// to[c, r] = from[r, c] for r < rows, zeros for the rest of `stride`.
extern "C" __global__ void __launch_bounds__(256) transpose(const T* from, T* to, int rows, int columns, int stride) {
  __shared__ T tile[32][33];
  const int lane = threadIdx.x % 32, first = threadIdx.x / 32, c0 = blockIdx.x * 32, r0 = blockIdx.y * 32;
  for (int i = first; i < 32; i += 8)
    tile[i][lane] = r0 + i < rows && c0 + lane < columns ? from[i64(r0 + i) * columns + c0 + lane] : from_float<T>(0.f);
  __syncthreads();
  for (int i = first; i < 32; i += 8)
    if (c0 + i < columns && r0 + lane < stride) to[i64(c0 + i) * stride + r0 + lane] = tile[lane][i];
}
