// What hopper_topk.cu tells topk_choose.cu of each tile of 64 labels and each batch row, beside its largest logit.
//
// A tile has eight *parts* of 8 labels, those that one lane of four has of each half of an accumulator's row: part
// 2 t + h has labels 32 h + 8 j + 2 t + i of its tile, j < 4, i < 2. A bit says that all logits of a part lie below a bound
// which follows from the tile's largest. Both kernels compute it alike, so it may be any number: only how much is computed again
// depends on it.
//
// A *run* is the neighbouring tiles that one warpgroup takes, a *window* eight of these. hints [pairs of rows][runs][windows][t]
// has 16 bits for each of the rows r (low) and r + 8: of the first tile of the window highest, and of h = 0 before h = 1.
#pragma once
#include "../cuda/common.cuh"

constexpr int WINDOW = 8;

DEVICE float bound_of_parts(float largest) { return __fmaf_rn(-0.25f, fabsf(largest), largest); }

// Of a part: its first label, and the m-th from there.
DEVICE int first_label(int tile, int part) { return tile * 64 + part % 2 * 32 + part / 2 * 2; }
DEVICE int label_of(int first, int m) { return first + m / 2 * 8 + m % 2; }

// Of a batch row: its pair, and which of the two.
DEVICE int pair_of(int row) { return row / 16 * 8 + row % 8; }
DEVICE int half_of(int row) { return row / 8 % 2; }
