// dX = dY W over groups, for Hopper, in a fixed order.
//
// A block owns 64 batch rows and every parts-th tile of 64 labels. It keeps dX^T of its rows in shared memory, fp32 [dim][64],
// and adds each group's K x 64 products to the rows that the group's list names. Two warpgroups own 32 batch rows each and
// never meet; two more warps ask the copy engine for dY, and for W and the lists. Inputs are the rows of a product, batch rows
// its columns: warp w of a warpgroup adds the products of inputs 16w to 16w + 15 of 64. As lists hold distinct inputs, no sum
// needs an atomic, and one barrier a product suffices.
//
// Lane (r, t) of a warp holds four neighbouring sums twice for each of two inputs: 16-byte pieces, of which four lanes make
// 64 bytes of one input. Lanes of even r take the first 64 bytes of their 128 first, those of odd r the second: eight lanes
// never meet in a bank, whatever the list.
//
// Macros: ELEMENT, K (multiple of 64), G (16, 32, 64; 128 if K is 64: labels that are summed before they are added), LIST
// (labels of a real group, a multiple of G).
#include "hopper.cuh"

constexpr int TILE = 64, ROWS = 32, CHUNKS = ROWS / 16;   // labels of a tile of dY; batch rows of a warpgroup, in 64-byte chunks
constexpr int STAGE = G < 32 ? 16 : 32;                   // labels of a stage of W
constexpr int GROUP = G < TILE ? G : TILE;                // labels of a tile that are multiplied together
constexpr int STAGES = GROUP / STAGE, GROUPS = TILE / GROUP, PARTS = K / 64;  // of a group; of a tile; of a list
constexpr int TILES = G / GROUP;                          // whose products are summed before they are added
constexpr int TILE_BYTES = TILE * 128, STAGE_BYTES = STAGE * 128, LIST_BYTES = 128, THREADS = 320;
constexpr int UNROLLED = PARTS <= 2 ? PARTS : 1;
static_assert(TILES == 1 || PARTS == 1);

DEVICE u32 load_index(u32 at) {
  u32 v;
  asm volatile("{\n.reg .u16 h;\nld.shared.u16 h, [%1];\ncvt.u32.u16 %0, h;\n}" : "=r"(v) : "r"(at) : "memory");
  return v;
}
DEVICE float4 load_sums(u32 at) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(at) : "memory");
  return v;
}
DEVICE void store_sums(u32 at, float4 v) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(at), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}

