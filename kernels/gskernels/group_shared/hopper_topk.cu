// The largest logit of every tile of 64 labels and every batch row, for Hopper: products as in hopper_forward.cu, no Y.
//
// A block holds X^T of one slice of 64 batch rows in shared memory and stays on its multiprocessor. Each of its
// warpgroups computes a run of neighbouring tiles of 64 rows x 64 labels on its own; of each it keeps a number a row, and
// stores those of a window of eight at once. Four lanes have 16 columns each of the same two rows.
//
// Who loads also turns the lists, so that a lane finds all that it needs of a tile's in one place, as pieces of X^T.
//
// Macros: ELEMENT, K (multiple of 64), G (16, 32 or 64 labels that share a list), LIST (labels of a real group, a multiple
// of G), WARPGROUPS, STAGES, BIAS (0, 1), HINTS (0, 1: store what is known of a tile's parts, as topk.cuh says).
#include "hopper.cuh"
#include "topk.cuh"

constexpr int PRODUCTS = 64 / G;  // of a tile
constexpr int WEIGHT_BYTES = 64 * K * 2, LIST_BYTES = PRODUCTS * K * 2;
constexpr int THREADS = WARPGROUPS * 160;
constexpr int ROOM = (WARPGROUPS > 2 ? 128 : 256) / K;  // products whose operands have registers at the same time
constexpr int TOGETHER = ROOM < 1 ? 1 : ROOM < PRODUCTS ? ROOM : PRODUCTS;

// What one lane reads of lists: of one of 16 residues, inputs 16 apart. A word is two, each 8 times the input, plus it mod 8:
// the number of its first piece of 16 bytes in X^T, turned.
constexpr int WORDS = K / 32;  // of a product
DEVICE u32 first_piece(u32 input) { return input * 8 + input % 8; }

// Of what wgmma wants to know of a matrix the lower word alone has its address, in 16 bytes, with room: one addition.
struct Matrix {
  u32 low, high;
  DEVICE explicit Matrix(u64 m) : low(static_cast<u32>(m)), high(static_cast<u32>(m >> 32)) {}
  DEVICE u64 operator+(u32 pieces) const { return static_cast<u64>(high) << 32 | (low + pieces); }
};

// Two pairs of 64-bit words or one at a time, as they are aligned.
template <int N> DEVICE void load_words(u32 (&v)[N], u32 at) {
#pragma unroll
  for (int i = 0; i < N; i += N % 4 ? 2 : 4)
    if constexpr (N % 4) asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v[i]), "=r"(v[i + 1]) : "r"(at + i * 4) : "memory");
    else asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v[i]), "=r"(v[i + 1]), "=r"(v[i + 2]), "=r"(v[i + 3]) : "r"(at + i * 4) : "memory");
}

// Not before what stands before it: while products run, there are no registers for it.
DEVICE float load_late(const T* from) {
  u16 v;
  asm volatile("ld.global.u16 %0, [%1];" : "=h"(v) : "l"(from) : "memory");
  return to_float(*reinterpret_cast<T*>(&v));
}

DEVICE float larger(float a, float b) {  // NaN if either is
  float v;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(v) : "f"(a), "f"(b));
  return v;
}

