// What hopper_topk.cu tells topk_choose.cu of each tile of 64 labels and each batch row, beside its largest logit.
//
// A tile has eight *parts* of 8 labels, those that one lane of four has of each half of an accumulator's row: part
// 2 t + h has labels 32 h + 8 j + 2 t + i of its tile, j < 4, i < 2. A bit says that all logits of a part lie below a bound
// which follows from the tile's largest. Both kernels compute it alike, so it may be any number: only how much is computed again
// depends on it. Half a part, with j < 2 or not, is a *piece*: its labels share a list whatever the group size is.
//
// A *window* is eight neighbouring tiles, a *quad* half a window. hints [pairs of rows][windows][t] has four bits of each tile,
// of the first highest: of row r + 8 before r, and of h = 1 before h = 0.
#pragma once
#include "../cuda/common.cuh"

constexpr int WINDOW = 8, QUAD = 4, PIECES = 16;

DEVICE float larger(float a, float b) {  // NaN if either is
  float v;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(v) : "f"(a), "f"(b));
  return v;
}

DEVICE float bound_of_parts(float largest) { return __fmaf_rn(-0.25f, fabsf(largest), largest); }

// Of piece 4 t + 2 (j / 2) + h: its first label, and the m-th from there.
DEVICE int first_label(int tile, int piece) { return tile * 64 + piece % 2 * 32 + piece / 2 % 2 * 16 + piece / 4 * 2; }
DEVICE int label_of(int first, int m) { return first + m / 2 * 8 + m % 2; }

// Of a batch row: its pair, and which of the two.
DEVICE int pair_of(int row) { return row / 16 * 8 + row % 8; }
DEVICE int half_of(int row) { return row / 8 % 2; }
// Where the words of a tile's window are. stride: tiles of a row, a multiple of a window.
DEVICE i64 hint_at(int pair, int tile, int stride) { return (static_cast<i64>(pair) * (stride / WINDOW) + tile / WINDOW) * 4; }
