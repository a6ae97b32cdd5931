// Both gradients, or one of them, from one read of dY, for sm_80 and newer. WITH_INPUT, WITH_WEIGHT: which.
//
// A block takes a tile of WARPS parts and K_BLOCK of their inputs, and steps through the batch 32 rows at a time. dY comes
// to shared memory in rows of the whole tile, a step ahead. SHARE warps take as many neighbouring parts of one group, a
// *run*, each of them an equal share of the inputs. For grad_weight, dw = x^T dY, pieces of x^T rows go from the level-2
// cache straight to registers. For grad_input, weight^T dY^T over the labels of the run is added to dx^T (fp32) by
// reductions in the level-2 cache, whose rate bounds the kernel up to G = 64, in no fixed order.
#include "portable_gradients.cuh"

constexpr int M = M_TILES / SHARE, N = N_TILES * SHARE;  // tiles of dw that a warp sums
constexpr int AT_ONCE = M < 2 ? M : 2;                   // rows of tiles treated at once; more would cost registers

// acc[m][n][2 h + e] += product for the warp's input 2 M g + 2 m + h and the run's label 8 n + 2 t + e (fp32, within a
// part: 2 N_TILES t + 2 n + e), over 32 rows of the batch. input[2 m + h]: that input; x: x^T from the first row on.
template <class E> DEVICE void weight_product(float (&acc)[M][N][4], u32 grads, int across, int piece,
                                              const int (&input)[2 * M], const Element* x, int stride, int lane) {
  const int t = lane % 4;
  if constexpr (sizeof(E) == 2) {
#pragma unroll
    for (int m0 = 0; m0 < M; m0 += AT_ONCE) {
      uint4 a[2 * AT_ONCE];
#pragma unroll
      for (int m = 0; m < 2 * AT_ONCE; m++)
        a[m] = __ldg(reinterpret_cast<const uint4*>(x + (i64)input[2 * m0 + m] * stride + 8 * t));
#pragma unroll
      for (int step = 0; step < 2; step++) {
        int b = place(step, lane & 15);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
          u32 r[4];
          load_matrices_transposed(r, grad_piece(grads, b, piece + n + (lane >> 4), across));
#pragma unroll
          for (int m = 0; m < AT_ONCE; m++) {
            u32 rows[4] = {word(a[2 * m], 2 * step), word(a[2 * m + 1], 2 * step), word(a[2 * m], 2 * step + 1),
                           word(a[2 * m + 1], 2 * step + 1)};
            mma_16816<E>(acc[m0 + m][n], rows, r[0], r[1]);
            mma_16816<E>(acc[m0 + m][n + 1], rows, r[2], r[3]);
          }
        }
      }
    }
  } else {
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      const int at = piece + n / N_TILES * PART_PIECES + (N_TILES * t + n % N_TILES) / 2;
      float sum[2 * M][4] = {};  // of 32 rows: one chain of sums over a large batch would lose digits
#pragma unroll 2
      for (int b = 0; b < 32; b += 4) {
        float4 a[2 * M];
#pragma unroll
        for (int m = 0; m < 2 * M; m++) a[m] = __ldg(reinterpret_cast<const float4*>(x + (i64)input[m] * stride + b));
#pragma unroll
        for (int i = 0; i < 4; i++) {
          float4 grad = shared_float4(grad_piece(grads, b + i, at, across));
#pragma unroll
          for (int m = 0; m < 2 * M; m++)
#pragma unroll
            for (int v = 0; v < 4; v++) sum[m][v] += number(a[m], i) * number(grad, v);
        }
      }
#pragma unroll
      for (int m = 0; m < 2 * M; m++)
#pragma unroll
        for (int v = 0; v < 4; v++) acc[m / 2][n + v / 2][m % 2 * 2 + v % 2] += sum[m][v];
    }
  }
}

// `kept` numbers from `values`, at an address for all of them at once if ALIGNED.
template <bool ALIGNED, int COUNT> DEVICE void store_numbers(Element* to, const Element (&values)[COUNT], int kept) {
  constexpr int BYTES = COUNT * sizeof(Element);
  if constexpr (!ALIGNED) {
#pragma unroll
    for (int v = 0; v < COUNT; v++)
      if (v < kept) to[v] = values[v];
  } else if constexpr (BYTES == 16) {
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(values);
  } else if constexpr (BYTES == 8) {
    *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(values);
  } else {
    *reinterpret_cast<u32*>(to) = *reinterpret_cast<const u32*>(values);
  }
}

DEVICE void add_to(float* to, float a, float b, float c, float d) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
#else
  atomicAdd(to, a);
  atomicAdd(to + 1, b);
  atomicAdd(to + 2, c);
  atomicAdd(to + 3, d);
#endif
}

