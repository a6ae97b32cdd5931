// Both gradients for Hopper, from one launch: dX = dY W and dW = dY^T X over groups.
//
// The two sums want different things on chip: dX^T 64 batch rows of all inputs, dW the whole batch of few labels. So blocks are of two
// kinds, one a multiprocessor: the first `row_blocks` own batch rows (hopper_grad_input.cuh), the others own labels
// (hopper_backward.cuh). Both walk the labels in the same order, so that what one kind reads of dY the other finds in L2. That they
// advance alike is a matter of how many there are of each; who is ahead looks again before it goes on. Sums are in a fixed order.
//
// Macros: those of the two headers, SUM (1: blocks that own rows add their parts; 0: another kernel does).
#include "hopper_backward.cuh"
#include "hopper_grad_input.cuh"

#ifndef ROWS_AHEAD
#define ROWS_AHEAD 2
#endif
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// As grad_input::Whole, at a pace.
struct Paced {
  grad_weight::Pace pace;
  static constexpr int OFTEN = 4;  // tiles
  DEVICE void ready(int tile, int label) const {
    if (tile % OFTEN) return;
    pace.wait(label);
    if (elect()) pace.tell(grad_weight::TILE * OFTEN);
  }
};

constexpr int CONSUMERS = 4 * 128, THREADS = CONSUMERS + 128;

