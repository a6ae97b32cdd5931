// What the portable kernels of group_shared share. ELEMENT (float, fp16, bf16) and INDEX (short, int) are macros.
//
// A *part* is up to PART labels of one group: part p belongs to group p / parts, where parts = ceil(G / PART), and
// neighbouring parts hold neighbouring labels. A *tile* is a run of parts. A *piece* is 16 bytes, V numbers. Offsets that
// grow with L are 64-bit. Within a warp, g = lane / 4 and t = lane % 4 are the row and column of mma.sync fragments.
#pragma once
#include "common.cuh"

typedef ELEMENT Element;
constexpr bool HALF = sizeof(Element) == 2;            // tensor cores; fp32 multiplies on plain cores
constexpr int V = 16 / sizeof(Element);                // numbers of a piece
constexpr int N_TILES = PART / 8;                      // columns of mma tiles that hold a part
constexpr int K_BLOCK = 128 / sizeof(Element);         // inputs that the gradients treat together: 128 bytes of weights

struct Part {
  int group, first, count;  // its group, first label and labels: none past the end
};

DEVICE Part part_of(int p, int labels, int group_size, int parts) {
  int group = parts == 1 ? p : p / parts, within = (p - group * parts) * PART;
  i64 first = (i64)group * group_size + within;
  if (first >= labels) return {0, labels, 0};
  return {group, (int)first, min(PART, min(group_size - within, labels - (int)first))};
}

// ---- 16-byte pieces from any address --------------------------------------------------------------------------------

DEVICE uint4 shift_words(uint4 a, uint4 b, u32 bytes) {  // the 16 bytes that begin `bytes` (0 to 15, even) into a, b
  u32 w[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
  for (int i = 0; i < 6; i++) w[i] = bytes & 8 ? w[i + 2] : w[i];
#pragma unroll
  for (int i = 0; i < 5; i++) w[i] = bytes & 4 ? w[i + 1] : w[i];
  u32 bits = (bytes & 3) * 8;
  return {__funnelshift_r(w[0], w[1], bits), __funnelshift_r(w[1], w[2], bits), __funnelshift_r(w[2], w[3], bits),
          __funnelshift_r(w[3], w[4], bits)};
}

template <class E> DEVICE uint4 one_by_one(const E* p, int valid) {
  uint4 v = {0, 0, 0, 0};
  u32* words = &v.x;
#pragma unroll
  for (int i = 0; i < 16 / (int)sizeof(E); i++) {
    if (i >= valid) continue;
    if constexpr (sizeof(E) == 4) words[i] = __float_as_uint(p[i]);
    else words[i / 2] |= (u32) reinterpret_cast<const u16*>(p)[i] << (i % 2 * 16);
  }
  return v;
}

// p[0 .. valid), zeros up to V. ALIGNED promises p on 16 bytes and valid <= 0 or >= V. Otherwise two aligned pieces are
// joined; `end` is where the tensor, which begins on 16 bytes, ends: nothing beyond it is touched.
template <bool ALIGNED> DEVICE uint4 load_piece(const Element* p, int valid, const Element* end) {
  if (valid <= 0) return {0, 0, 0, 0};
  if constexpr (ALIGNED) return __ldg(reinterpret_cast<const uint4*>(p));
  u32 bytes = (u32) reinterpret_cast<u64>(p) & 15;
  const uint4* at = reinterpret_cast<const uint4*>(reinterpret_cast<u64>(p) & ~15ull);
  bool two = bytes + min(valid, V) * (u32)sizeof(Element) > 16;
  if (reinterpret_cast<const Element*>(at + (two ? 2 : 1)) > end) return one_by_one(p, valid);
  uint4 low = __ldg(at), high = {0, 0, 0, 0};
  if (two) high = __ldg(at + 1);
  uint4 v = shift_words(low, high, bytes);
  if (valid < V) {
    u32* words = &v.x;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      int kept = (valid * (int)sizeof(Element) - i * 4) * 8;  // bits of this word
      if (kept <= 0) words[i] = 0;
      else if (kept < 32) words[i] &= (1u << kept) - 1;
    }
  }
  return v;
}

DEVICE float4 shared_float4(u32 at) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(at) : "memory");
  return v;
}
DEVICE float shared_float(u32 at) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(at) : "memory");
  return v;
}

DEVICE u32 word(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }
DEVICE float number(const float4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// The contraction index that a fragment's slot (0 to 15) of step s (0, 1) of a block of 32 stands for: such that the
// four of lane t, in both steps, are the eight neighbours from 8 t on, which one 16-byte load brings.
DEVICE int place(int step, int slot) { return 8 * ((slot & 7) >> 1) + 4 * step + 2 * (slot >> 3) + (slot & 1); }
