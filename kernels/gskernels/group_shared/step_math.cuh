// What a training step does number by number: loss and slope of a logit, rounding and update of a weight.
// The formulas are those of gskernels.steps and gskernels.optim, which the tests hold this against.
//
// Macros: LOSS (0 cross-entropy, 1 squared hinge), FACTOR (0, 1: a factor of each label's loss), MOMENTUM (0, 1),
// ROUNDING (0 to nearest, 1 stochastic, 2 Kahan).
#pragma once
#include "../cuda/common.cuh"

DEVICE float exp2_approximate(float v) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
DEVICE float reciprocal_approximate(float v) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}

// log(1 + e) / e on [0, 1], relative error 4e-7 wherever e is.
DEVICE float log1p_ratio(float e) {
  float p = 0.044089616197723926f - 0.008539204108515776f * e;
  p = fmaf(p, e, -0.1076816915209945f);
  p = fmaf(p, e, 0.1774523996889353f);
  p = fmaf(p, e, -0.24495462299797086f);
  p = fmaf(p, e, 0.33275479683508646f);
  p = fmaf(p, e, -0.49997405390156047f);
  return fmaf(p, e, 0.9999998056663729f);
}

// A lane's loss so far. Softplus of z is log(1 + exp(z)), or max(z, 0) + log(1 + exp(-|z|)). Without factors the product of all
// 1 + exp is kept, less 1 so that a small one is not lost: one logarithm for many of them, before the product is too large.
constexpr int LOSSES_A_FLUSH = 64;
constexpr float LARGE = 1e19f;  // two such numbers have a product
struct Loss {
  double total = 0;
  float sum = 0, product = 0;
  DEVICE void flush() {
#if LOSS == 0 && !FACTOR
    sum += log1pf(product);
    product = 0;
#endif
    total += sum;
    sum = 0;
  }
  // By 1 + p.
  DEVICE void multiply(float p) {
    if (product > LARGE) flush();
    product = fmaf(product, p, product + p);
  }
};

// Add the losses of the logits in z, which become their derivative: of negatives, any of them. factor[i / 4 * 2 + i % 2] is that
// of z[i]'s label: z is the accumulator of a tensor-core product.
template <int N> DEVICE void any_losses_and_slopes(float (&z)[N], const float* factor, Loss& loss) {
  [[maybe_unused]] float e[N];
#pragma unroll
  for (int i = 0; i < N; i++) {
    const float s = z[i];
#if LOSS == 0
    e[i] = exp2_approximate(-1.4426950408889634f * fabsf(s));
    z[i] = (s > 0 ? 1.f : e[i]) * reciprocal_approximate(1.f + e[i]);
#if FACTOR
    const float f = factor[i / 4 * 2 + i % 2];
    loss.sum = fmaf(f, fmaf(e[i], log1p_ratio(e[i]), fmaxf(s, 0.f)), loss.sum);
    loss.sum = s == s ? loss.sum : s;  // the maximum loses a NaN
    z[i] *= f;
#else
    loss.sum += fmaxf(s, 0.f);  // a NaN shows in the product
#endif
#else
    const float margin = s < -1.f ? 0.f : 1.f + s;
    z[i] = 2.f * margin;
#if FACTOR
    const float f = factor[i / 4 * 2 + i % 2];
    loss.sum = fmaf(f * margin, margin, loss.sum);
    z[i] *= f;
#else
    loss.sum = fmaf(margin, margin, loss.sum);
#endif
#endif
  }
#if LOSS == 0 && !FACTOR
#pragma unroll
  for (int step = 1; step < N; step *= 2)
#pragma unroll
    for (int i = 0; i < N; i += 2 * step) e[i] = fmaf(e[i], e[i + step], e[i] + e[i + step]);  // (1 + a) (1 + b) - 1
  loss.multiply(e[0]);
#endif
}