// maxima [batch, stride] fp32, NaN where a logit is; hints: see topk.cuh, `quads` for each pair of rows. run: tiles of a
// warpgroup, an even number.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
hopper_topk_maxima(const __grid_constant__ TensorMap weights, const T* __restrict__ x, const u16* __restrict__ lists,
                   const T* __restrict__ bias, float* __restrict__ maxima, u32* __restrict__ hints, int batch, int dim,
                   int labels, int stride, int slices, int run, int quads) {
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ __align__(8) u64 barriers[2 * WARPGROUPS * STAGES];
  start_next();
  // The same for all lanes, and the compiler knows: what follows from it goes to uniform registers.
  const int number = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const bool loads = number >= WARPGROUPS * 4;
  const int group = loads ? number - WARPGROUPS * 4 : number / 4, warp = number % 4;
  const int slice = blockIdx.x % slices, part = blockIdx.x / slices;
  const u32 xt = shared_address(shared), ring = xt + dim * 128 + group * (STAGES * WEIGHT_BYTES);
  const u32 turned = xt + dim * 128 + WARPGROUPS * STAGES * WEIGHT_BYTES + group * STAGES * LIST_BYTES;
  const u32 full = shared_address(barriers + group * STAGES), empty = full + WARPGROUPS * STAGES * 8;
  if (threadIdx.x < 2 * WARPGROUPS * STAGES) mbarrier_init(shared_address(barriers + threadIdx.x), threadIdx.x < WARPGROUPS * STAGES ? 1 : 4);
  mbarrier_fence();
  __syncthreads();

  const int first = (part * WARPGROUPS + group) * run, end = min(first + run, cdiv(labels, 64));
  if (loads) {
    const bool one = elect();
    // A lane turns 8 bytes at a time: of residue r, product p and 64 inputs c, at [r][p][c].
    constexpr int CHUNKS = K / 64, TURNS = cdiv(PRODUCTS * K / 4, 32);
    u32 next[TURNS][2];
    auto ask = [&](int tile) {
#pragma unroll
      for (int i = 0; i < TURNS; i++) {
        const int n = i * 32 + lane, c = n % CHUNKS, p = n / CHUNKS % PRODUCTS, r = n / CHUNKS / PRODUCTS % 16;
        const int label = tile * 64 + p * G;
        u32 input[4] = {};  // lists that the last tile lacks would name any row: zero is one
        if (label < labels && tile < end) {
          const u16* list = lists + static_cast<i64>(label / LIST) * K + c * 64 + r;
#pragma unroll
          for (int j = 0; j < 4; j++) input[j] = __ldg(list + j * 16);
        }
        next[i][0] = first_piece(input[0]) | first_piece(input[1]) << 16;
        next[i][1] = first_piece(input[2]) | first_piece(input[3]) << 16;
      }
    };
    ask(first);
    for (int tile = first, stage = 0, phase = 1; tile < end; tile++) {
      mbarrier_wait(empty + 8 * stage, phase);
#pragma unroll
      for (int i = 0; i < TURNS; i++)
        if (PRODUCTS * K / 4 % 32 == 0 || i * 32 + lane < PRODUCTS * K / 4)
          asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(turned + stage * LIST_BYTES + (i * 32 + lane) * 8), "r"(next[i][0]), "r"(next[i][1]) : "memory");
      __syncwarp();
      if (one) {
        mbarrier_expect(full + 8 * stage, WEIGHT_BYTES);
#pragma unroll
        for (int k = 0; k < K / 64; k++) tma_load(ring + stage * WEIGHT_BYTES + k * 8192, &weights, full + 8 * stage, k * 64, tile * 64);
      }
      ask(tile + 1);
      if (++stage == STAGES) stage = 0, phase ^= 1;
    }
    return;
  }
  load_slice<WARPGROUPS * 4, WARPGROUPS == 4 ? 6 : 8>(xt, x, slice * 64, batch, dim);
  barrier(1, WARPGROUPS * 128);

  if (first >= end) return;
  const Matrix matrix(wgmma_matrix(ring, 16, 1024, 1));
  // Pieces of 16 bytes that this lane names, and where its words of the lists are.
  const u32 pieces = (2 * warp + ((lane >> 3) & 1)) * 0x10001;
  const u32 words = turned + (((lane >> 4) << 3) + (lane & 7)) * (LIST_BYTES / 16);
  const bool odd = lane & 1;            // which of its two rows' numbers this lane keeps,
  const int upper = lane & 2 ? 4 : 0;   // and of which half of a window
  const int row = slice * 64 + warp * 16 + lane / 4 + odd * 8;
  float kept[4] = {};
  [[maybe_unused]] u32 below[2] = {};       // of either row, as hints are stored
  [[maybe_unused]] float bound[2] = {0, 0};  // of their window
  u32 a[TOGETHER][K / 64][4][4];
  // largest: of each quarter's labels of this lane, of either row.
  auto keep = [&](int tile, const float (&largest)[4][2]) {
    const int slot = static_cast<u32>(tile - first) % WINDOW;
    float of_rows[2];
#pragma unroll
    for (int r = 0; r < 2; r++) of_rows[r] = larger(larger(largest[0][r], largest[1][r]), larger(largest[2][r], largest[3][r]));
    float best = larger(odd ? of_rows[1] : of_rows[0], __shfl_xor_sync(~0u, odd ? of_rows[0] : of_rows[1], 1));
    best = larger(best, __shfl_xor_sync(~0u, best, 2));
#if HINTS
    if (slot == 0) {
      float mean = best;
      if (tile != first) {
        const float sum = __fadd_rn(__fadd_rn(kept[0], kept[1]), __fadd_rn(kept[2], kept[3]));
        mean = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 2)) * 0.125f;
      }
      const float mine = bound_of_parts(mean, tile == first), other = __shfl_xor_sync(~0u, mine, 1);
      bound[0] = odd ? other : mine, bound[1] = odd ? mine : other;
    }
