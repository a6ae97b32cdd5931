// dW = dY^T X over groups, for Hopper.
//
// A block holds X^T of the whole batch, at most 128 rows, in shared memory and stays on its multiprocessor. Each of its
// warps works on its own, 32 labels at a time: dY goes from global memory straight to the registers that mma wants it in
// (lane (r, t) reads labels 4r to 4r + 3 of rows 2t and 2t + 1), 32 labels early, so there is no barrier and no staging,
// and rows of dY may begin anywhere; the rows of X^T that a group reads are gathered by ldmatrix.
//
// Macros: ELEMENT, K (multiple of 64), G (16 or 32 labels that share a list; 32 stands for every multiple of it), LIST
// (labels of a real group), ROWS (64, 128), ALIGNED (rows of dY begin on 8 bytes: 2, on 4: 1, on 2: 0).
#include "hopper.cuh"

constexpr int WARPS = 8, PARTS = K / 64, STEPS = ROWS / 16, LISTS = 32 / G;
constexpr int WORDS = ALIGNED ? 4 : 5;  // of 32 bits, for 4 labels of two rows: an odd row begins in the middle of one

DEVICE u32 transposed(u32 v) {  // an 8 x 8 matrix of 16-bit numbers across the warp
  u32 o;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(o) : "r"(v));
  return o;
}
DEVICE uint2 load_pair(const void* p) {
  uint2 v;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
hopper_grad_weight(const T* __restrict__ x, const T* __restrict__ dy, const u16* __restrict__ lists, T* __restrict__ dw, int batch,
                   int dim, int labels) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, t = lane % 4;
  const u32 xt = shared_address(shared);
  const int units = cdiv(labels, 32), first = blockIdx.x + warp * gridDim.x, stride = gridDim.x * WARPS;
  const i64 total = static_cast<i64>(batch) * labels;
  u32 y[STEPS][2][WORDS];
  // Step s of the 32 labels from `label`: rows 2t, 2t + 1 and 2t + 8, 2t + 9 of 16.
  auto load = [&](int label, int s, u32 (&v)[2][WORDS]) {
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
      for (int odd = 0; odd < 2; odd++) {
        const int row = s * 16 + h * 8 + 2 * t + odd;
        const bool in = row < batch && label + 4 * r < labels;
        i64 at = static_cast<i64>(row) * labels + label + 4 * r;
        if (ALIGNED == 2) {
          const uint2 w = in ? load_pair(dy + at) : make_uint2(0, 0);
          v[h][2 * odd] = w.x, v[h][2 * odd + 1] = w.y;
        } else {
          if (odd && !ALIGNED) at--;
#pragma unroll
          for (int i = 0; i < (odd ? WORDS - 2 : 2); i++) {
            const i64 word = at + 2 * i;
            v[h][2 * odd + i] = !in || word >= total ? 0 : word + 1 < total ? load_word(dy + word) : reinterpret_cast<const u16*>(dy)[word];
          }
        }
      }
  };
  const int last_list = cdiv(labels, LIST) - 1;
  u32 next[LISTS][4];  // rows of X^T, a lane one of 16
  auto fetch = [&](int label, int part) {
#pragma unroll
    for (int p = 0; p < LISTS; p++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        next[p][i] = lists[static_cast<i64>(min((label + p * G) / LIST, last_list)) * K + part * 64 + i * 16 + (lane & 15)];
  };
  if (first < units) {
    fetch(first * 32, 0);
#pragma unroll
    for (int s = 0; s < STEPS; s++) load(first * 32, s, y[s]);
  }
#pragma unroll 1
  for (int half = 0; half < ROWS / 64; half++) load_slice<8, 2>(xt + half * dim * 128, x, half * 64, batch, dim);
  __syncthreads();

  // A tile of 8 labels x 64 inputs, from the order of mma's results to rows of dW.
  auto store = [&](const float (&d)[4][4], int q, int label, int k) {
    const int j = label + (G == 16 ? q / 2 * 16 + (r < 4 ? 4 * r : 4 * r - 14) + q % 2 : 4 * r + q);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const u32 low = transposed(pack<T>(d[i][0], d[i][1])), high = transposed(pack<T>(d[i][2], d[i][3]));
      const u32 other = __shfl_xor_sync(~0u, t & 1 ? low : high, 1);
      const uint2 v = t & 1 ? make_uint2(other, high) : make_uint2(low, other);
      if (j < labels) *reinterpret_cast<uint2*>(dw + static_cast<i64>(j) * K + k * 64 + 16 * i + (t & 1 ? 6 + 2 * t : 2 * t)) = v;
    }
  };
  int part = 0;  // 64 of the K inputs
  for (int unit = first; unit < units; unit += part ? 0 : stride) {
    const int label = unit * 32, label_after = unit + stride < units ? label + stride * 32 : labels;
    const bool last = part == PARTS - 1;
    u32 now[LISTS][4];
#pragma unroll
    for (int p = 0; p < LISTS; p++)
#pragma unroll
      for (int i = 0; i < 4; i++) now[p][i] = next[p][i];
    if (!last) fetch(label, part + 1);
    else if (label_after < labels) fetch(label_after, 0);
    float sums[4][4][4] = {};  // 4 tiles of 8 labels, 4 of 16 inputs
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
      u32 (&v)[2][WORDS] = y[s];
      u32 b[4][2];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        u32 even[2] = {v[h][0], v[h][1]}, odd[2] = {v[h][2], v[h][3]};
        if (!ALIGNED) odd[0] = __byte_perm(v[h][2], v[h][3], 0x5432), odd[1] = __byte_perm(v[h][3], v[h][WORDS - 1], 0x5432);
        if (G == 16) {  // lanes r < 4 hold the first 16 labels, the others the second: all need labels of both
          const u32 e = __shfl_xor_sync(~0u, r < 4 ? even[1] : even[0], 16), o = __shfl_xor_sync(~0u, r < 4 ? odd[1] : odd[0], 16);
          if (r < 4) even[1] = e, odd[1] = o;
          else even[0] = e, odd[0] = o;
        }
#pragma unroll
        for (int q = 0; q < 4; q++) b[q][h] = __byte_perm(even[q / 2], odd[q / 2], q & 1 ? 0x7632 : 0x5410);
      }
      const u32 piece = 2 * s + (lane >> 4);
#pragma unroll
      for (int p = 0; p < LISTS; p++) {
        u32 a[4][4];
#pragma unroll
        for (int i = 0; i < 4; i++)
          load_matrices(a[i], xt + (piece >> 3) * dim * 128 + now[p][i] * 128 + (((piece & 7) ^ (now[p][i] & 7)) << 4));
#pragma unroll
        for (int q = p * (4 / LISTS); q < (p + 1) * (4 / LISTS); q++)
#pragma unroll
          for (int i = 0; i < 4; i++) mma_16816<T>(sums[q][i], a[i], b[q][0], b[q][1]);
      }
      if (last) load(label_after, s, v);
    }
#pragma unroll
    for (int q = 0; q < 4; q++) store(sums[q], q, label, part);
    part = last ? 0 : part + 1;
  }
}
