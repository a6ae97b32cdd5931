// Hopper's own instructions: barriers in shared memory, the copy engine (TMA), warp-group products (wgmma).
// The first two exist from sm_90 on, wgmma for sm_90a alone. Addresses in shared memory are those of `shared_address`.
#pragma once
#include "common.cuh"

#if __CUDA_ARCH__ >= 900

// A kernel argument: `const __grid_constant__ TensorMap`; the host makes it with `gskernels.cuda.launch.tensor_map`.
struct alignas(64) TensorMap { u64 opaque[16]; };

// True for one lane of the warp, which must be whole.
DEVICE bool elect() {
  u32 one;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(one));
  return one;
}

// The same number, computed here: else the compiler does so where it is used, after a wait.
DEVICE u32 here(u32 v) {
  asm volatile("" : "+r"(v));
  return v;
}

// ---- barriers in shared memory: 8 bytes each ----

DEVICE void mbarrier_init(u32 at, u32 arrivals) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory"); }
// `count` barriers from `at` on, by the first WARPS warps of a block, each its own: for addresses that differ between lanes the compiler makes a
// loop of all of them.
template <int WARPS> DEVICE void mbarrier_init_each(u32 at, int count, u32 arrivals, int warp) {
  for (int i = warp; i < count && warp < WARPS; i += WARPS)
    if (elect()) mbarrier_init(at + i * 8, arrivals);
}
// Makes initialised barriers visible to the copy engine and to the cluster.
DEVICE void mbarrier_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// Does not wait for loads under way: who gives back what it has read lets `at` depend on what they brought.
DEVICE void mbarrier_arrive(u32 at) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory"); }
// Arrives, and the phase also waits for that many bytes from the copy engine.
DEVICE void mbarrier_expect(u32 at, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
}
// Until the phase of that parity is over (the first phase has parity 0).
DEVICE void mbarrier_wait(u32 at, u32 parity) {
  asm volatile("{\n.reg .pred p;\n"
               "AGAIN%=: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1, 0x989680;\n"
               "@p bra DONE%=;\nbra AGAIN%=;\nDONE%=:\n}" ::"r"(at), "r"(parity) : "memory");
}
// Whether it is.
DEVICE bool mbarrier_test(u32 at, u32 parity) {
  u32 over;
  asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(over) : "r"(at), "r"(parity) : "memory");
  return over;
}

// ---- the copy engine ----

// Ordinary writes to shared memory become visible to it: by each writing thread, before the barrier.
DEVICE void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

DEVICE void tma_load(u32 to, const TensorMap* map, u32 barrier, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
               ::"r"(to), "l"(map), "r"(barrier), "r"(x), "r"(y) : "memory");
}
// Into the L2 cache alone.
DEVICE void tma_prefetch(const TensorMap* map, int x, int y) {
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];" ::"l"(map), "r"(x), "r"(y) : "memory");
}
DEVICE void tma_store(const TensorMap* map, u32 from, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];"
               ::"l"(map), "r"(from), "r"(x), "r"(y) : "memory");
}
DEVICE void tma_store(const TensorMap* map, u32 from, int x, int y, int z) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];"
               ::"l"(map), "r"(from), "r"(x), "r"(y), "r"(z) : "memory");
}
// Contiguous bytes, a multiple of 16, both ends on 16 bytes.
DEVICE void bulk_load(u32 to, const void* from, u32 bytes, u32 barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               ::"r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
}
// Contiguous fp32, added to those in memory. bytes as above.
DEVICE void bulk_add(float* to, u32 from, u32 bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to), "r"(from), "r"(bytes) : "memory");
}
// Stores of this thread: a group ends here; wait until all but PENDING groups have read their source, or are written.
DEVICE void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int PENDING> DEVICE void bulk_wait_read() { asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory"); }
template <int PENDING> DEVICE void bulk_wait() { asm volatile("cp.async.bulk.wait_group %0;" ::"n"(PENDING) : "memory"); }

// Four 8 x 8 matrices of 16-bit numbers from registers; lane i gives the address of row i % 8 of matrix i / 8.
DEVICE void store_matrices(u32 at, u32 r0, u32 r1, u32 r2, u32 r3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(r0), "r"(r1), "r"(r2), "r"(r3) : "memory");
}