// dX of the rows of one slice, by the blocks that own them, once each has written its part: a share of the inputs each, added over all parts
// in a fixed order. `state`: 8 bits count those that have written, above is a bit for each share whose block has looked in vain for
// too long. So nobody need run at the same time as others: who comes last takes what these left. Barriers 1 to 5.
DEVICE void add_parts(u32 scratch, const float* __restrict__ partial, T* __restrict__ dx, u64* state, int part, int parts, int slice, int slices,
                      int batch, int dim, int thread) {
  constexpr int MOST = 48, LOOKS = 1 << 8, AT_ONCE = 12;
  const int shares = min(parts, MOST), wg = thread / 128, piece = thread % 128;
  __threadfence();
  barrier(1, CONSUMERS);
  if (thread == 0) {
    const u64 own = part < shares ? 1ull << part : 0;
    u64 todo = own;
    const u64 before = atomicAdd(state, 1ull);
    if ((before & 255) == parts - 1) {
      todo |= before >> 8;
    } else if (own) {
      int looks = LOOKS;
      u64 seen;
      do {
        asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(seen) : "l"(state) : "memory");
      } while ((seen & 255) != parts && --looks > 0);
      if (looks == 0 && (atomicAdd(state, own << 8) & 255) != parts) todo = 0;
    }
    __threadfence();
    asm volatile("st.shared.u64 [%0], %1;" ::"r"(scratch), "l"(todo) : "memory");
  }
  barrier(1, CONSUMERS);
  u64 todo;
  asm volatile("ld.shared.u64 %0, [%1];" : "=l"(todo) : "r"(scratch) : "memory");
  const u32 square = scratch + 16 + wg * (64 * 48);  // 64 rows of 8 inputs, and 16 bytes
  for (int share = 0; todo >> share; share++) {
    if (!(todo >> share & 1)) continue;
    for (int octet = share * 4 + wg; octet < dim / 8; octet += shares * 4) {
      float4 sum = {0, 0, 0, 0};
      const float4* from = reinterpret_cast<const float4*>(partial + (static_cast<i64>(slice) * dim + octet * 8) * 64) + piece;
#pragma unroll 1
      for (int p = 0; p < parts; p += AT_ONCE) {
        float4 v[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) v[i] = p + i < parts ? __ldcg(from + static_cast<i64>(p + i) * slices * dim * 16) : sum;
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
          if (p + i < parts) sum.x += v[i].x, sum.y += v[i].y, sum.z += v[i].z, sum.w += v[i].w;
      }
      const u32 to = square + (piece % 16 / 4 * 16 + piece % 4 * 2) * 48 + piece / 16 * 4;  // a piece: rows b, b + 1, b + 8, b + 9
      const float all[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
      for (int i = 0; i < 4; i++) asm volatile("st.shared.f32 [%0], %1;" ::"r"(to + (i / 2 * 8 + i % 2) * 48), "f"(all[i]) : "memory");
      barrier(2 + wg, 128);
      const int b = slice * 64 + piece;
      if (piece < 64 && b < batch) {
        const float4 low = load_sums(square + piece * 48), high = load_sums(square + piece * 48 + 16);
        *reinterpret_cast<uint4*>(dx + static_cast<i64>(b) * dim + octet * 8) =
            make_uint4(pack<T>(low.x, low.y), pack<T>(low.z, low.w), pack<T>(high.x, high.y), pack<T>(high.z, high.w));
      }
      barrier(2 + wg, 128);
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
hopper_backward(const __grid_constant__ TensorMap weights, const __grid_constant__ TensorMap grads, const __grid_constant__ TensorMap outputs,
                const u16* __restrict__ lists, float* __restrict__ partial, T* __restrict__ dx, const T* __restrict__ x,
                const T* __restrict__ xt, T* __restrict__ dw, u32* __restrict__ progress, int batch, int dim, int labels, int slices, int row_blocks,
                int rows_drawn, int labels_drawn, int rows_lead, int labels_lead
#ifdef STAMP
                , u64* __restrict__ stamps
#endif
                ) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const int thread = threadIdx.x, block = blockIdx.x, warp = (thread - CONSUMERS) / 32;
  const bool owns_rows = block < row_blocks, both = row_blocks > 0 && row_blocks < gridDim.x;
  const grad_input::Layout rows(shared_address(shared), dim);
  const grad_weight::Layout places{shared_address(shared)};
  // Made anew in each branch: what lives across them takes registers of the loading warps.
  auto tiles = [&] { return grad_input::Work(rows, block / slices, row_blocks / slices, labels, rows_drawn); };
  auto steps = [&] { return grad_weight::Work(places, block - row_blocks, gridDim.x - row_blocks, labels, slices, labels_drawn); };
#ifdef STAMP
  u64* const mark = stamps + block * 8;
  auto stamp = [&](int i) {
    if (thread == 0) {
      u64 t;
      asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t)::"memory");
      mark[i] = t;
    }
  };
  if (thread == 0) {
    u32 sm;
    asm volatile("mov.u32 %0, %smid;" : "=r"(sm)::"memory");
    mark[6] = sm, mark[7] = clock64();
  }
  stamp(0);
#else
  auto stamp = [](int) {};
#endif
  u32* const counters = progress + 2 + 2 * slices;  // of the row blocks of each slice, of label blocks
  if (START && thread < CONSUMERS + 96 && thread % 32 == 0 && thread >= CONSUMERS)
    asm volatile("prefetch.tensormap [%0];" ::"l"(warp == 0 ? &grads : warp == 1 ? &weights : &outputs) : "memory");
  start_next();  // the sum of the row blocks' parts, once all of this runs: it waits
  if (owns_rows) rows.init(thread);
  else places.init(thread);
  __syncthreads();
  if (thread < CONSUMERS) {
    more_registers<112>();
    stamp(1);
    if (owns_rows) {
      grad_input::consume<4>(rows, tiles(), dim, thread);
      stamp(2);
      grad_input::write<4>(rows, partial + static_cast<i64>(block) * dim * 64, dim, thread);
      stamp(3);
      if (SUM)
        add_parts(rows.sums(), partial, dx, reinterpret_cast<u64*>(progress + 2) + block % slices, block / slices, row_blocks / slices,
                  block % slices, slices, batch, dim, thread);
    } else {
      grad_weight::weigh(places, steps(), x, xt, lists, dw, &outputs, batch, dim);
    }
    stamp(4);
#ifdef STAMP
    if (thread == 0) mark[7] = clock64() - mark[7];
#endif
  } else {
    fewer_registers<32>();
    if (owns_rows) {
      const grad_input::Work work = tiles();
      if (warp == 0)
        grad_input::load_grads<ROWS_AHEAD>(rows, &grads, work, block % slices * 64,
                                  Paced{{progress, progress + 1, 1u, rows_lead, labels, both}}, counters + block % slices);
      else if (warp <= 2) grad_input::load_weights<2>(rows, &weights, lists, work, warp - 1);
    } else if (warp == 0) {
      grad_weight::load(places, &grads, steps(), {progress + 1, progress, static_cast<u32>(slices), labels_lead, labels, both}, counters + slices);
    }
  }
}

// Before it: progress [3 + 3 slices] = 0; xt [dim][stride] = x [batch, dim] transposed, rows in the order of `grad_weight::row_at`, zero beyond the batch. A block
// of 256 threads makes a square of 32 x 32.
extern "C" __global__ void __launch_bounds__(256)
hopper_backward_prepare(const T* __restrict__ x, T* __restrict__ xt, u32* __restrict__ progress, int words, int batch, int dim, int stride) {
  __shared__ T square[32][34];
  const int across = dim / 32, d0 = blockIdx.x % across * 32, place0 = blockIdx.x / across * 32;
  const int column = threadIdx.x % 32, group = threadIdx.x / 32;
  if (blockIdx.x == 0 && threadIdx.x < words) progress[threadIdx.x] = 0, __threadfence();
  __syncthreads();
  start_next();  // row blocks and what is resident do not wait for this
  if (stride == 0) return;
  for (int row = group; row < 32; row += 8) {
    const int b = grad_weight::row_at(place0 + row);
    square[row][column] = b < batch ? x[static_cast<i64>(b) * dim + d0 + column] : from_float<T>(0.f);
  }
  __syncthreads();
  for (int row = group; row < 32; row += 8) xt[static_cast<i64>(d0 + row) * stride + place0 + column] = square[column][row];
}
#endif  // sm_90a
