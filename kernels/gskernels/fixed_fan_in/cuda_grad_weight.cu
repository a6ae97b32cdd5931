// fixed_fan_in/cuda, grad_weight: dw[l, k] = <dY[:, l], X[:, I[l, k]]>.
//
// As in the forward, a block keeps a slice of X^T and walks through tiles of TILE labels; it turns the tile of dY in
// shared memory, from registers that were filled a tile ahead. A warp takes 16 entries of a label at a time: lane
// (g, t) = (lane / 4, lane % 4) reads pieces of 16 bytes of the rows of entries 2 g and 2 g + 1, the four lanes of a
// row 64 bytes, and the dot products over the batch are taken by mma.m16n8k16, whose every A element is then of use. Rows
// of odd g begin with the second 64 bytes, so that neighbouring rows use different banks; so does dY's row of odd
// columns, and of D[m, n] those count where m and n are alike. No reduction across lanes is left.
//
// Slices of the batch are launched one after the other: `before` holds the sums of those before, `after` takes them
// where more follow; the last writes dw.
//
// Macros beside those of cuda.cuh: FAN_IN (any), WARPS.
#include "cuda.cuh"
#include "cuda_square.cuh"

constexpr int K = FAN_IN;
constexpr int TILE = 64;
constexpr int PIECES = ROW / 64;
constexpr int GRAD_PITCH = ROW + 16;
constexpr int THREADS = WARPS * 32;
constexpr int HELD = cdiv(SQUARES<TILE>, THREADS);  // squares of a thread

// sums[0] += <x of row g, dy>, sums[1] += <x of row g + 8, dy> over 16 bytes a lane; see `total`.
template <class E = T> DEVICE void dot(float (&sums)[2][4], const uint4& x0, const uint4& x1, const uint4& dy) {
  if constexpr (sizeof(E) == 2) {
    const u32 first[4] = {x0.x, x1.x, x0.y, x1.y}, second[4] = {x0.z, x1.z, x0.w, x1.w};
    mma_16816<E>(sums[0], first, dy.x, dy.y);
    mma_16816<E>(sums[1], second, dy.z, dy.w);
  } else {
    const float* a = reinterpret_cast<const float*>(&x0);
    const float* b = reinterpret_cast<const float*>(&x1);
    const float* d = reinterpret_cast<const float*>(&dy);
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[0][0] += a[i] * d[i], sums[1][0] += b[i] * d[i];
  }
}

DEVICE float2 total(const float (&sums)[2][4], int g) {
  if constexpr (HALF) {
    const bool odd = g % 2;
    return make_float2(odd ? sums[0][1] + sums[1][1] : sums[0][0] + sums[1][0],
                       odd ? sums[0][3] + sums[1][3] : sums[0][2] + sums[1][2]);
  }
  float2 v = make_float2(sums[0][0], sums[1][0]);
#pragma unroll
  for (int other = 1; other < 4; other *= 2) {
    v.x += __shfl_xor_sync(~0u, v.x, other);
    v.y += __shfl_xor_sync(~0u, v.y, other);
  }
  return v;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
grad_weight(const T* xt, const T* grad, const INDEX* index, const float* before, float* after, T* dw, int first_column,
            int batch, int stride, int dim, i64 labels) {
  extern __shared__ __align__(128) char shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  char* turned = shared + (RESIDENT ? dim * ROW : 0);
#if RESIDENT
  copy_rows(shared_address(shared), reinterpret_cast<const char*>(xt + first_column), dim, i64(stride) * sizeof(T));
  const char* rows = shared;
  const u32 pitch = ROW;
#else
  const char* rows = reinterpret_cast<const char*>(xt + first_column);
  const u64 pitch = u64(stride) * sizeof(T);
#endif
  const bool even = labels % 2 == 0;
  const i64 tiles = cdiv<i64>(labels, TILE);
  Square held[HELD];
  auto fetch = [&](i64 tile) {
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
      int b, l;
      square_place<TILE>(threadIdx.x + i * THREADS, b, l);
      if (b < COLUMNS && tile < tiles) held[i].load(grad, batch, labels, first_column + b, tile * TILE + l, even);
    }
  };
  auto list = [&](i64 l, int k) {
    l = min(l, labels - 1);
    if constexpr (K % 2 == 0 && sizeof(INDEX) == 2) {
      const u32 both = k < K ? __ldg(reinterpret_cast<const u32*>(index + l * K + k)) : 0;
      return make_uint2(both & 0xFFFF, both >> 16);
    }
    return make_uint2(k < K ? index[l * K + k] : 0, k + 1 < K ? index[l * K + k + 1] : 0);
  };
  fetch(blockIdx.x);
  uint2 pair = list(i64(blockIdx.x) * TILE + warp, t * 16 + g * 2);  // a step ahead
  for (i64 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
      int b, l;
      square_place<TILE>(threadIdx.x + i * THREADS, b, l);
      if (b < COLUMNS) held[i].store(turned, GRAD_PITCH, b, l);
    }
    __syncthreads();
    fetch(tile + gridDim.x);
    for (int local = warp; local < TILE; local += WARPS) {
      const i64 l = tile * TILE + local;
      if (l >= labels) break;
      uint4 dy[PIECES];
#pragma unroll
      for (int p = 0; p < PIECES; ++p)
        dy[p] = *reinterpret_cast<const uint4*>(turned + local * GRAD_PITCH + (p ^ (g & 1)) * 64 + t * 16);
#pragma unroll 1
      for (int k0 = 0; k0 < K; k0 += 64) {
        const int mine = k0 + t * 16 + g * 2;  // this lane reads, and at the end writes, entries mine and mine + 1
        const u32 row0 = pair.x, row1 = pair.y;
        if (k0 + 64 < K) pair = list(l, mine + 64);
        else pair = list(local + WARPS < TILE ? l + WARPS : (tile + gridDim.x) * TILE + warp, t * 16 + g * 2);
        float2 result = make_float2(0.f, 0.f);
#pragma unroll(K <= 64 ? 2 : 1)
        for (int j = 0; j < 4; ++j) {
          if (k0 + j * 16 >= K) break;
          const char* a = rows + __shfl_sync(~0u, row0, g * 4 + j) * pitch + t * 16;
          const char* b = rows + __shfl_sync(~0u, row1, g * 4 + j) * pitch + t * 16;
          float sums[2][4] = {};
#pragma unroll
          for (int p = 0; p < PIECES; ++p) {
            const int at = (p ^ (g & 1)) * 64;
            dot(sums, *reinterpret_cast<const uint4*>(a + at), *reinterpret_cast<const uint4*>(b + at), dy[p]);
          }
          const float2 v = total(sums, g);
          if (t == j) result = v;
        }
        const i64 at = l * K + mine;
        if (before) {
          if (mine < K) result.x += before[at];
          if (mine + 1 < K) result.y += before[at + 1];
        }
        if (after) {
          if (mine < K) after[at] = result.x;
          if (mine + 1 < K) after[at + 1] = result.y;
        } else {
          if (mine < K) dw[at] = from_float<T>(result.x);
          if (mine + 1 < K) dw[at + 1] = from_float<T>(result.y);
        }
      }
    }
    __syncthreads();
  }
}
