// Both gradients, or one of them, from one read of dY, for sm_80 and newer. WITH_INPUT, WITH_WEIGHT: which.
//
// A block takes a tile of WARPS parts and K_BLOCK of their inputs, and steps through the batch 32 rows at a time. dY comes
// to shared memory in rows of the whole tile, a step ahead; each warp multiplies its part. For grad_weight, dw = x^T dY,
// pieces of x^T rows go from the level-2 cache straight to registers, and dw leaves in pieces. For grad_input,
// weight^T dY^T is added to dx^T (fp32) by reductions in the level-2 cache, in no fixed order.
#include "portable_gradients.cuh"

// acc[m][n][2 h + e] += product for input 2 M_TILES g + 2 m + h of the block and label 8 n + 2 t + e of the part (fp32:
// 2 N_TILES t + 2 n + e), over 32 rows of the batch. input[2 m + h]: that input; x: x^T from the first of the rows on.
template <class E> DEVICE void weight_product(float (&acc)[M_TILES][N_TILES][4], u32 grads, int across, int piece,
                                              const int (&input)[2 * M_TILES], const Element* x, int stride, int lane) {
  const int t = lane % 4;
  if constexpr (sizeof(E) == 2) {
    constexpr int AT_ONCE = 2;  // rows of tiles; four would need 32 registers more
#pragma unroll
    for (int m0 = 0; m0 < M_TILES; m0 += AT_ONCE) {
      uint4 a[2 * AT_ONCE];
#pragma unroll
      for (int m = 0; m < 2 * AT_ONCE; m++)
        a[m] = __ldg(reinterpret_cast<const uint4*>(x + (i64)input[2 * m0 + m] * stride + 8 * t));
#pragma unroll
      for (int step = 0; step < 2; step++) {
        int b = place(step, lane & 15);
#pragma unroll
        for (int n = 0; n < N_TILES; n += 2) {
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
#pragma unroll 2
    for (int b = 0; b < 32; b += 4) {
      float4 a[2 * M_TILES];
#pragma unroll
      for (int m = 0; m < 2 * M_TILES; m++) a[m] = __ldg(reinterpret_cast<const float4*>(x + (i64)input[m] * stride + b));
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int n = 0; n < N_TILES; n += 2) {
          float4 grad = shared_float4(grad_piece(grads, b + i, piece + (N_TILES * t + n) / 2, across));
#pragma unroll
          for (int m = 0; m < 2 * M_TILES; m++)
#pragma unroll
            for (int v = 0; v < 4; v++) acc[m / 2][n + v / 2][m % 2 * 2 + v % 2] += number(a[m], i) * number(grad, v);
        }
    }
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

// grid: tiles * k_blocks. Shared memory: two stages of dY; WITH_INPUT, the weights and inputs of each part.
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
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4;
  const int tile = blockIdx.x / k_blocks, k0 = blockIdx.x % k_blocks * K_BLOCK;
  const Part part = part_of(tile * WARPS + warp, labels, group_size, parts);
  const INDEX* list = indices + (i64)part.group * fan_in + k0;
  const int inputs = min(K_BLOCK, fan_in - k0);
  const u32 grads = shared_address(shared), weights = grads + 2 * STAGE + warp * PART * 128;

  const int column = threadIdx.x % ACROSS, first = threadIdx.x / ACROSS;
  const Part source = part_of(tile * WARPS + column / PART_PIECES, labels, group_size, parts);
  GradColumn<32 / ROWS> fill;
  fill.end = grad_out + (i64)batch * labels;
  fill.from = grad_out + source.first + column % PART_PIECES * V;
  fill.valid = source.count - column % PART_PIECES * V;
  fill.piece = column;
  fill.fetch(grads, first, ROWS, ACROSS, 0, batch, labels);

  int* targets = reinterpret_cast<int*>(shared + 2 * STAGE + WARPS * PART * 128);
  if (WITH_INPUT) {
    const Element* end = weight + (i64)labels * fan_in;
#pragma unroll 4
    for (int i = lane; i < PART * 8; i += 32)
      shared_store(weight_piece(weights, i / 8, i % 8), weights_of(weight, part, i / 8, k0 + i % 8 * V, fan_in, end));
    for (int k = lane; k < K_BLOCK; k += 32) targets[warp * K_BLOCK + k] = k < inputs ? (int)list[k] : -1;
  }
  float acc[M_TILES][N_TILES][4] = {};
  int input[2 * M_TILES];
#pragma unroll
  for (int m = 0; m < 2 * M_TILES; m++) input[m] = WITH_WEIGHT ? (int)list[min(2 * M_TILES * g + m, inputs - 1)] : 0;
  fill.settle(grads, first, ROWS, ACROSS);
  float* sums = grad_xt + tile % copies * copy_stride;

  for (int b0 = 0, turn = 0; b0 < batch; b0 += 32, turn ^= 1) {
    const u32 stage = grads + turn * STAGE, other = grads + (turn ^ 1) * STAGE;
    copy_wait<0>();
    __syncthreads();
    const bool more = b0 + 32 < batch;
    if (more) fill.fetch(other, first, ROWS, ACROSS, b0 + 32, batch, labels);
    if (WITH_WEIGHT) weight_product<Element>(acc, stage, ACROSS, warp * PART_PIECES, input, xt + b0, stride, lane);
    if (WITH_INPUT && part.count > 0) {
#pragma unroll
      for (int b = 0; b < 32; b += 16) {
        if (b0 + b >= batch) break;
#pragma unroll
        for (int m0 = 0; m0 < M_TILES; m0 += 2) {
          float c[2][2][4] = {};
          input_product<Element>(c, stage, ACROSS, warp * PART_PIECES, b, weights, m0, lane);
#pragma unroll
          for (int m = 0; m < 2; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
              int target = targets[warp * K_BLOCK + 16 * (m0 + m) + 8 * h + g];
              float* to = sums + (i64)target * stride + b0 + b + 4 * (lane % 4);
              if (target >= 0) add_to(to, c[m][0][2 * h], c[m][0][2 * h + 1], c[m][1][2 * h], c[m][1][2 * h + 1]);
            }
        }
      }
    }
    if (more) fill.settle(other, first, ROWS, ACROSS);
  }
  if (!WITH_WEIGHT) return;
#pragma unroll
  for (int n = 0; n < N_TILES; n++)
#pragma unroll
    for (int e = 0; e < 2; e++) {
      int label = HALF ? 8 * n + 2 * (lane % 4) + e : 2 * N_TILES * (lane % 4) + 2 * n + e, kept = inputs - V * g;
      if (label >= part.count || kept <= 0) continue;
      Element* to = grad_weight + (i64)(part.first + label) * fan_in + k0 + V * g;
      Element values[V];
#pragma unroll
      for (int v = 0; v < V; v++) values[v] = from_float<Element>(acc[v / 2][n][v % 2 * 2 + e]);
      if (W_ALIGNED) {
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<uint4*>(values);
      } else {
#pragma unroll
        for (int v = 0; v < V; v++)
          if (v < kept) to[v] = values[v];
      }
    }
}
