// fixed_fan_in/cuda, grad_input: dX^T[d, :] = sum over the labels that read d of w dY^T[label, :].
//
// The forward turned around: the rows are those of dY^T, CHUNK of them a chunk, turned in shared memory; the lists are
// those of the labels that read an input (`cuda_gather.Plan`), SHARE inputs side by side. The lists of a warp's inputs follow
// one another, so that entries come as one stream. A block adds up a slice of the batch over its chunks in memory of its
// own (`partial`): no atomics, a fixed order, and what was there before is read while the list is worked on.
//
// Macros beside those of cuda.cuh: WARPS, CHUNK, SOURCE (the type of `source`).
#include "cuda.cuh"
#include "cuda_square.cuh"

constexpr int THREADS = WARPS * 32;

extern "C" __global__ void __launch_bounds__(THREADS, 2)
grad_input(const T* grad, const T* weights, const INDEX* local, const i64* offsets, float* partial, int batch, int stride,
           int dim, int chunks, i64 labels) {
  extern __shared__ __align__(128) char shared[];
  const int warp = threadIdx.x / 32, first_column = blockIdx.y * COLUMNS;
  const int groups = cdiv(dim, SHARE), each = cdiv(groups, WARPS), mine = warp * each, last = min(groups, mine + each);
  const Place place;
  const Rows rows{shared + place.unit * 16};
  float* own = partial + i64(blockIdx.x) * dim * stride + first_column + place.unit * VALUES;
  const bool even = labels % 2 == 0;
  for (int chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    const i64 first = i64(chunk) * CHUNK;
    for (int i = threadIdx.x; i < SQUARES<CHUNK>; i += THREADS) {
      int b, l;
      square_place<CHUNK>(i, b, l);
      Square square;
      square.load(grad, batch, labels, first_column + b, first + l, even);
      square.store(shared, ROW, b, l);
    }
    __syncthreads();
    if (mine < last) {
      const i64* ends = offsets + i64(chunk) * groups + mine;
      i64 at = ends[0] + place.label * 8, end = ends[1];
      Entries now, next;
      now.load(weights + at, local + at);
      next.load(weights + at + SHARE * 8, local + at + SHARE * 8);
      for (int group = mine; group < last; ++group) {
        const i64 following = group + 1 < last ? ends[group - mine + 2] : 0;
        const int d = group * SHARE + place.label;
        float* to = own + i64(d) * stride;
        float old[VALUES] = {}, sums[2][VALUES] = {};
        if (chunk > blockIdx.x && d < dim) load_floats(old, to);
        for (; at < end; at += SHARE * 8) {
          const Entries entries = now;
          now = next;
          next.load(weights + at + SHARE * 16, local + at + SHARE * 16);  // the arrays are longer by that much
          add_entries(sums, place, rows, entries);
        }
#pragma unroll
        for (int v = 0; v < VALUES; ++v) old[v] += sums[0][v] + sums[1][v];
        if (d < dim) store_floats(to, old);
        end = following;
      }
    }
    __syncthreads();
  }
}

// weights[i] = weight[source[i]], or 0 where source[i] is negative.
extern "C" __global__ void __launch_bounds__(256) take(const T* weight, const SOURCE* source, T* weights, i64 count) {
  for (i64 i = i64(blockIdx.x) * 256 + threadIdx.x; i < count; i += i64(gridDim.x) * 256) {
    const SOURCE from = source[i];
    weights[i] = from < 0 ? from_float<T>(0.f) : weight[from];
  }
}
