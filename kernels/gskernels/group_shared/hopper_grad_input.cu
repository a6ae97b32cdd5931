// dX = dY W over groups, for Hopper, in a fixed order.
//
// A block owns 64 batch rows and every parts-th pair of tiles of labels. It keeps dX^T of its rows in shared memory, fp32
// [dim][64], and adds each group's 64 x K products to the rows that the group's list names. Two warpgroups take turns: while
// one adds, the other multiplies. Warp w of either owns rows 16w to 16w + 15, so only two warps ever wait for each other, and
// no sum needs an atomic. dY goes straight into the registers that wgmma reads as its left operand: the 16 bytes that a lane
// loads are C neighbouring labels of one row, and a 5-dimensional tensor map lays out the rows of W alike. Two more warps
// bring W and turn lists into addresses. hopper_grad_input_sum adds the blocks' sums, in order.
//
// A row of sums is 8 slots of 32 bytes (8 batch rows each); those of input d are turned by bits 1 and 2 of d, so lists whose
// aligned eights are sorted by d mod 8 (`bank_ordered`) meet few bank conflicts. Any order is right.
//
// Macros: ELEMENT, K (multiple of 64), G (16, 32, 64 or 128 labels that are summed before they are added), LIST (labels of a
// real group, a multiple of G).
#include "hopper.cuh"

constexpr int C = G < 32 ? 4 : 8, SUB = 4 * C;        // labels of a lane; of a stage of W
constexpr int TILE = G < 64 ? 64 : G;                 // labels of a warpgroup's tile
constexpr int NSUB = TILE / SUB, SPG = G / SUB, GPT = TILE / G, PARTS = K / 64;
constexpr int DEPTH = TILE == 128 ? 2 : 4;                       // tiles of dY on their way to a warpgroup
constexpr int STAGE_BYTES = SUB * 128, ADDRESS_BYTES = 128, THREADS = 384;

template <int N> struct Words { u32 w[N]; };
typedef Words<C / 2> Piece;

DEVICE Piece load_piece(const T* p, bool in) {
  Piece v;
  if constexpr (C == 8)
    asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %5, 0;\nmov.u32 %0, 0; mov.u32 %1, 0; mov.u32 %2, 0; mov.u32 %3, 0;\n"
                 "@p ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];\n}"
                 : "=&r"(v.w[0]), "=&r"(v.w[1]), "=&r"(v.w[2]), "=&r"(v.w[3]) : "l"(p), "r"(static_cast<u32>(in)));
  else
    asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %3, 0;\nmov.u32 %0, 0; mov.u32 %1, 0;\n"
                 "@p ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0, %1}, [%2];\n}"
                 : "=&r"(v.w[0]), "=&r"(v.w[1]) : "l"(p), "r"(static_cast<u32>(in)));
  return v;
}
DEVICE float2 load_sums(u32 at) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(at) : "memory");
  return v;
}
DEVICE void store_sums(u32 at, float2 v) { asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at), "f"(v.x), "f"(v.y) : "memory"); }
DEVICE uint4 load_shared(u32 at) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
  return v;
}
DEVICE void store_shared(u32 at, uint4 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
DEVICE void barrier_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
// SUB labels x 64 inputs of W, in the order of label_of.
DEVICE void load_weights(u32 to, const TensorMap* map, u32 full, int k, int sub) {
  asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %4, %4, %5}], [%2];"
               ::"r"(to), "l"(map), "r"(full), "r"(k), "r"(0), "r"(sub) : "memory");
}
// Row p of a stage of W: which label, from the first of the stage.
DEVICE int label_of(int p) { return p % 8 / 2 * C + p / 8 * 2 + p % 2; }

