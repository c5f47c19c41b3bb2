// The product of matvec.h with int8 weights: y[n] = scale_x·scale_w[n]·Σ_k q_w[n][k]·q_x[k].
//
// Weights carry one scale a row, made when they are packed; a column gets its own when it is multiplied: its largest
// magnitude becomes 127. The sum is exact in int32, so it is the same on every instruction set, in any order; vpdpbusd wants
// one factor unsigned, so 128 is added to q_x, and 128·Σ_k q_w[n][k] taken off again.
#pragma once
#include "cpu/matvec.h"

namespace fastvoc::FASTVOC_ISA {
namespace {

struct q8 { float value; };  // a number that is quantised when it is multiplied

typedef std::int8_t vbyte __attribute__((vector_size(kLanes)));

// sum[i] += Σ_b (signed byte b of w[i])·(unsigned byte b of x)
inline vint dot_bytes(vint sum, vint w, std::int32_t x) {
#if defined(__AVX512VNNI__) && !defined(FASTVOC_EMULATED)
  return (vint)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(x), (__m512i)w);
#else
  for (int b = 0; b < 4; ++b) sum += (w << (24 - 8 * b) >> 24) * ((x >> 8 * b & 255) - vint{});
  return sum;
#endif
}

// in (K,) -> K bytes q + 128; returns the scale. NaN or infinity anywhere makes the scale NaN.
inline float quantise(const q8* in, std::uint8_t* to, int K) {
  const float* x = &in->value;
  vfloat largest{}, poison{};
  for (int k = 0; k < K; k += kLanes) {
    const vfloat v = load(x + k);
    largest = max(largest, abs(v));
    poison = fma(v, vfloat{}, poison);
  }
  float lanes[kLanes], top = 0;
  store(lanes, largest);
  for (int i = 0; i < kLanes; ++i) top = lanes[i] > top ? lanes[i] : top;
  const float broken = sum(poison);
  const bool usable = top > 1e-30f && broken == 0.f;
  const vfloat inverse = splat(usable ? 127.f / top : 0.f), magic = splat(12582912.f);  // 1.5·2²³ rounds to an integer
  for (int k = 0; k < K; k += kLanes) {
    const vfloat q = fma(load(x + k), inverse, magic) - magic;
    const vint bytes = __builtin_convertvector(q == q ? q : vfloat{}, vint) + 128;
    const vbyte b = __builtin_convertvector(bytes, vbyte);
    std::memcpy(to + k, &b, sizeof b);
  }
  return usable ? top / 127.f : broken;
}

template <int NV, int M>
inline void block(const std::int8_t* w, int width, const std::uint8_t* in, int ld, int K, vint (&sums)[M][NV]) {
  vint first[M][NV] = {}, second[M][NV] = {};
  for (int k = 0; k < K; k += 8, w += 8 * width)
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      std::int32_t x[2];
      std::memcpy(x, in + m * ld + k, 8);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        vint w0, w1;
        std::memcpy(&w0, w + 4 * v * kLanes, sizeof w0);
        std::memcpy(&w1, w + 4 * (width + v * kLanes), sizeof w1);
        first[m][v] = dot_bytes(first[m][v], w0, x[0]);
        second[m][v] = dot_bytes(second[m][v], w1, x[1]);
      }
    }
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) sums[m][v] = first[m][v] + second[m][v];
}

template <int NV, int M>
inline void block_scaled(const Matrix& W, int n0, const std::int8_t* w, int width, const std::uint8_t* in, int K,
                         const float* scales, float* out) {
  vint sums[M][NV];
  block<NV, M>(w, width, in, K, K, sums);
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      vint offset;
      std::memcpy(&offset, W.offsets + n0 + v * kLanes, sizeof offset);
      const vfloat y = __builtin_convertvector(sums[m][v] - offset, vfloat);
      store(out + m * kMaxPanel + v * kLanes, y * (load(W.scales + n0 + v * kLanes) * scales[m]));
    }
}

template <int M>
inline void panel_int8(const Matrix& W, int n0, int n, const std::uint8_t* in, const float* scales, float* out) {
  constexpr int kWidest = M == 1 ? 4 : kLanes == 16 ? 2 : 1;
  const std::int8_t* w = reinterpret_cast<const std::int8_t*>(W.data) + std::int64_t(n0) * W.K;
  int v = 0;
  for (; v + kWidest <= n / kLanes; v += kWidest)
    block_scaled<kWidest, M>(W, n0 + v * kLanes, w + 4 * v * kLanes, n, in, W.K, scales, out + v * kLanes);
  for (; v < n / kLanes; ++v)
    block_scaled<1, M>(W, n0 + v * kLanes, w + 4 * v * kLanes, n, in, W.K, scales, out + v * kLanes);
}

template <class F>
inline void product(const Matrix& W, const q8* in, int ld, int M, int first, int last, float* scratch, F store_panel) {
  if (first >= last) return;
  alignas(64) float sums[kMaxColumns * kMaxPanel];
  float scales[kMaxColumns];
  std::uint8_t* bytes = reinterpret_cast<std::uint8_t*>(scratch);
  for (int m = 0; m < M; ++m) scales[m] = quantise(in + std::int64_t(m) * ld, bytes + std::int64_t(m) * W.K, W.K);
  for (int p = first; p < last; ++p) {
    const int n0 = p * W.width, n = n0 + W.width <= W.N ? W.width : W.N - n0;
    int m = 0;
    for (; m + 4 <= M; m += 4) panel_int8<4>(W, n0, n, bytes + m * W.K, scales + m, sums + m * kMaxPanel);
    for (; m + 2 <= M; m += 2) panel_int8<2>(W, n0, n, bytes + m * W.K, scales + m, sums + m * kMaxPanel);
    if (m < M) panel_int8<1>(W, n0, n, bytes + m * W.K, scales + m, sums + m * kMaxPanel);
    store_panel(n0, n, sums);
  }
}

}  // namespace
}  // namespace fastvoc::FASTVOC_ISA
