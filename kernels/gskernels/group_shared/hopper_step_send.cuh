// From the blocks of hopper_step.cu that own labels to the ring: by two warps, one sends and one tells the readers.
#pragma once
#include "hopper_step.cuh"

constexpr int LAG = 2;    // items that were sent and may not be written yet
constexpr int SOON = 2;   // items at first that readers are told of as soon as they are written: they have nothing else to do
constexpr int ASKED = 4;  // items whose slots are asked for before it is their turn

DEVICE void bulk_store(void* to, u32 from, u32 bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from), "r"(bytes) : "memory");
}

struct Sending {
  const Step& step;
  u32 stages, filled, empty, written;  // shared memory: stages, barriers, a count
  int block, blocks, all;              // items of this block

  // An item of this block, and its slot, which others took `taken` times before it is free for this item. Counted on: a division
  // takes as long as all else that is done for an item.
  struct Place {
    int rows = 0, item, slot;
    u32 taken = 0;
    DEVICE Place(const Sending& mine) : item(mine.block * mine.step.row_blocks), slot(item) {}  // slots are more than blocks
    DEVICE void advance(const Sending& mine) {
      const bool last = ++rows == mine.step.row_blocks;
      const int more = last ? (mine.blocks - 1) * mine.step.row_blocks + 1 : 1;
      if (last) rows = 0;
      item += more, slot += more;
      if (slot >= mine.step.slots) slot -= mine.step.slots, taken += SLICES;
    }
  };

  // By one lane: old weights and dY of each item to the ring. That a slot's readers have its contents is known before anything is
  // written there; how often it was taken is asked some items ahead, as L2 answers no sooner, and right after `tell`, whose fence
  // waits for what was asked. A stage is free once it was read: this lane waits for nothing else while there are items to send.
  DEVICE void send() const {
    int reading = -1;  // stage that the copy engine may still read
    auto release = [&] {
      if (reading < 0) return;
      bulk_wait_read<0>();
      mbarrier_arrive(empty + 8 * reading);
      reading = -1;
    };
    Place place(*this), ahead(*this);
#pragma unroll 1
    for (int i = 0; i < ASKED; i++) ahead.advance(*this);
    u32 known[ASKED] = {};  // of the next slots, how often each was taken at least
    for (int first = 0; first < all; first += ASKED)
#pragma unroll
      for (int i = 0; i < ASKED; i++) {
        const int n = first + i, s = n % STAGES;
        if (n == all) break;
        if (!mbarrier_test(filled + 8 * s, n / STAGES & 1)) {
          release();
          mbarrier_wait(filled + 8 * s, n / STAGES & 1);
        }
        if (known[i] < place.taken) {  // what others wait for goes first
          release();
          bulk_wait<0>();
          tell(written, n);
          while (load_acquire(step.done + place.slot) < place.taken) __nanosleep(64);
        }
        bulk_store(step.ring + static_cast<i64>(place.slot) * SLOT_BYTES, stages + s * STAGE_BYTES + X_BYTES, SLOT_BYTES);
        bulk_commit();
        place.advance(*this);
        if (reading >= 0) {
          bulk_wait_read<1>();
          mbarrier_arrive(empty + 8 * reading);
        }
        reading = s;
        if (i % 2 == 0) continue;
        if (n < SOON) {
          bulk_wait<0>();
          tell(written, n + 1);
        } else if (n >= LAG) {
          bulk_wait<LAG>();
          tell(written, n + 1 - LAG);
        }
#pragma unroll
        for (int j = i - 1; j <= i; j++, ahead.advance(*this)) known[j] = load_relaxed(step.done + ahead.slot);
      }
    release();
    bulk_wait<0>();
    tell(written, all);
  }

  // By one lane of another warp: tell the readers. That takes a fence which waits for L2, longer than sending does; one is
  // enough for all items that were written meanwhile.
  DEVICE void announce() const {
    Place place(*this);
    for (int n = 0; n < all;) {
      const int until = told(written);
      if (n >= until) {
        __nanosleep(32);
        continue;
      }
      fence_gpu();
      for (; n < until; n++, place.advance(*this)) store_relaxed(step.ready + place.slot, place.item + 1);
    }
  }
};
