// y[slice, labels] = x^T[inputs, slice]^T weight^T + bias, for sm_80 and newer.
//
// A warp multiplies one part (up to PART labels of a group) with SLICE rows of the batch. x^T rows come from shared
// memory: RESIDENT blocks hold [D, SLICE] of it for good and `ldmatrix` takes the group's indices as row addresses; the
// others copy the 32 rows of the next step there. Weights go from global memory to registers, a step ahead: prefetching
// them to the level-2 cache earlier changes nothing. TEAM warps
// write their neighbouring parts into one stage and then whole rows of it to y: segments of 2 * TEAM * PART bytes.
// W_ALIGNED, Y_ALIGNED: rows of the weights, and segments of y, begin on 16 bytes. Where those of y do not, a row of the
// stage is shifted by as much as the row of y is, so that aligned pieces of one are aligned pieces of the other.
#include "portable.cuh"

constexpr int ROW = SLICE * sizeof(Element);           // bytes of a row of the x^T slice: 32, 64 or 128
constexpr int PIECES = ROW / 16;
constexpr int M_TILES = SLICE / 16;
constexpr int TEAMS = WARPS / TEAM;
constexpr int TILE = TEAM * PART;                      // labels of a team
constexpr int PITCH = TILE + 64 / sizeof(Element);     // numbers of a row of the stage: 8 rows meet 32 banks evenly
constexpr int STAGE = SLICE * PITCH * sizeof(Element);
static_assert(ROW <= 128 && TILE * sizeof(Element) % 128 == 0 && (HALF || SLICE == 32), "tile sizes");

DEVICE u32 x_piece(u32 x, int row, int piece) {
  return x + row * ROW + ((piece ^ (row / (8 / PIECES) % PIECES)) * 16);
}

struct Step {  // where a warp is: a block of 32 inputs of its part of a tile
  int tile, k;
  Part part;
};

struct Problem {
  const Element *xt, *weight, *weight_end;
  const INDEX* indices;
  int stride, dim, labels, fan_in, group_size, parts, member, lane;

  DEVICE Part part(int tile) const { return part_of(tile * TEAM + member, labels, group_size, parts); }

  DEVICE void advance(Step& s, int tiles_apart) const {
    s.k += 32;
    if (s.k >= fan_in) s = {s.tile + tiles_apart, 0, part(s.tile + tiles_apart)};
  }
  // lane i: the i-th input of the step; past the fan-in the row of zeros
  DEVICE int index(const Step& s) const {
    int k = s.k + lane;
    return k < fan_in && s.part.count > 0 ? (int)indices[(i64)s.part.group * fan_in + k] : dim;
  }
  // w[j]: eight weights from 8 t on, of the label that column g of tile j stands for
  DEVICE void weights(uint4 (&w)[N_TILES], const Step& s) const {
    int g = lane / 4, k = s.k + lane % 4 * 8;
#pragma unroll
    for (int j = 0; j < N_TILES; j++) {
      int label = 2 * N_TILES * (g >> 1) + 2 * j + (g & 1);
      int valid = label < s.part.count ? fan_in - k : 0;
      w[j] = load_piece<W_ALIGNED>(weight + (i64)(s.part.first + label) * fan_in + k, valid, weight_end);
    }
  }
  // 32 rows of x^T into shared memory, in the background
  DEVICE void gather(u32 to, int index, int b0) const {
#pragma unroll
    for (int i = lane; i < 32 * PIECES; i += 32) {
      int row = i / PIECES, piece = i % PIECES, from = __shfl_sync(~0u, index, row);
      copy_async(x_piece(to, row, piece), xt + (i64)(from < dim ? from : 0) * stride + b0 + piece * V, from < dim ? 16 : 0);
    }
  }
};

