// dY [B, L] to rows of dY^T: squares of a 32-bit word by a word, turned in registers. After cuda.cuh.
#pragma once

constexpr int PER_WORD = 4 / sizeof(T);  // numbers of a word: labels of dY, batch columns of dY^T
template <int N> constexpr int SQUARES = N / PER_WORD * (COLUMNS / PER_WORD);

// The batch column and label, within the tile, of square i. A warp takes eight words of labels by four of columns: whole
// sectors of dY, and few bank conflicts when they are turned.
template <int N> DEVICE void square_place(int i, int& b, int& l) {
  constexpr int ACROSS = N / PER_WORD / 8;
  const int lane = i % 32, block = i / 32;
  l = (block % ACROSS * 8 + lane % 8) * PER_WORD;
  b = (block / ACROSS * 4 + lane / 8) * PER_WORD;
}

struct Square {
  u32 words[PER_WORD];

  // `even`: L is even, so that words of dY are aligned. Zeros outside of dY.
  DEVICE void load(const T* grad, int batch, i64 labels, int b, i64 l, bool even) {
#pragma unroll
    for (int i = 0; i < PER_WORD; ++i) {
      words[i] = 0;
      if (b + i >= batch) continue;
      const T* from = grad + (b + i) * labels + l;
      if (even || !HALF) {
        if (l < labels) words[i] = *reinterpret_cast<const u32*>(from);
      } else {
        const u16* halves = reinterpret_cast<const u16*>(from);
        if (l < labels) words[i] = halves[0];
        if (l + 1 < labels) words[i] |= u32(halves[1]) << 16;
      }
    }
  }

  DEVICE void store(char* turned, int pitch, int b, int l) const {
#pragma unroll
    for (int i = 0; i < PER_WORD; ++i)
      *reinterpret_cast<u32*>(turned + (l + i) * pitch + b * sizeof(T)) =
          HALF ? __byte_perm(words[0], words[PER_WORD - 1], i ? 0x7632 : 0x5410) : words[0];
  }
};