// Rows targets[0 .. 8) += rows 8 h + g of the tile, 32 columns from b0 on. Neighbouring rows swap halves first, so that
// eight lanes add 128 contiguous bytes of one row.
DEVICE void add_rows(float* sums, const int* targets, const float (&c)[4][4], int h, int stride, int b0, int batch, int lane) {
  const int odd = lane >> 2 & 1, column = b0 + 16 * odd + 4 * (lane & 3);
  float mine[4], theirs[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {  // columns 4 t + i of either half of the row
    float low = c[i / 2][2 * h + i % 2], high = c[2 + i / 2][2 * h + i % 2];
    float other = __shfl_xor_sync(~0u, odd ? low : high, 4);
    mine[i] = odd ? other : low;     // of the even row
    theirs[i] = odd ? high : other;  // of the odd row
  }
  if (column >= batch) return;
  const int even = targets[(lane >> 2) & ~1], next = targets[lane >> 2 | 1];
  if (even >= 0) add_to(sums + (i64)even * stride + column, mine[0], mine[1], mine[2], mine[3]);
  if (next >= 0) add_to(sums + (i64)next * stride + column, theirs[0], theirs[1], theirs[2], theirs[3]);
}

// grid: tiles * k_blocks. Shared memory: two stages of dY; WITH_INPUT, the weights of each part and the inputs of each run.
extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS)
portable_gradients(const Element* __restrict__ xt,         // [D, stride], zero from column B on; null without grad_weight
                   const Element* __restrict__ grad_out,   // [B, L]
                   const Element* __restrict__ weight,     // [L, K]
                   const INDEX* __restrict__ indices,      // [groups, K]
                   Element* __restrict__ grad_weight,      // [L, K]
                   float* __restrict__ grad_xt,            // [copies, D, stride], summed into
                   int batch, int stride, int labels, int fan_in, int group_size, int parts, int k_blocks, int copies,
                   i64 copy_stride) {
  extern __shared__ __align__(128) unsigned char shared[];
  constexpr int ACROSS = WARPS * PART_PIECES, ROWS = WARPS * 32 / ACROSS, STAGE = 32 * ACROSS * 16;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int tile = blockIdx.x / k_blocks, k0 = blockIdx.x % k_blocks * K_BLOCK, run = warp / SHARE, member = warp % SHARE;
  const Part head = part_of(tile * WARPS + run * SHARE, labels, group_size, parts);  // the first part of the run
  const INDEX* list = indices + (i64)head.group * fan_in + k0;
  const int inputs = min(K_BLOCK, fan_in - k0), piece = run * SHARE * PART_PIECES;
  const u32 grads = shared_address(shared), weights = grads + 2 * STAGE;
  int* targets = reinterpret_cast<int*>(shared + 2 * STAGE + WARPS * PART * 128) + run * K_BLOCK;

  const int column = threadIdx.x % ACROSS, first = threadIdx.x / ACROSS;
  const Part source = part_of(tile * WARPS + column / PART_PIECES, labels, group_size, parts);
  GradColumn<32 / ROWS> fill;
  fill.end = grad_out + (i64)batch * labels;
  fill.from = grad_out + source.first + column % PART_PIECES * V;
  fill.valid = source.count - column % PART_PIECES * V;
  fill.piece = column;
  fill.fetch(grads, first, ROWS, ACROSS, 0, batch, labels);

  if (WITH_INPUT) {
    const Element* end = weight + (i64)labels * fan_in;
    const Part part = part_of(tile * WARPS + warp, labels, group_size, parts);
#pragma unroll 4
    for (int i = lane; i < PART * 8; i += 32)
      shared_store(weight_piece(weights + warp * PART * 128, i / 8, i % 8),
                   weights_of(weight, part, i / 8, k0 + i % 8 * V, fan_in, end));
    for (int k = member * 32 + lane; k < K_BLOCK; k += SHARE * 32) targets[k] = k < inputs ? (int)list[k] : -1;
  }
  float acc[M][N][4] = {};
  int input[2 * M];
  const int k_first = 2 * M * (8 * member + g);  // of the lane's inputs, for dw
#pragma unroll
  for (int m = 0; m < 2 * M; m++) input[m] = WITH_WEIGHT ? (int)list[min(k_first + m, inputs - 1)] : 0;
  fill.settle(grads, first, ROWS, ACROSS);
  float* sums = grad_xt + tile % copies * copy_stride;

  for (int b0 = 0, turn = 0; b0 < batch; b0 += 32, turn ^= 1) {
    const u32 stage = grads + turn * STAGE, other = grads + (turn ^ 1) * STAGE;
    copy_wait<0>();
    __syncthreads();
    const bool more = b0 + 32 < batch;
    if (more) fill.fetch(other, first, ROWS, ACROSS, b0 + 32, batch, labels);
    if (WITH_WEIGHT) weight_product<Element>(acc, stage, ACROSS, piece, input, xt + b0, stride, lane);
    if (WITH_INPUT && head.count > 0) {
#pragma unroll
      for (int m = 0; m < M; m++) {
        float c[1][4][4] = {};
#pragma unroll
        for (int s = 0; s < SHARE; s++)
          input_product<Element>(c, stage, ACROSS, piece + s * PART_PIECES, 0, weights + (run * SHARE + s) * PART * 128,
                                 member * M + m, lane);
#pragma unroll
        for (int h = 0; h < 2; h++)
          add_rows(sums, targets + 16 * (member * M + m) + 8 * h, c[0], h, stride, b0, batch, lane);
      }
    }
    if (more) fill.settle(other, first, ROWS, ACROSS);
  }
  if (!WITH_WEIGHT) return;
#pragma unroll
  for (int s = 0; s < SHARE; s++) {
    const Part part = part_of(tile * WARPS + run * SHARE + s, labels, group_size, parts);
#pragma unroll
    for (int n = 0; n < N_TILES; n++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        int label = HALF ? 8 * n + 2 * t + e : 2 * N_TILES * t + 2 * n + e;
        if (label >= part.count || k_first >= inputs) continue;
        __align__(16) Element values[2 * M];
#pragma unroll
        for (int m = 0; m < 2 * M; m++) values[m] = from_float<Element>(acc[m / 2][s * N_TILES + n][m % 2 * 2 + e]);
        Element* to = grad_weight + (i64)(part.first + label) * fan_in + k0 + k_first;
        store_numbers<W_ALIGNED>(to, values, inputs - k_first);
      }
  }
}
