// Loops over equal arrays, whole vectors at a time.
#pragma once
#include "cpu/simd.h"

namespace fastvoc::FASTVOC_ISA {
namespace {

// Calls f on whole vectors; the tail, shorter than one, is padded with zeros.
template <int kInputs, int kOutputs, class F>
inline void elementwise(const float* const (&in)[kInputs], float* const (&out)[kOutputs], std::int64_t n, F f) {
  std::int64_t i = 0;
  vfloat x[kInputs], y[kOutputs];
  for (; i + kLanes <= n; i += kLanes) {
    for (int j = 0; j < kInputs; ++j) x[j] = load(in[j] + i);
    f(x, y);
    for (int j = 0; j < kOutputs; ++j) store(out[j] + i, y[j]);
  }
  if (i == n) return;
  const int rest = int(n - i);
  for (int j = 0; j < kInputs; ++j) x[j] = load_some(in[j] + i, rest);
  f(x, y);
  for (int j = 0; j < kOutputs; ++j) store_some(out[j] + i, y[j], rest);
}

}  // namespace
}  // namespace fastvoc::FASTVOC_ISA
