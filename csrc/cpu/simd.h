// One vector type per instruction set, in compiler vectors; intrinsics only where the compiler has no word for it.
//
// Everything sits in an anonymous namespace inside the instruction set's own: a function that were shared between
// translation units could be linked from the widest one, and crash older machines. For the same reason no STL here.
// Units are compiled with -ffp-contract=off: a multiplication and an addition are fused only where fma() says so.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__) && !defined(FASTVOC_EMULATED)
#include <immintrin.h>
#endif

namespace fastvoc::FASTVOC_ISA {
namespace {

// An emulated unit (FASTVOC_EMULATED) runs the code of the widest sets in plain C++, bit for bit, on any machine.
#if defined(__AVX512F__) || defined(FASTVOC_EMULATED)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float vfloat __attribute__((vector_size(4 * kLanes)));
typedef std::int32_t vint __attribute__((vector_size(4 * kLanes)));
typedef std::uint32_t vuint __attribute__((vector_size(4 * kLanes)));

inline vfloat load(const float* p) { vfloat v; std::memcpy(&v, p, sizeof v); return v; }
inline void store(float* p, vfloat v) { std::memcpy(p, &v, sizeof v); }
// Fewer than a vector: zeros behind the n values. Nothing beyond them is touched.
#if defined(__AVX2__) && !defined(__AVX512F__) && !defined(FASTVOC_EMULATED)
inline __m256i first(int n) { return (__m256i)(vint{0, 1, 2, 3, 4, 5, 6, 7} < n - vint{}); }
#endif
inline vfloat load_some(const float* p, int n) {
  if (n >= kLanes) return load(p);
#if defined(FASTVOC_EMULATED) || !defined(__AVX2__)
  vfloat v{};
  if (n > 0) std::memcpy(&v, p, n * sizeof(float));
  return v;
#elif defined(__AVX512F__)
  return _mm512_maskz_loadu_ps((1u << n) - 1, p);
#else
  return _mm256_maskload_ps(p, first(n));
#endif
}
inline void store_some(float* p, vfloat v, int n) {
  if (n >= kLanes) return store(p, v);
#if defined(FASTVOC_EMULATED) || !defined(__AVX2__)
  if (n > 0) std::memcpy(p, &v, n * sizeof(float));
#elif defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (1u << n) - 1, v);
#else
  _mm256_maskstore_ps(p, first(n), v);
#endif
}
inline vfloat splat(float x) { return x - vfloat{}; }

inline vfloat fma(vfloat a, vfloat b, vfloat c) {  // a·b + c; one rounding wherever the machine can
#if defined(FASTVOC_EMULATED)
  for (int i = 0; i < kLanes; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#elif defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

// NaN in a stays: every comparison with it is false, and the instructions then return their second operand
inline vfloat max(vfloat a, vfloat b) {
#if defined(FASTVOC_EMULATED)
  return a < b ? b : a;
#elif defined(__AVX512F__)
  return _mm512_maskz_max_ps(0xffff, b, a);  // the plain one makes GCC 12 warn of its own header
#elif defined(__AVX2__)
  return _mm256_max_ps(b, a);
#else
  return a < b ? b : a;
#endif
}
inline vfloat min(vfloat a, vfloat b) {
#if defined(FASTVOC_EMULATED)
  return a > b ? b : a;
#elif defined(__AVX512F__)
  return _mm512_maskz_min_ps(0xffff, b, a);
#elif defined(__AVX2__)
  return _mm256_min_ps(b, a);
#else
  return a > b ? b : a;
#endif
}
inline vfloat abs(vfloat x) { return vfloat(vint(x) & 0x7fffffff); }

inline float sum(vfloat v) {  // by halves, always in this order
  float lanes[kLanes];
  store(lanes, v);
  for (int n = kLanes / 2; n; n /= 2)
    for (int i = 0; i < n; ++i) lanes[i] += lanes[i + n];
  return lanes[0];
}

// e^x.   Max error 1.3 ulp on [-87, 88.3]; below it goes to 1e-38, above to 2e38; NaN stays (measured, all sets).
// x = n·ln2 + r, |r| <= ln2/2; e^r by a polynomial (Cephes expf), 2^n by adding n to the exponent bits.
inline vfloat exp(vfloat x) {
  const vfloat magic = splat(12582912.f);  // 1.5·2²³: adding it rounds to an integer
  vfloat c = min(max(x, splat(-87.f)), splat(88.3f));
  const vfloat n = fma(c, splat(1.44269504f), magic) - magic;
  vfloat r = fma(n, splat(-0.693359375f), c);
  r = fma(n, splat(2.12194440e-4f), r);
  vfloat p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r + 1.f);
  const vint exponent = __builtin_convertvector(c == c ? n : vfloat{}, vint) << 23;  // NaN has no integer
  return vfloat(vint(p) + exponent);
}

// σ(x) = 1/(1 + e^-x).   Max error 3.2 ulp on [-87, ∞) (measured, all sets).
inline vfloat sigmoid(vfloat x) { return 1.f / (1.f + exp(-x)); }

// tanh near 0, where 1 - 2/(e^2x + 1) would cancel: an odd polynomial for |x| < 0.625 (Cephes tanhf).
inline vfloat tanh_small(vfloat x) {
  const vfloat z = x * x;
  vfloat p = splat(-5.70498872745e-3f);
  p = fma(p, z, splat(2.06390887954e-2f));
  p = fma(p, z, splat(-5.37397155531e-2f));
  p = fma(p, z, splat(1.33314422036e-1f));
  p = fma(p, z, splat(-3.33332819422e-1f));
  return fma(p * z, x, x);
}

// e^x = scale·(1 + p), p exact to a few ulp even near 0, where e^x - 1 would cancel; x in [-87, 88.3].
struct Exponential { vfloat scale, p; };

inline Exponential exponential(vfloat x) {  // as exp(), the polynomial in pairs: its chain of products is what one waits for
  const vfloat magic = splat(12582912.f);
  const vfloat shifted = fma(x, splat(1.44269504f), magic), n = shifted - magic;
  vfloat r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  const vfloat r2 = r * r;
  const vfloat top = fma(splat(1.9875691500e-4f), r, splat(1.3981999507e-3f));
  const vfloat middle = fma(top, r2, fma(splat(8.3334519073e-3f), r, splat(4.1665795894e-2f)));
  const vfloat p = fma(fma(middle, r2, fma(splat(1.6666665459e-1f), r, splat(5.0000001201e-1f))), r2, r);
  return {vfloat((vint(shifted) << 23) + 0x3f800000), p};  // the integer n stands in shifted's lowest bits
}

inline Exponential exponential_bf16(vfloat x) {  // 2^x; relative error 1e-4
  const vfloat magic = splat(12582912.f);
  const vfloat shifted = x + magic, r = x - (shifted - magic);
  const vfloat low = fma(r, splat(2.4022651e-1f), splat(6.9314718e-1f)), high = fma(r, splat(9.6181291e-3f), splat(5.5504109e-2f));
  return {vfloat((vint(shifted) << 23) + 0x3f800000), fma(high, r * r, low) * r};
}

// tanh(a)·σ(b) = (e^2a - 1) / ((e^2a + 1)·(1 + e^-b)): one division for both.
// Max error 5.9 ulp (measured) for b > -60; below, the result is under 1e-26 and only its smallness is exact.
inline vfloat gate(vfloat a, vfloat b) {
  const Exponential t = exponential(min(max(a + a, splat(-18.2f)), splat(18.2f)));  // tanh(9.1) rounds to 1
  const Exponential s = exponential(max(min(-b, splat(60.f)), splat(-60.f)));
  const vfloat bottom = fma(t.scale, t.p, t.scale + 1.f) * fma(s.scale, s.p, s.scale + 1.f);
  return fma(t.scale, t.p, t.scale - 1.f) / bottom;
}

inline vfloat reciprocal_bf16(vfloat x) {  // 1/x; relative error 1e-4
#if defined(__AVX512F__) && !defined(FASTVOC_EMULATED)
  return (vfloat)_mm512_maskz_rcp14_ps(0xffff, (__m512)x);
#else
  return 1.f / x;
#endif
}

// The same for a result that becomes a bf16: relative error 2e-4, a tenth of bf16's own.
inline vfloat gate_bf16(vfloat a, vfloat b) {
#if defined(__AVX512F__) && !defined(FASTVOC_EMULATED)
  const Exponential t = exponential_bf16(min(max(a * 2.885390082f, splat(-26.f)), splat(26.f)));
  const Exponential s = exponential_bf16(max(min(b * -1.44269504f, splat(86.f)), splat(-86.f)));
  const vfloat bottom = fma(t.scale, t.p, t.scale + 1.f) * fma(s.scale, s.p, s.scale + 1.f);
  return fma(t.scale, t.p, t.scale - 1.f) * reciprocal_bf16(bottom);
#else
  return gate(a, b);
#endif
}

// tanh(a).   Max error 1.4 ulp everywhere (measured, all sets).
inline vfloat tanh(vfloat a) {
  const vfloat e = exp(2.f * min(abs(a), splat(9.1f)));
  const vint sign = vint(a) & vint(vuint{} + 0x80000000u);
  const vfloat large = vfloat(vint(1.f - 2.f / (e + 1.f)) | sign);
  return abs(a) < 0.625f ? tanh_small(a) : (a == a ? large : a);
}

// x: dy, a, b -> out: da, db, and tanh(a)·σ(b)
inline void gate_backward(const vfloat* x, vfloat* out) {
  const vfloat t = tanh(x[1]), s = sigmoid(x[2]);
  out[2] = t * s;
  out[0] = x[0] * s * (1.f - t * t);
  out[1] = x[0] * out[2] * (1.f - s);
}

typedef std::uint16_t bf16;

typedef std::uint16_t vhalf __attribute__((vector_size(2 * kLanes)));

inline void store_bf16(bf16* y, vfloat v) {  // to nearest even; NaN stays NaN
#if defined(__AVX512BF16__) && !defined(FASTVOC_EMULATED)
  const __m256bh h = _mm512_cvtneps_pbh((__m512)v);
#else
  const vuint u = vuint(v);
  const vuint rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  const vhalf h = __builtin_convertvector(v == v ? rounded : (u >> 16) | 0x40, vhalf);
#endif
  std::memcpy(y, &h, sizeof h);
}

inline void to_bf16(const float* x, bf16* y, int n) {  // n a multiple of kLanes
  for (int i = 0; i < n; i += kLanes) store_bf16(y + i, load(x + i));
}

inline vfloat load_bf16(const bf16* x) {
  vhalf h;
  std::memcpy(&h, x, sizeof h);
  return vfloat(__builtin_convertvector(h, vuint) << 16);
}

inline void widen(const bf16* x, float* y, int n) {  // n a multiple of kLanes
  for (int i = 0; i < n; i += kLanes) store(y + i, load_bf16(x + i));
}

// The two halves of 32-bit pairs of bf16, as floats: a bf16 is the upper half of its float.
inline vfloat even_of(vint pairs) { return vfloat(pairs << 16); }
inline vfloat odd_of(vint pairs) { return vfloat(pairs & vint(vuint{} + 0xffff0000u)); }

inline vint load_pairs(const bf16* p) { vint v; std::memcpy(&v, p, sizeof v); return v; }

// sum + a_even·b_even + a_odd·b_odd, in the order of vdpbf16ps where the machine (or its emulation) has it
inline vfloat dot_pairs(vfloat sum, vint a, vint b) {
#if defined(__AVX512BF16__) && !defined(FASTVOC_EMULATED)
  return (vfloat)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
  return fma(even_of(a), even_of(b), fma(odd_of(a), odd_of(b), sum));
#endif
}

// Denormals count as zero while one of these lives, as AMX has it: a decaying signal would else slow each product several
// times. The caller's mode comes back at its end.
struct FlushDenormals {
#if defined(__x86_64__)
  const unsigned saved = __builtin_ia32_stmxcsr();
  FlushDenormals() { __builtin_ia32_ldmxcsr(saved | 0x8040); }
  ~FlushDenormals() { __builtin_ia32_ldmxcsr(saved); }
#endif
};

}  // namespace
}  // namespace fastvoc::FASTVOC_ISA