// The same of logits that are mostly negative: with e = exp(z) the loss is log(1 + e), and two neighbours share a reciprocal, as
// 1 / (1 + a) = (1 + b) / ((1 + a) (1 + b)). False, and nothing is done, where one is large or is no number.
template <int N> DEVICE bool small_losses_and_slopes(float (&z)[N], Loss& loss) {
  float e[N], product[N / 2];
#pragma unroll
  for (int i = 0; i < N; i++) e[i] = exp2_approximate(1.4426950408889634f * z[i]);
#pragma unroll
  for (int i = 0; i < N; i += 2) {
    const float both = e[i] * e[i + 1];
    product[i / 2] = e[i] + both + e[i + 1];  // (1 + a) (1 + b) - 1
    const float over = reciprocal_approximate(1.f + product[i / 2]);
    e[i] = (e[i] + both) * over, e[i + 1] = (e[i + 1] + both) * over;
  }
#pragma unroll
  for (int step = 1; step < N / 2; step *= 2)
#pragma unroll
    for (int i = 0; i < N / 2; i += 2 * step) product[i] = fmaf(product[i], product[i + step], product[i] + product[i + step]);
  if (!(product[0] < LARGE)) return false;
#pragma unroll
  for (int i = 0; i < N; i++) z[i] = e[i];
  loss.multiply(product[0]);
  return true;
}

// The same, where bit i of `hit` says that z[i] is of a positive. A logit of -inf has no part in loss or derivative.
template <int N> DEVICE void loss_and_slopes(float (&z)[N], u32 hit, const float* factor, Loss& loss) {
  if (hit)
#pragma unroll
    for (int i = 0; i < N; i++) z[i] = hit >> i & 1 ? -z[i] : z[i];
#if LOSS == 0 && !FACTOR
  if (!small_losses_and_slopes(z, loss))
#endif
    any_losses_and_slopes(z, factor, loss);
  if (hit)
#pragma unroll
    for (int i = 0; i < N; i++) z[i] = hit >> i & 1 ? -z[i] : z[i];
}

// ---- updates ----

struct Rates {
  float lr, momentum, decay;
  u32 seed_low, seed_high;
};

DEVICE u32 mix(u32 h) {
  h ^= h >> 16;
  h *= 0x7FEB352Du;
  h ^= h >> 15;
  h *= 0x846CA68Bu;
  return h ^ (h >> 16);
}

// The new weight of number `place` of its parameter; `buffer` and `lost` hold its state, which changes.
template <class T> DEVICE float updated(float w, float gradient, float& buffer, float& lost, i64 place, const Rates& rates) {
  float step = fmaf(rates.decay, w, gradient);
#if MOMENTUM
  step = fmaf(rates.momentum, buffer, step);
  buffer = step;
#endif
#if ROUNDING == 2
  const float wanted = lost - rates.lr * step, now = to_float(from_float<T>(w + wanted));
  lost = wanted - (now - w);
  return now;
#else
  const float value = w - rates.lr * step;
#if ROUNDING == 1
  const u32 low = static_cast<u32>(place), high = static_cast<u32>(place >> 32);
  const u32 noise = mix(mix(low ^ rates.seed_low) + rates.seed_high + high * 0x9E3779B9u) >> 16;
  const u32 bits = (__float_as_uint(value) + noise) & 0xFFFF0000u;
  return fabsf(value) < __int_as_float(0x7F800000) ? __uint_as_float(bits) : value;
#endif
  return value;
#endif
}

// Eight neighbouring 16-bit numbers, in memory on 16 bytes. (Of plain assignments the compiler makes four stores.)
DEVICE uint4 load_eight(const void* from) {
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from) : "memory");
  return v;
}
DEVICE void store_eight(void* to, uint4 v) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
template <class T> DEVICE void unpack(float (&v)[8], uint4 from) {
  const T* p = reinterpret_cast<const T*>(&from);
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] = to_float(p[i]);
}
template <class T> DEVICE uint4 packed(const float (&v)[8]) {
  return make_uint4(pack<T>(v[0], v[1]), pack<T>(v[2], v[3]), pack<T>(v[4], v[5]), pack<T>(v[6], v[7]));
}
