// What the kernels of fixed_fan_in/cuda share: rows in shared memory, and products that stay within a lane.
//
// Macros: ELEMENT is the type of numbers, INDEX that of the lists; SHARE (2 or 4) labels are worked on side by side in a
// warp. A row of X^T is then ROW bytes of COLUMNS batch columns, in shared memory (RESIDENT) or, where D is too large for
// that, in global memory. A lane reads 16 bytes of a row: VALUES columns of one label.
#pragma once
#include "common.cuh"

typedef ELEMENT T;
constexpr int ROW = 512 / SHARE;
constexpr int COLUMNS = ROW / sizeof(T);
constexpr int VALUES = 16 / sizeof(T);
constexpr bool HALF = sizeof(T) == 2;

// How a lane's place in mma.m16n8k16 is used. Two words of its row k are A[g, 2t..] and A[g + 8, 2t..], two of its row k'
// A[g, 2t + 8..] and A[g + 8, 2t + 8..]. B[., n] holds the weights of k and k' in the slots of the lanes with t = n / 2,
// at the even or the odd batch column as n is, and zeros elsewhere. So the sums D[g, 2t..] and D[g + 8, 2t..] of a lane
// are those of its own four columns: no operand is converted, no lane idle, and weights may differ between lanes of
// different t. Products are exact, sums are float.
struct Place {
  int label;  // of the SHARE labels
  int unit;   // which 16 bytes of the row
  u32 low, high;

  DEVICE Place() {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const bool supplies = g / 2 == t;
    low = supplies ? (g % 2 ? 0x1044 : 0x4410) : 0x4444;
    high = supplies ? (g % 2 ? 0x3244 : 0x4432) : 0x4444;
    label = t * SHARE / 4;
    // The eight lanes of an access take different banks: labels side by side start in different parts of a row.
    unit = SHARE == 2 ? (g * 2 + t % 2) ^ (label * 4) : g ^ (label * 2);
  }
};

// sums += weight of k * x0 + weight of k' * x1. 16-bit types: both weights in w0.
template <class E = T>
DEVICE void multiply_add(float (&sums)[VALUES], const Place& at, u32 w0, u32 w1, uint4 x0, uint4 x1) {
  if constexpr (sizeof(E) == 2) {
    const u32 b0 = __byte_perm(w0, 0, at.low), b1 = __byte_perm(w0, 0, at.high);
    const u32 first[4] = {x0.x, x0.y, x1.x, x1.y}, second[4] = {x0.z, x0.w, x1.z, x1.w};
    mma_16816<E>(*reinterpret_cast<float(*)[4]>(sums), first, b0, b1);
    mma_16816<E>(*reinterpret_cast<float(*)[4]>(sums + 4), second, b0, b1);
  } else {
    const float a = __uint_as_float(w0), b = __uint_as_float(w1);
    sums[0] += a * __uint_as_float(x0.x) + b * __uint_as_float(x1.x);
    sums[1] += a * __uint_as_float(x0.y) + b * __uint_as_float(x1.y);
    sums[2] += a * __uint_as_float(x0.z) + b * __uint_as_float(x1.z);
    sums[3] += a * __uint_as_float(x0.w) + b * __uint_as_float(x1.w);
  }
}

// Eight entries of a list: weights, and the rows that they belong to.
struct Entries {
  u32 weights[2 * sizeof(T)];
  u32 rows[2 * sizeof(INDEX)];

  DEVICE void load(const T* weight, const INDEX* index) {
    const uint4* w = reinterpret_cast<const uint4*>(weight);
    const uint4* r = reinterpret_cast<const uint4*>(index);
#pragma unroll
    for (int i = 0; i < sizeof(T) / 2; ++i) *reinterpret_cast<uint4*>(weights + 4 * i) = __ldg(w + i);
#pragma unroll
    for (int i = 0; i < sizeof(INDEX) / 2; ++i) *reinterpret_cast<uint4*>(rows + 4 * i) = __ldg(r + i);
  }
  DEVICE u32 row(int i) const {
    if constexpr (sizeof(INDEX) == 4) return rows[i];
    return i % 2 ? rows[i / 2] >> 16 : rows[i / 2] & 0xFFFF;
  }
};

// Where rows are. `at` is a lane's first byte.
struct Rows {
#if RESIDENT
  const char* at;
  DEVICE uint4 read(const Entries& entries, int i) const {
    const u32 word = entries.rows[i / 2];  // one byte permutation makes index * 256
    const u32 offset = (i % 2 ? __byte_perm(word, 0, 0x4324) : __byte_perm(word, 0, 0x4104)) / (256 / ROW);
    return *reinterpret_cast<const uint4*>(at + offset);
  }
#else
  const char* at;
  u32 stride;  // bytes
  DEVICE uint4 read(const Entries& entries, int i) const {
    return __ldg(reinterpret_cast<const uint4*>(at + static_cast<u64>(entries.row(i)) * stride));
  }
#endif
};

DEVICE void add_entries(float (&sums)[2][VALUES], const Place& place, const Rows& rows, const Entries& entries) {
  uint4 x[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = rows.read(entries, i);
#pragma unroll
  for (int i = 0; i < 4; ++i)
    multiply_add(sums[i % 2], place, entries.weights[HALF ? i : 2 * i], entries.weights[HALF ? i : 2 * i + 1], x[2 * i], x[2 * i + 1]);
}

// `count` rows of ROW bytes, from an array of `stride` bytes a row.
DEVICE void copy_rows(u32 to, const char* from, int count, i64 stride) {
  for (int i = threadIdx.x; i < count * (ROW / 16); i += blockDim.x)
    copy_async(to + i * 16, from + i / (ROW / 16) * stride + i % (ROW / 16) * 16);
  copy_commit();
  copy_wait<0>();
}

// A lane's VALUES floats, on 16 bytes.
DEVICE void load_floats(float (&v)[VALUES], const float* from) {
#pragma unroll
  for (int i = 0; i < VALUES; i += 4) *reinterpret_cast<float4*>(v + i) = *reinterpret_cast<const float4*>(from + i);
}
DEVICE void store_floats(float* to, const float (&v)[VALUES]) {
#pragma unroll
  for (int i = 0; i < VALUES; i += 4) *reinterpret_cast<float4*>(to + i) = *reinterpret_cast<const float4*>(v + i);
}