// acc[m][n][2 h + e] is row b = 16 m + 8 h + g (fp32: 4 g + 2 m + h) and label 2 N_TILES t + 2 n + e of the part
template <class E> DEVICE void multiply(float (&acc)[M_TILES][N_TILES][4], u32 x, const uint4 (&w)[N_TILES], int index,
                                        const Problem& p, const Step& s) {
  const int lane = p.lane;
  if constexpr (sizeof(E) == 2) {
#pragma unroll
    for (int step = 0; step < 2; step++) {
      int row = place(step, (lane >> 4) * 8 + (lane & 7));
      if (RESIDENT) row = __shfl_sync(~0u, index, row);
#pragma unroll
      for (int m = 0; m < M_TILES; m++) {
        u32 a[4];
        load_matrices_transposed(a, x_piece(x, row, 2 * m + (lane >> 3 & 1)));
#pragma unroll
        for (int n = 0; n < N_TILES; n++) mma_16816<E>(acc[m][n], a, word(w[n], 2 * step), word(w[n], 2 * step + 1));
      }
    }
  } else {
    const int first = 2 * N_TILES * (lane % 4);
    float sum[4][2 * N_TILES] = {};  // of 32 inputs: one chain of sums over a large fan-in would lose digits
#pragma unroll 1
    for (int k = 0; k < 32 && s.k + k < p.fan_in; k += 4) {
      float4 weights[2 * N_TILES];
#pragma unroll
      for (int n = 0; n < 2 * N_TILES; n++) {
        int valid = first + n < s.part.count ? p.fan_in - s.k - k : 0;
        uint4 piece = load_piece<W_ALIGNED>(p.weight + (i64)(s.part.first + first + n) * p.fan_in + s.k + k, valid, p.weight_end);
        weights[n] = *reinterpret_cast<float4*>(&piece);
      }
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float4 b = shared_float4(x_piece(x, RESIDENT ? __shfl_sync(~0u, index, k + i) : k + i, lane / 4));
#pragma unroll
        for (int m = 0; m < 4; m++)
#pragma unroll
          for (int n = 0; n < 2 * N_TILES; n++)
            sum[m][n] += number(b, m) * number(weights[n], i);
      }
    }
#pragma unroll
    for (int m = 0; m < 4; m++)
#pragma unroll
      for (int n = 0; n < 2 * N_TILES; n++) acc[m / 2][n / 2][m % 2 * 2 + n % 2] += sum[m][n];
  }
}

DEVICE int row_of(int m, int h, int g) { return HALF ? 16 * m + 8 * h + g : 4 * g + 2 * m + h; }

// How far a row of y lies beyond a 16-byte boundary, in numbers.
DEVICE int shift_of(i64 at) { return Y_ALIGNED ? 0 : (int)(at & (V - 1)); }

DEVICE void to_stage(Element* stage, const float (&acc)[M_TILES][N_TILES][4], const Element* bias, Part part, int l0,
                     int b0, int labels, int lane) {
  const int g = lane / 4, column = 2 * N_TILES * (lane % 4), count = part.count - column;
  if (count <= 0) return;
  float add[2 * N_TILES];
#pragma unroll
  for (int n = 0; n < 2 * N_TILES; n++) add[n] = bias && n < count ? to_float(bias[part.first + column + n]) : 0.f;
#pragma unroll
  for (int m = 0; m < M_TILES; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      int row = row_of(m, h, g);
      Element* to = stage + row * PITCH + shift_of((i64)(b0 + row) * labels + l0) + part.first - l0 + column;
      Element values[2 * N_TILES];
#pragma unroll
      for (int n = 0; n < 2 * N_TILES; n++) values[n] = from_float<Element>(acc[m][n / 2][2 * h + n % 2] + add[n]);
      if (Y_ALIGNED) {
        constexpr int BYTES = 2 * N_TILES * sizeof(Element);
        if constexpr (BYTES == 8) *reinterpret_cast<uint2*>(to) = *reinterpret_cast<uint2*>(values);
        else
#pragma unroll
          for (int i = 0; i < BYTES / 16; i++) reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<uint4*>(values)[i];
      } else {
#pragma unroll
        for (int n = 0; n < 2 * N_TILES; n++)
          if (n < count) to[n] = values[n];
      }
    }
}

