// What hopper_topk.cu tells topk_choose.cu of each tile of 64 labels and each batch row, beside its largest logit.
//
// A tile has sixteen *parts* of 4 labels, those that one lane of four has of a quarter of an accumulator's row: part 4 t + b
// has labels 16 (3 - b) + 8 j + 2 t + i of its tile, i and j < 2. A bit says that all logits of a part lie below the bound of
// its window and row. Both kernels compute it alike, so it may be any number: only how much is computed again depends on it.
//
// A *run* is the neighbouring tiles that one warpgroup takes, a *window* eight of these. The bound of a window follows from the
// largest logits of the tiles of the window before, that of a run's first window from those of its first tile: so no lane
// waits for another to know its bits. hints [pairs of rows][runs][quads of tiles][t] has 16 bits for each of the rows r (low) and
// r + 8: four of each tile, of the first tile highest.
#pragma once
#include "../cuda/common.cuh"

constexpr int WINDOW = 8, QUAD = 4, PARTS = 16;

// Of the mean of the largest logits of the window before, or that of the first tile of the run: which may be a best one itself.
DEVICE float bound_of_parts(float level, bool first_window) { return __fmaf_rn(first_window ? -0.125f : 0.2f, fabsf(level), level); }

// Of a part: its first label, and the m-th from there.
DEVICE int first_label(int tile, int part) { return tile * 64 + (3 - part % 4) * 16 + part / 4 * 2; }
DEVICE int label_of(int first, int m) { return first + m / 2 * 8 + m % 2; }

// Of a batch row: its pair, and which of the two.
DEVICE int pair_of(int row) { return row / 16 * 8 + row % 8; }
DEVICE int half_of(int row) { return row / 8 % 2; }
