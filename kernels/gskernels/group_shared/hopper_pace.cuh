// How blocks of hopper_backward.cu keep together, so that what one reads of dY is in L2 for the others.
//
// Macros: SLICES (of 64 batch rows).
#pragma once
#include "../cuda/hopper.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// What blocks know of each other; all begins at 0.
struct Progress {
  u32 rows, labels;  // labels that all blocks which own rows have asked for, and those which own labels
  u32 held;          // 1 + the label that a block which lags asks for next; 0: none lags
  u32 unused;
  u32 drawn[2];      // blocks that own rows; labels
};

// How far a block (OF_ROWS: that owns rows) may be ahead: `lead` labels of the other kind. Who owns rows and is `lag` labels behind their
// mean finds less and less in L2, and so holds all others of its kind until it is not. Only hints: who has looked too often goes on, so
// blocks need not run at the same time.
template <bool OF_ROWS> struct Pace {
  Progress* all;
  int lead, lag;
  mutable Progress seen = {};      // at the last look
  mutable bool holds = false;
  mutable int patience = 1 << 11;  // looks in a row, 1 ms or so
  DEVICE Pace(Progress* all_, int lead_, int lag_) : all(all_), lead(lead_), lag(lag_) {}
  // By all lanes of a warp, before `count` labels from `label` on are asked for.
  DEVICE void wait(int label, int count) const {
    int looks = patience;
    while (looks > 0 && too_far(label)) look(), looks--;
    if (looks == 0) patience = 0;
    look();  // for the next time, and for `hold`
    const bool one = elect();
    if (one) add_relaxed(OF_ROWS ? &all->rows : &all->labels, count);
    if (OF_ROWS) hold(label, one);
  }
  DEVICE bool too_far(int label) const {
    const int needed = label - lead;
    if (!OF_ROWS) return needed > 0 && needed * SLICES > seen.rows;
    return (needed > 0 && needed > seen.labels) || (seen.held > 0 && !holds && label >= static_cast<int>(seen.held) + lag);
  }
  DEVICE void look() const {
    if (OF_ROWS)
      asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(seen.rows), "=r"(seen.labels), "=r"(seen.held), "=r"(seen.unused) : "l"(all) : "memory");
    else
      seen.rows = load_relaxed(&all->rows);
  }
  // By all lanes, one of which tells.
  DEVICE void hold(int label, bool one) const {
    const bool lags = label < static_cast<int>(seen.rows / SLICES) - lag;
    if (one && (lags || holds)) store_relaxed(&all->held, lags ? label + 1 : 0);
    holds = lags;
  }
  // Once all is asked for.
  DEVICE void end() const { hold(1 << 30, elect()); }
};
#endif  // sm_90a