// The same transposed.
DEVICE void store_matrices_transposed(u32 at, u32 r0, u32 r1, u32 r2, u32 r3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(r0), "r"(r1), "r"(r2), "r"(r3) : "memory");
}

#endif  // sm_90 and newer

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Registers a thread of this warpgroup may use from here on, a multiple of 8; all of its warps say so.
template <int N> DEVICE void more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> DEVICE void fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }

// ---- warp-group products: four warps, the first a multiple of four ----

DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }

// A matrix in shared memory. Offsets in bytes; swizzle: 1 = rows of 128 bytes, 2 = 64, 3 = 32, 0 = none.
DEVICE u64 wgmma_matrix(u32 at, u32 leading, u32 stride, u32 swizzle) {
  return static_cast<u64>((at & 0x3FFFF) >> 4) | static_cast<u64>(leading >> 4) << 16 | static_cast<u64>(stride >> 4) << 32 |
         static_cast<u64>(swizzle) << 62;
}

// d [64 x N] = a [64 x 16] b [16 x N] (+ d if `add`). rs: a in registers; ss: both in shared memory.
// TA: 0 = a is K-major, 1 = M-major; TB: 0 = b is K-major, 1 = N-major.
template <class T, int N, int TB> struct Wgmma;

#define GS_D4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define GS_D8(d, i) GS_D4(d, i), GS_D4(d, i + 4)
#define GS_D16(d, i) GS_D8(d, i), GS_D8(d, i + 8)
#define GS_D32(d, i) GS_D16(d, i), GS_D16(d, i + 16)
// D: the text of the accumulators' operands; RS and SS: of the others, the predicate's source first.
#define GS_WGMMA(T, NAME, N, D, RS_IF, RS, SS_IF, SS, ...)                                                            \
  template <int TB> struct Wgmma<T, N, TB> {                                                                          \
    static DEVICE void rs(float (&d)[N / 2], const u32 (&a)[4], u64 b, int add) {                                     \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " RS_IF ", 0;\n"                                                 \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " {" D "}, " RS ";\n}"             \
                   : __VA_ARGS__                                                                                      \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TB));                          \
    }                                                                                                                 \
    template <int TA> static DEVICE void ss(float (&d)[N / 2], u64 a, u64 b, int add) {                               \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " SS_IF ", 0;\n"                                                 \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " {" D "}, " SS ";\n}"             \
                   : __VA_ARGS__                                                                                      \
                   : "l"(a), "l"(b), "r"(add), "n"(TA), "n"(TB));                                                     \
    }                                                                                                                 \
  };
#define GS_R4 "%0, %1, %2, %3"
#define GS_R8 GS_R4 ", " "%4, %5, %6, %7"
#define GS_R16 GS_R8 ", " "%8, %9, %10, %11, %12, %13, %14, %15"
#define GS_R32 GS_R16 ", " "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define GS_R64 GS_R32 ", " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, " \
  "%54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define GS_WGMMAS(T, NAME) \
  GS_WGMMA(T, NAME, 8, GS_R4, "%9", "{%4, %5, %6, %7}, %8, p, 1, 1, %10", \
           "%6", "%4, %5, p, 1, 1, %7, %8", GS_D4(d, 0)) \
  GS_WGMMA(T, NAME, 16, GS_R8, "%13", "{%8, %9, %10, %11}, %12, p, 1, 1, %14", \
           "%10", "%8, %9, p, 1, 1, %11, %12", GS_D8(d, 0)) \
  GS_WGMMA(T, NAME, 32, GS_R16, "%21", "{%16, %17, %18, %19}, %20, p, 1, 1, %22", \
           "%18", "%16, %17, p, 1, 1, %19, %20", GS_D16(d, 0)) \
  GS_WGMMA(T, NAME, 64, GS_R32, "%37", "{%32, %33, %34, %35}, %36, p, 1, 1, %38", \
           "%34", "%32, %33, p, 1, 1, %35, %36", GS_D32(d, 0)) \
  GS_WGMMA(T, NAME, 128, GS_R64, "%69", "{%64, %65, %66, %67}, %68, p, 1, 1, %70", \
           "%66", "%64, %65, p, 1, 1, %67, %68", GS_D32(d, 0), GS_D32(d, 32))
GS_WGMMAS(bf16, "bf16")
GS_WGMMAS(fp16, "f16")

#endif  // sm_90a