// A ring of stages in shared memory: where one is, and the parity of its barriers.
struct Ring {
  int stage = 0, phase;
  DEVICE void advance(int stages) {
    if (++stage == stages) stage = 0, phase ^= 1;
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
hopper_grad_input(const __grid_constant__ TensorMap weights, const __grid_constant__ TensorMap grads, const u16* __restrict__ lists,
                  float* __restrict__ partial, int batch, int dim, int labels, int slices, int tile_stages, int stages) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int slice = blockIdx.x % slices, part = blockIdx.x / slices, parts = gridDim.x / slices;
  const u32 sums = shared_address(shared), tiles = sums + ((dim * 256 + 1023) & ~1023), ring = tiles + tile_stages * TILE_BYTES;
  const u32 indices = ring + stages * STAGE_BYTES, full = indices + stages * LIST_BYTES, empty = full + 8 * stages;
  const u32 tile_full = empty + 8 * stages, tile_empty = tile_full + 8 * tile_stages;
  const int all = cdiv(labels, TILE * TILES), mine = (all > part ? cdiv(all - part, parts) : 0) * TILES;  // tiles
  auto label_of = [&](int tile) { return (tile / TILES * parts + part) * (TILE * TILES) + tile % TILES * TILE; };
  if (threadIdx.x < stages) mbarrier_init(full + 8 * threadIdx.x, 1), mbarrier_init(empty + 8 * threadIdx.x, 8);
  if (threadIdx.x < tile_stages) mbarrier_init(tile_full + 8 * threadIdx.x, 1), mbarrier_init(tile_empty + 8 * threadIdx.x, 8);
  mbarrier_fence();
  for (int i = threadIdx.x; i < dim * 16; i += THREADS) reinterpret_cast<float4*>(shared)[i] = make_float4(0, 0, 0, 0);
  __syncthreads();

  if (warp == 8) {
    if (lane == 0) {
      Ring w = {0, 1};
      for (int i = 0; i < mine; i++)
        for (int g = 0; g < GROUPS; g++)
          for (int k = 0; k < PARTS; k++)
            for (int e = 0; e < STAGES; e++) {
              const int label = label_of(i) + g * GROUP + e * STAGE;
              const i64 list = min(label, labels - 1) / LIST;
              mbarrier_wait(empty + 8 * w.stage, w.phase);
              mbarrier_expect(full + 8 * w.stage, STAGE_BYTES + LIST_BYTES);
              tma_load(ring + w.stage * STAGE_BYTES, &weights, full + 8 * w.stage, k * 64, label);
              bulk_load(indices + w.stage * LIST_BYTES, lists + list * K + k * 64, LIST_BYTES, full + 8 * w.stage);
              w.advance(stages);
            }
    }
  } else if (warp == 9) {
    if (lane == 0) {
      Ring y = {0, 1};
      for (int i = 0; i < mine; i++) {
        mbarrier_wait(tile_empty + 8 * y.stage, y.phase);
        mbarrier_expect(tile_full + 8 * y.stage, TILE_BYTES);
        tma_load(tiles + y.stage * TILE_BYTES, &grads, tile_full + 8 * y.stage, label_of(i), slice * 64);
        y.advance(tile_stages);
      }
    }
  } else {
    const int wg = warp / 4, wr = warp % 4, r = lane / 4, t = lane % 4;
    const u32 own = sums + wg * CHUNKS * 64 + (r & 1) * 64 + t * 16, list = indices + (16 * wr + r) * 2;
    const bool odd = r & 1;
    float products[ROWS / 2];
    Ring w = {0, 0}, y = {0, 0};
    for (int i = 0; i < mine; i += TILES)
#pragma unroll
      for (int tile = 0; tile < TILES; tile++) {
        mbarrier_wait(tile_full + 8 * y.stage, y.phase);
#pragma unroll
        for (int g = 0; g < GROUPS; g++)
#pragma unroll UNROLLED
          for (int k = 0; k < PARTS; k++) {
            u32 at[2];
            int stage[STAGES];
#pragma unroll
            for (int e = 0; e < STAGES; e++) {
              stage[e] = w.stage;
              mbarrier_wait(full + 8 * w.stage, w.phase);
              w.advance(stages);
            }
#pragma unroll
            for (int h = 0; h < 2; h++) at[h] = own + load_index(list + stage[0] * LIST_BYTES + h * 16) * 256;
            barrier(1 + wg, 128);  // the additions of the product before are over
            wgmma_fence();
#pragma unroll
            for (int j = 0; j < GROUP / 16; j++)
              Wgmma<T, ROWS, 0>::template ss<1>(
                  products, wgmma_matrix(ring + stage[j * 16 / STAGE] * STAGE_BYTES + j * 16 % STAGE * 128, 1024, 1024, 1),
                  wgmma_matrix(tiles + y.stage * TILE_BYTES + wg * (ROWS * 128) + g * (GROUP * 2) + j * 32, 16, 1024, 1), j + tile > 0);
            wgmma_commit();
            const bool adds = tile == TILES - 1;
            float4 sum[CHUNKS][2];
            if (adds)
#pragma unroll
              for (int c = 0; c < CHUNKS; c++)
#pragma unroll
                for (int h = 0; h < 2; h++) sum[c][h] = load_sums(at[h] ^ c * 64);
            wgmma_wait<0>();
            if (lane == 0) {
#pragma unroll
              for (int e = 0; e < STAGES; e++) mbarrier_arrive(empty + 8 * stage[e]);
              if (g == GROUPS - 1 && k == PARTS - 1) mbarrier_arrive(tile_empty + 8 * y.stage);
            }
            if (adds)
#pragma unroll
              for (int c = 0; c < CHUNKS; c++)
#pragma unroll
                for (int h = 0; h < 2; h++) {  // the piece at `at ^ 64 c` belongs to chunk c of even lanes, c ^ 1 of odd ones
                  const float *even = products + c * 8 + h * 2, *other = products + (c ^ 1) * 8 + h * 2;
                  float4& v = sum[c][h];
                  v.x += odd ? other[0] : even[0], v.y += odd ? other[1] : even[1];
                  v.z += odd ? other[4] : even[4], v.w += odd ? other[5] : even[5];
                  store_sums(at[h] ^ c * 64, v);
                }
          }
        y.advance(tile_stages);
      }
  }
  __syncthreads();
  float4* out = reinterpret_cast<float4*>(partial + static_cast<i64>(blockIdx.x) * dim * 64);
  for (int i = threadIdx.x; i < dim * 16; i += THREADS) __stcg(out + i, reinterpret_cast<float4*>(shared)[i]);
}

// dx [batch, dim]: the sums of all parts, in order. A block takes 16 inputs of 64 rows.
extern "C" __global__ void __launch_bounds__(256)
hopper_grad_input_sum(const float* __restrict__ partial, T* __restrict__ dx, int batch, int dim, int slices, int parts) {
  __shared__ float tile[16][65];
  const int blocks = dim / 16, slice = blockIdx.x / blocks, d0 = blockIdx.x % blocks * 16;
  const int d = d0 + threadIdx.x / 16, v = threadIdx.x % 16;
  float4 sum = {0, 0, 0, 0};
#pragma unroll 8
  for (int p = 0; p < parts; p++) {
    const float4 e = reinterpret_cast<const float4*>(partial + (static_cast<i64>(p * slices + slice) * dim + d) * 64)[v];
    sum.x += e.x, sum.y += e.y, sum.z += e.z, sum.w += e.w;
  }
  const int b = v / 4 * 16 + v % 4 * 2;  // a lane's piece: rows b, b + 1, b + 8, b + 9
  float* row = tile[threadIdx.x / 16];
  row[b] = sum.x, row[b + 1] = sum.y, row[b + 8] = sum.z, row[b + 9] = sum.w;
  __syncthreads();
  for (int i = threadIdx.x; i < 64 * 8; i += 256) {
    const int bb = i / 8, dd = i % 8 * 2;
    if (slice * 64 + bb < batch)
      *reinterpret_cast<u32*>(dx + static_cast<i64>(slice * 64 + bb) * dim + d0 + dd) = pack<T>(tile[dd][bb], tile[dd + 1][bb]);
  }
}
