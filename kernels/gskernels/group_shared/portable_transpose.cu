// Between rows of the batch and rows of inputs. Blocks of 256 threads move squares of 32 x 32.
#include "common.cuh"

typedef ELEMENT Element;

// As `transpose_square` has it, a square a block.
extern "C" __global__ void __launch_bounds__(256)
portable_transpose(const Element* __restrict__ x, Element* __restrict__ out, int batch, int dim, int stride) {
  transpose_square(blockIdx.x, x, out, batch, dim, stride);
}

// out[b, d] = the sum over p = 0, 1, ... of sums[p, d, b], in that order.  sums [count, dim, stride], out [batch, dim]
extern "C" __global__ void __launch_bounds__(256)
portable_sum(const float* __restrict__ sums, Element* __restrict__ out, int batch, int dim, int stride, int count) {
  __shared__ float square[32][33];
  const int across = cdiv(dim, 32), d0 = blockIdx.x % across * 32, b0 = blockIdx.x / across * 32;
  const int column = threadIdx.x % 32, first = threadIdx.x / 32;
  const bool inside = b0 + column < batch;
  float total[4] = {};
#pragma unroll 4
  for (int p = 0; p < count; p++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      int d = d0 + first + 8 * i;
      if (inside && d < dim) total[i] += sums[((i64)p * dim + d) * stride + b0 + column];
    }
#pragma unroll
  for (int i = 0; i < 4; i++) square[first + 8 * i][column] = total[i];
  __syncthreads();
  for (int row = first; row < 32; row += 8)
    if (b0 + row < batch && d0 + column < dim) out[(i64)(b0 + row) * dim + d0 + column] = from_float<Element>(square[column][row]);
}
