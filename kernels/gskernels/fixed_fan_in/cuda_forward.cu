// fixed_fan_in/cuda, forward: Y[:, l] = X[:, I_l] w_l.
//
// A block keeps a slice of COLUMNS batch columns of X^T in shared memory and walks through tiles of TILE labels. A warp
// reads the list of a label, eight entries a load and AHEAD loads ahead, and of each entry's row all columns: contiguous
// bytes, so no bank conflicts. Results of a tile are transposed in shared memory and leave as whole rows of TILE labels.
//
// Macros beside those of cuda.cuh: FAN_IN (a multiple of 8), WARPS, AHEAD (divides FAN_IN / 8), HAS_BIAS.
#include "cuda.cuh"

constexpr int K = FAN_IN;
constexpr int CHUNKS = K / 8;
constexpr int TILE = WARPS * 2 * SHARE;  // two steps of every warp
constexpr int WORDS = HALF ? TILE / 2 : TILE;  // 32-bit words of a row of the staged tile
constexpr int PITCH = WORDS + 1;

template <class E = T> DEVICE u32 pack_pair(float low, float high) {
  if constexpr (sizeof(E) == 2) return pack<E>(low, high);
  return 0;
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
forward(const T* xt, const T* weight, const INDEX* index, const T* bias, T* y, int batch, int stride, int dim, i64 labels) {
  extern __shared__ __align__(128) char shared[];
  const int warp = threadIdx.x / 32, first_column = blockIdx.y * COLUMNS;
  const Place place;
  u32* staged = reinterpret_cast<u32*>(shared + (RESIDENT ? dim * ROW : 0));
  Rows rows;
#if RESIDENT
  copy_rows(shared_address(shared), reinterpret_cast<const char*>(xt + first_column), dim, i64(stride) * sizeof(T));
  rows.at = shared + place.unit * 16;
  __syncthreads();
#else
  rows.at = reinterpret_cast<const char*>(xt + first_column) + place.unit * 16;
  rows.stride = stride * sizeof(T);
#endif
  // The label of this lane's group in step n of the block: steps 2 i and 2 i + 1 make neighbouring labels.
  auto label = [&](int n) {
    return (blockIdx.x + i64(n / 2) * gridDim.x) * TILE + (warp * SHARE + place.label) * 2 + n % 2;
  };
  const i64 tiles = cdiv<i64>(labels, TILE);
  i64 current = min(label(0), labels - 1);
  Entries ahead[AHEAD];
#pragma unroll
  for (int i = 0; i < AHEAD; ++i) ahead[i].load(weight + current * K + i * 8, index + current * K + i * 8);

  int n = 0;
  for (i64 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    float kept[VALUES];
#pragma unroll
    for (int step = 0; step < 2; ++step, ++n) {
      const i64 next = min(label(n + 1), labels - 1);
      float sums[2][VALUES] = {};
#if HAS_BIAS
      const float constant = to_float(bias[current]);
#endif
#pragma unroll(CHUNKS <= 8 ? CHUNKS : AHEAD)
      for (int c = 0; c < CHUNKS; ++c) {
        const Entries entries = ahead[c % AHEAD];
        const i64 at = c + AHEAD < CHUNKS ? current * K + (c + AHEAD) * 8 : next * K + (c + AHEAD - CHUNKS) * 8;
        ahead[c % AHEAD].load(weight + at, index + at);
        add_entries(sums, place, rows, entries);
      }
      current = next;
      const int column = warp * SHARE + place.label;
#pragma unroll
      for (int v = 0; v < VALUES; ++v) {
        float sum = sums[0][v] + sums[1][v];
#if HAS_BIAS
        sum += constant;
#endif
        // Column unit * VALUES + v of the slice is row v * (COLUMNS / VALUES) + unit here: lanes side by side.
        u32* row = staged + (v * (COLUMNS / VALUES) + place.unit) * PITCH;
        if (!HALF) row[column * 2 + step] = __float_as_uint(sum);
        else if (step == 0) kept[v] = sum;
        else row[column] = pack_pair(kept[v], sum);
      }
    }
    __syncthreads();
    const i64 first = tile * TILE;
    for (int i = threadIdx.x; i < COLUMNS * WORDS; i += WARPS * 32) {
      const int row = i / WORDS, word = i % WORDS;
      const int b = first_column + row % (COLUMNS / VALUES) * VALUES + row / (COLUMNS / VALUES);
      const u32 value = staged[row * PITCH + word];
      T* to = y + b * labels + first;
      if (b >= batch) continue;
      if constexpr (HALF) {
        const T* halves = reinterpret_cast<const T*>(&value);
        if (labels % 2 == 0) {
          if (first + 2 * word < labels) reinterpret_cast<u32*>(to)[word] = value;
        } else {
          if (first + 2 * word < labels) to[2 * word] = halves[0];
          if (first + 2 * word + 1 < labels) to[2 * word + 1] = halves[1];
        }
      } else if (first + word < labels) {
        to[word] = from_float<T>(__uint_as_float(value));
      }
    }
    __syncthreads();
  }
}
