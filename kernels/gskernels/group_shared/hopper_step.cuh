// What the two kinds of block of hopper_step.cu share: sizes, the ring between them, and its flags.
//
// A *unit* is G labels of one group, an *item* a unit with ROWS rows of the batch. Units are numbered by label, items by unit
// and then by block of rows. The ring has a slot for each of `slots` items: the unit's weights as they were before the update,
// [K / 64][G][64] with rows of 128 bytes in 128-byte swizzle, and dY, [SLICES][64 rows][G] in a swizzle of its row length; both as
// they lie in shared memory, so that plain bulk copies move them.
#pragma once
#include "hopper.cuh"

constexpr int ROWS = SLICES * 64, PARTS = K / 64;
constexpr int ROW = G * 2;                                     // bytes of a row of dY
constexpr int SWIZZLE = G == 32 ? 2 : 3;                       // of dY, as `wgmma_matrix` counts
constexpr int WEIGHT_BYTES = G * K * 2, SLICE_BYTES = 64 * ROW;
constexpr int SLOT_BYTES = WEIGHT_BYTES + SLICES * SLICE_BYTES;
// A stage of a block that owns labels: rows of X^T, or later dW; then what a slot holds.
constexpr int PITCH = K + 4;  // floats of a row of dW in shared memory: a warp's lanes never share a bank
constexpr int GRADIENT_BYTES = (G * PITCH * 4 + 1023) / 1024 * 1024;
constexpr int X_BYTES = K * ROWS * 2 > GRADIENT_BYTES ? K * ROWS * 2 : GRADIENT_BYTES;
constexpr int STAGE_BYTES = X_BYTES + SLOT_BYTES;
constexpr int CONSUMERS = 16, WEIGHERS = 8, LOADERS = 2, STORERS = 2;  // warps; of the last, one sends and one tells
constexpr int THREADS = 32 * (CONSUMERS + WEIGHERS + LOADERS + STORERS);

struct Step {
  const T* xt;                // [dim][row_blocks * ROWS], zero beyond the batch
  const u16* lists;           // [groups][K]
  const u32* heads;           // [units] first link of the unit's positives, counted from 1; 0: none
  const int4* links;          // next link, row, label within its unit
  const T* bias;              // [labels]
  const float* factor;        // [labels]
  unsigned char* ring;
  u32 *ready, *done;          // [slots] 1 + the item that is there; how often a slice of 64 rows was taken from there
  float* sums;                // [slices][dim][64] dX^T, zero at first
  double* losses;             // [output blocks][CONSUMERS]
  T *weight, *dw, *buffer, *lost;  // [labels][K]
  float* db;                  // [labels]
  int batch, dim, labels, row_blocks, input_stages, slots;
};

// Between flags, which are ordinary memory, and what the copy engine reads next.
DEVICE void fence_async_all() { asm volatile("fence.proxy.async;" ::: "memory"); }

// A count that only grows, in shared memory: one thread of the block says how far it is, others look.
DEVICE void tell(u32 at, int v) { asm volatile("st.release.cta.shared.u32 [%0], %1;" ::"r"(at), "r"(v) : "memory"); }
DEVICE int told(u32 at) {
  int v;
  asm volatile("ld.acquire.cta.shared.u32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
  return v;
}

// A ring of stages in shared memory: where one is, and the parity of its barriers.
struct Ring {
  int stage = 0, phase = 0;
  DEVICE void advance(int stages) {
    if (++stage == stages) stage = 0, phase ^= 1;
  }
};