extern "C" __global__ void __launch_bounds__(THREADS, 1)
hopper_grad_input(const __grid_constant__ TensorMap weights, const T* __restrict__ w, const T* __restrict__ dy,
                  const u16* __restrict__ lists, float* __restrict__ partial, int batch, int dim, int labels, int slices, int stages) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int slice = blockIdx.x % slices, part = blockIdx.x / slices, parts = gridDim.x / slices;
  const u32 sums = shared_address(shared), ring = sums + ((dim * 256 + 1023) & ~1023), addresses = ring + stages * STAGE_BYTES;
  const u32 full = addresses + stages * ADDRESS_BYTES, empty = full + 8 * stages;
  const int pairs = cdiv(labels, 2 * TILE), mine = pairs > part ? cdiv(pairs - part, parts) : 0;  // of tiles
  if (threadIdx.x < stages) mbarrier_init(full + 8 * threadIdx.x, 2), mbarrier_init(empty + 8 * threadIdx.x, 4);
  mbarrier_fence();
  __syncthreads();

  if (warp >= 8) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
    for (int i = threadIdx.x - 256; i < dim * 16; i += 128) reinterpret_cast<float4*>(shared)[i] = make_float4(0, 0, 0, 0);
    barrier(15, THREADS);
    if (warp == 8) {  // W, in the order of turns: group g of the first warpgroup, group g of the second
      int s = 0, phase = 1;
      const int whole = labels / SUB;
      for (int it = 0; it < mine; it++)
        for (int g = 0; g < GPT; g++)
          for (int k = 0; k < PARTS; k++)
            for (int sub = 0; sub < SPG; sub++)
              for (int wg = 0; wg < 2; wg++) {
                mbarrier_wait(empty + 8 * s, phase);
                const int at = ((it * parts + part) * 2 + wg) * NSUB + g * SPG + sub;
                if (at != whole) {
                  if (lane == 0) {
                    mbarrier_expect(full + 8 * s, STAGE_BYTES);
                    load_weights(ring + s * STAGE_BYTES, &weights, full + 8 * s, k * 64, at);
                  }
                } else {  // the map ends with the last whole stage
                  for (int p = lane / 8; p < SUB; p += 4) {
                    const int label = at * SUB + label_of(p);
                    uint4 v = make_uint4(0, 0, 0, 0);
                    if (label < labels) v = *reinterpret_cast<const uint4*>(w + static_cast<i64>(label) * K + k * 64 + lane % 8 * 8);
                    store_shared(ring + s * STAGE_BYTES + p * 128 + (((lane ^ p) & 7) << 4), v);
                  }
                  fence_async();
                  __syncwarp();
                  if (lane == 0) mbarrier_arrive(full + 8 * s);
                }
                if (++s == stages) s = 0, phase ^= 1;
              }
    } else if (warp == 9) {  // addresses of rows of sums, in units of 32 bytes, two a word
      constexpr int AHEAD = 8;
      const int total = mine * GPT * PARTS * 2;
      auto fetch = [&](int q) -> u32 {
        const int wg = q & 1, k = (q >> 1) % PARTS, g = (q >> 1) / PARTS % GPT, it = (q >> 1) / (PARTS * GPT);
        const int label = ((it * parts + part) * 2 + wg) * TILE + g * G;
        return label < labels ? *reinterpret_cast<const u32*>(lists + static_cast<i64>(static_cast<u32>(label) / LIST) * K + k * 64 + lane * 2) : 0u;
      };
      u32 now[AHEAD], next[AHEAD];
#pragma unroll
      for (int u = 0; u < AHEAD; u++) now[u] = fetch(u);
      int s = 0, phase = 1;
      const u32 base = sums >> 5, at = addresses + (lane % 4) * 32 + (lane / 4) * 4;
      auto place = [&](u32 v) {
        const u32 i = v & 0xFFFF, j = v >> 16;
        return (base + i * 8 + ((i >> 1) & 3)) | ((base + j * 8 + ((j >> 1) & 3)) << 16);
      };
      for (int q = 0; q < total; q += AHEAD) {
#pragma unroll
        for (int u = 0; u < AHEAD; u++) next[u] = fetch(q + AHEAD + u);
#pragma unroll
        for (int u = 0; u < AHEAD; u++) now[u] = place(now[u]);
#pragma unroll
        for (int u = 0; u < AHEAD; u += 2)
          if (q + u < total)
            for (int sub = 0; sub < SPG; sub++)
#pragma unroll
              for (int wg = 0; wg < 2; wg++) {
                mbarrier_wait(empty + 8 * s, phase);
                asm volatile("st.shared.u32 [%0], %1;" ::"r"(at + s * ADDRESS_BYTES), "r"(now[u + wg]) : "memory");
                __syncwarp();
                if (lane == 0) mbarrier_arrive(full + 8 * s);
                if (++s == stages) s = 0, phase ^= 1;
              }
#pragma unroll
        for (int u = 0; u < AHEAD; u++) now[u] = next[u];
      }
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
    const int wg = warp / 4, wr = warp % 4, r = lane / 4, t = lane % 4;
    const int row = slice * 64 + wr * 16 + r;
    int label = (part * 2 + wg) * TILE + t * C;  // of the next load
    const int step = parts * 2 * TILE;
    const T* from0 = dy + static_cast<i64>(min(row, batch - 1)) * labels + label;  // rows past the batch are summed, and dropped
    const T* from1 = dy + static_cast<i64>(min(row + 8, batch - 1)) * labels + label;
    Piece y[DEPTH][NSUB][2];
    auto load = [&](Piece (&v)[NSUB][2]) {
#pragma unroll
      for (int s = 0; s < NSUB; s++) {
        const bool in = label + s * SUB < labels;
        v[s][0] = load_piece(from0 + s * SUB, in);
        v[s][1] = load_piece(from1 + s * SUB, in);
      }
      from0 += step, from1 += step, label += step;
    };
#pragma unroll
    for (int d = 0; d < DEPTH; d++) load(y[d]);
    const u32 own = ((2 * wr + (r >> 2)) << 5) | ((r & 3) << 3);
    const u32 my_turn = 1 + wg * 4 + wr, your_turn = 1 + (1 - wg) * 4 + wr;
    barrier(15, THREADS);
    if (wg == 1) barrier_arrive(your_turn, 64);
    const u32 zero = slices >> 31;
    float products[32];
    int s = wg, phase = 0;
    for (int it = 0; it < mine; it += DEPTH) {
#pragma unroll
      for (int d = 0; d < DEPTH; d++) {
        if (it + d >= mine) break;
#pragma unroll
        for (int g = 0; g < GPT; g++)
#pragma unroll
          for (int k = 0; k < PARTS; k++) {
            uint4 c0, c1;
#pragma unroll
            for (int sub = 0; sub < SPG; sub++) {
              u32 a[C / 4][4];
              const Piece &v0 = y[d][g * SPG + sub][0], &v1 = y[d][g * SPG + sub][1];
#pragma unroll
              for (int j = 0; j < C / 4; j++) a[j][0] = v0.w[2 * j], a[j][1] = v1.w[2 * j], a[j][2] = v0.w[2 * j + 1], a[j][3] = v1.w[2 * j + 1];
              mbarrier_wait(full + 8 * s, phase);
              const u32 stage = ring + s * STAGE_BYTES;
#pragma unroll
              for (int j = 0; j < C / 4; j++)  // copies that are finished before the fence: else ptxas serialises the products
#pragma unroll
                for (int e = 0; e < 4; e++) asm volatile("xor.b32 %0, %0, %1;" : "+r"(a[j][e]) : "r"(zero) : "memory");
              wgmma_fence();
#pragma unroll
              for (int j = 0; j < C / 4; j++) Wgmma<T, 64, 1>::rs(products, a[j], wgmma_matrix(stage + j * 2048, 1024, 1024, 1), sub + j > 0);
              wgmma_commit();
              if (sub == SPG - 1) c0 = load_shared(addresses + s * ADDRESS_BYTES + t * 32), c1 = load_shared(addresses + s * ADDRESS_BYTES + t * 32 + 16);
              if (g == GPT - 1 && k == PARTS - 1 && sub == SPG - 1) load(y[d]);
              wgmma_wait<0>();
              __syncwarp();
              if (lane == 0) mbarrier_arrive(empty + 8 * s);
              s += 2;
              if (s >= stages) s -= stages, phase ^= 1;
            }
            u32 at[16];
            float2 o[16];
            const u32 c[8] = {c0.x, c0.y, c0.z, c0.w, c1.x, c1.y, c1.z, c1.w};
#pragma unroll
            for (int n = 0; n < 8; n++) at[2 * n] = ((c[n] << 5) & 0x1FFFE0) ^ own, at[2 * n + 1] = ((c[n] >> 11) & 0x1FFFE0) ^ own;
#pragma unroll
            for (int j = 0; j < 16; j++) asm volatile("" : "+r"(at[j])::"memory");  // addresses before the turn
            barrier(my_turn, 64);
#pragma unroll
            for (int j = 0; j < 16; j++) o[j] = load_sums(at[j]);
#pragma unroll
            for (int j = 0; j < 16; j++) {
              const float* e = products + j / 2 * 4 + (j & 1);
              o[j].x += e[0], o[j].y += e[2];
              store_sums(at[j], o[j]);
            }
            barrier_arrive(your_turn, 64);
          }
      }
    }
    if (wg == 0) barrier(my_turn, 64);
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
  const int slot = (v / 2) ^ ((d >> 1) & 3), b = (slot >> 1) * 16 + (slot & 1) * 4 + (v & 1) * 2;
  float* row = tile[threadIdx.x / 16];
  row[b] = sum.x, row[b + 8] = sum.y, row[b + 1] = sum.z, row[b + 9] = sum.w;
  __syncthreads();
  for (int i = threadIdx.x; i < 64 * 8; i += 256) {
    const int bb = i / 8, dd = i % 8 * 2;
    if (slice * 64 + bb < batch)
      *reinterpret_cast<u32*>(dx + static_cast<i64>(slice * 64 + bb) * dim + d0 + dd) = pack<T>(tile[dd][bb], tile[dd + 1][bb]);
  }
}