#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
      for (int q = 0; q < 4; q++)  // the sign says whether it is less
        below[r] = __funnelshift_l(__float_as_uint(__fsub_rn(largest[q][r], bound[r])), below[r], 1);
#endif
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (slot == i + upper) kept[i] = best;
    if (slot < WINDOW - 1 && tile + 1 < end) return;
    if (row < batch) {
      const int at = tile - slot + upper;  // what is stored beyond the last tile, nobody reads
      float2* to = reinterpret_cast<float2*>(maxima + static_cast<i64>(row) * stride + at);
      if (at < end) to[0] = make_float2(kept[0], kept[1]);
      if (at + 2 < end) to[1] = make_float2(kept[2], kept[3]);
    }
#if HINTS
    if (slice * 64 + warp * 16 < batch) {
      const int shift = 4 * (WINDOW - 1 - slot);
      const int quad = (part * WARPGROUPS + group) * cdiv(run, QUAD) + (tile - first) / WINDOW * 2;
      u32* to = hints + (static_cast<i64>((slice * 4 + warp) * 8 + lane / 4) * quads + quad) * 4 + lane % 4;
      to[0] = __byte_perm(below[0] << shift, below[1] << shift, 0x7632);
      if (slot >= QUAD) to[4] = __byte_perm(below[0] << shift, below[1] << shift, 0x5410);
    }
#endif
    __syncwarp();
  };

  for (int tile = first, stage = 0, phase = 0; tile < end; tile++) {
    float sums[PRODUCTS][G / 2];
    mbarrier_wait(full + 8 * stage, phase);
#pragma unroll
    for (int from = 0; from < PRODUCTS; from += TOGETHER) {
      u32 named[TOGETHER * WORDS];
      load_words(named, words + stage * LIST_BYTES + from * WORDS * 4);
#pragma unroll
      for (int p = 0; p < TOGETHER; p++)
#pragma unroll
        for (int k = 0; k < K / 16; k++) {
          const u32 both = named[p * WORDS + k / 2] ^ pieces;
          load_matrices_transposed(a[p][k / 4][k % 4], xt + (k % 2 ? both >> 16 : both & 0xFFFF) * 16);
        }
      wgmma_fence();
#pragma unroll
      for (int p = 0; p < TOGETHER; p++)
#pragma unroll
        for (int k = 0; k < K / 16; k++) {
          const u32 offset = k / 4 * 8192 + (from + p) * G * 128 + k % 4 * 32;
          Wgmma<T, G, 0>::rs(sums[from + p], a[p][k / 4][k % 4], matrix + (stage * (WEIGHT_BYTES / 16) + offset / 16), k > 0);
        }
      wgmma_commit();
      wgmma_wait<0>();
    }
    __syncwarp();
    if (lane == 0) mbarrier_arrive(empty + 8 * stage);
    if (++stage == STAGES) stage = 0, phase ^= 1;

    // 16 sums for each 32 labels: of two neighbours two rows, and again 8 labels on.
    auto sum = [&](int i) -> float& { return sums[i / 8 * 16 / G][i % (G / 2)]; };
    const int label_of_lane = tile * 64 + lane % 4 * 2;
#if BIAS
#pragma unroll
    for (int i = 0; i < 32; i += 4)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const float more = load_late(bias + min(label_of_lane + i * 2 + j, labels - 1));
        sum(i + j) += more, sum(i + j + 2) += more;
      }
#endif
    if (tile * 64 + 64 > labels)
#pragma unroll
      for (int i = 0; i < 32; i++)  // labels that do not exist
        if (label_of_lane + i / 4 * 8 + i % 2 >= labels) sum(i) = __int_as_float(0xFF800000);
    float largest[4][2];
#pragma unroll
    for (int q = 0; q < 4; q++)
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const int i = q * 8 + r * 2;
        largest[q][r] = larger(larger(sum(i), sum(i + 1)), larger(sum(i + 4), sum(i + 5)));
      }
    keep(tile, largest);
  }
}
