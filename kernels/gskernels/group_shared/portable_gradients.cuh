// What the portable gradient kernels of group_shared share: operands in shared memory, and weight^T dY^T.
//
// dY and weights lie there as rows of 16-byte pieces, permuted within 128 bytes so that the eight rows of any matrix that
// `ldmatrix` loads meet eight banks: `grad_piece`, `weight_piece`.
#pragma once
#include "portable.cuh"

constexpr int M_TILES = K_BLOCK / 16;                  // rows (inputs) of mma tiles: 4, fp32: 2
constexpr int PART_PIECES = PART / V;

DEVICE u32 grad_piece(u32 base, int b, int piece, int across) {  // rows of `across` pieces
  int key = (b & 1) | (b >> 2 & 2) | ((b ^ b << 2) >> 2 & 4);
  return base + (b * across + (piece ^ key)) * 16;
}
DEVICE u32 weight_piece(u32 base, int label, int piece) { return base + (label * 8 + (piece ^ (label & 7))) * 16; }

// c[m][n][2 h + e] += product for input 16 (m0 + m) + 8 h + g of the block and row b0 + 16 (n / 2) + 4 t + 2 (n % 2) + e of
// the batch; `piece` is where the part begins in the rows of dY, `weights` its rows of K_BLOCK.
template <class E, int M, int N> DEVICE void input_product(float (&c)[M][N][4], u32 grads, int across, int piece, int b0,
                                                           u32 weights, int m0, int lane) {
  if constexpr (sizeof(E) == 2) {
    const int matrix = lane >> 3, r = lane & 7, row = b0 + 4 * (r >> 1) + 2 * (matrix >> 1) + (r & 1);
#pragma unroll
    for (int j = 0; j < PART / 16; j++) {
      u32 b[N / 2][4];
#pragma unroll
      for (int n = 0; n < N / 2; n++)
        load_matrices(b[n], grad_piece(grads, row + 16 * n, piece + 2 * j + (matrix & 1), across));
#pragma unroll
      for (int m = 0; m < M; m++) {
        u32 a[4];
        load_matrices_transposed(a, weight_piece(weights, 16 * j + 8 * (matrix >> 1) + r, 2 * (m0 + m) + (matrix & 1)));
#pragma unroll
        for (int n = 0; n < N; n++) mma_16816<E>(c[m][n], a, b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
      }
    }
  } else {
    const int g = lane / 4, t = lane % 4;
#pragma unroll 2
    for (int j = 0; j < PART; j += 4) {
      float a[4][2 * M];
#pragma unroll
      for (int v = 0; v < 4; v++)
#pragma unroll
        for (int m = 0; m < 2 * M; m++) {
          int k = 16 * m0 + 8 * m + g;
          a[v][m] = shared_float(weight_piece(weights, j + v, k / 4) + k % 4 * 4);
        }
#pragma unroll
      for (int i = 0; i < 2 * N; i++) {
        float4 b = shared_float4(grad_piece(grads, b0 + 16 * (i / 4) + 4 * t + i % 4, piece + j / 4, across));
#pragma unroll
        for (int v = 0; v < 4; v++)
#pragma unroll
          for (int m = 0; m < 2 * M; m++) c[m / 2][i / 2][m % 2 * 2 + i % 2] += a[v][m] * number(b, v);
      }
    }
  }
}

// One column of pieces of dY rows, on its way to shared memory: in the background, or by way of registers.
template <int COUNT> struct GradColumn {
  const Element *from, *end;
  int valid, piece;  // numbers that exist; where it goes
  uint4 kept[Y_ALIGNED ? 1 : COUNT];

  // rows first + every * i of the slice, of which row 0 is b0
  DEVICE void fetch(u32 to, int first, int every, int across, i64 b0, int batch, int labels) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      int row = first + every * i;
      bool inside = valid > 0 && b0 + row < batch;
      const Element* at = inside ? from + (b0 + row) * labels : from;
      if constexpr (Y_ALIGNED) copy_async(grad_piece(to, row, piece, across), at, inside ? 16 : 0);
      else kept[i] = load_piece<false>(at, inside ? valid : 0, end);
    }
    copy_commit();
  }
  DEVICE void settle(u32 to, int first, int every, int across) {
    if constexpr (!Y_ALIGNED)
#pragma unroll
      for (int i = 0; i < COUNT; i++) shared_store(grad_piece(to, first + every * i, piece, across), kept[i]);
  }
};

DEVICE uint4 weights_of(const Element* weight, const Part& part, int label, int k, int fan_in, const Element* end) {
  int valid = label < part.count ? fan_in - k : 0;
  return load_piece<W_ALIGNED>(weight + (i64)(part.first + label) * fan_in + k, valid, end);
}