DEVICE void to_output(Element* y, const Element* stage, int width, int l0, int b0, int batch, int labels, int thread) {
  constexpr int ACROSS = TILE / V + (Y_ALIGNED ? 0 : 1);
#pragma unroll 4
  for (int i = thread; i < SLICE * ACROSS; i += TEAM * 32) {
    int row = i / ACROSS, piece = i % ACROSS;
    if (b0 + row >= batch) break;
    i64 begin = (i64)(b0 + row) * labels + l0;
    int shift = shift_of(begin), label = piece * V - shift;
    const Element* from = stage + row * PITCH + piece * V;
    Element* to = y + begin - shift + piece * V;
    if (label >= 0 && label + V <= width) {
      store_once(to, *reinterpret_cast<const uint4*>(from));
    } else {
#pragma unroll
      for (int v = 0; v < V; v++)
        if (label + v >= 0 && label + v < width) to[v] = from[v];
    }
  }
}

// grid: slices * any number of blocks, which share the tiles. Shared memory: `forward_shared_bytes` in portable.py.
extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS)
portable_forward(const Element* __restrict__ xt,         // [D, stride], zero from column B on
                 const Element* __restrict__ weight,     // [L, K]
                 const INDEX* __restrict__ indices,      // [groups, K]
                 const Element* __restrict__ bias,       // [L] or null
                 Element* __restrict__ y,                // [B, L]
                 int batch, int stride, int dim, int labels, int fan_in, int group_size, int parts, int tiles, int slices) {
  extern __shared__ __align__(128) unsigned char shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, team = warp / TEAM;
  const int b0 = blockIdx.x % slices * SLICE, apart = gridDim.x / slices * TEAMS;
  const Problem p = {xt, weight, weight + (i64)labels * fan_in, indices, stride, dim, labels, fan_in, group_size, parts,
                     warp % TEAM, lane};
  Element* stage = reinterpret_cast<Element*>(shared) + team * (STAGE / sizeof(Element));
  unsigned char* rows = shared + TEAMS * STAGE + (RESIDENT ? 0 : warp * 2 * 32 * ROW);
  const u32 x = shared_address(rows);

  if (RESIDENT) {
    for (int i = threadIdx.x; i < dim * PIECES; i += WARPS * 32)
      copy_async(x_piece(x, i / PIECES, i % PIECES), xt + (i64)(i / PIECES) * stride + b0 + i % PIECES * V);
    if (threadIdx.x < PIECES) shared_store(x_piece(x, dim, threadIdx.x), {0, 0, 0, 0});
    copy_commit();
  }
  const int first = blockIdx.x / slices * TEAMS + team;
  Step now = {first, 0, p.part(first)}, next = now;
  uint4 w[N_TILES], w_next[N_TILES];
  int index = p.index(now), index_next = index;
  if (HALF) p.weights(w_next, now);
  if (RESIDENT) {
    copy_wait<0>();
    __syncthreads();
  } else {
    p.gather(x, index, b0);
    copy_commit();
    p.advance(next, apart);
    index_next = p.index(next);
  }
  int buffer = 0;
  while (now.tile < tiles) {
    float acc[M_TILES][N_TILES][4] = {};
    do {
      const Step current = now;
#pragma unroll
      for (int j = 0; j < N_TILES; j++) w[j] = w_next[j];
      p.advance(now, apart);
      if (HALF) p.weights(w_next, now);
      if (RESIDENT) {
        index = index_next;
        index_next = p.index(now);
        multiply<Element>(acc, x, w, index, p, current);
      } else {
        p.gather(x + (buffer ^ 1) * 32 * ROW, index_next, b0);
        copy_commit();
        p.advance(next, apart);
        index_next = p.index(next);
        copy_wait<1>();
        __syncwarp();
        multiply<Element>(acc, x + buffer * 32 * ROW, w, 0, p, current);
        __syncwarp();
        buffer ^= 1;
      }
    } while (now.k > 0);
    const int tile = now.tile - apart;  // `now` is a step ahead
    const int l0 = part_of(tile * TEAM, labels, group_size, parts).first;
    const Part last = part_of(tile * TEAM + TEAM - 1, labels, group_size, parts);
    barrier(1 + team, TEAM * 32);  // the last tile has left the stage
    to_stage(stage, acc, bias, p.part(tile), l0, b0, labels, lane);
    barrier(1 + team, TEAM * 32);
    to_output(y, stage, last.first + last.count - l0, l0, b0, batch, labels, threadIdx.x % (TEAM * 32));
  }
  if (!RESIDENT) copy_wait<0>();
}
