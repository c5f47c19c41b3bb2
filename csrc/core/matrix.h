// A weight matrix packed for products with few columns: y[n] = Σ_k W[n][k]·x[k] for one or a handful of x.
//
// Panels of `width` outputs (a multiple of 16, at most 64; the last one may be narrower) are stored one after the other,
// inputs outermost: a product walks through memory once, in order.
//
//   fp32   panel[k][n]                 K padded to a multiple of 16
//   bf16   panel[k / 2][n][k % 2]      K padded to a multiple of 32: the pairs that AMX and vdpbf16ps multiply
//   int8   panel[k / 4][n][k % 4]      K padded to a multiple of 16; `scales` and `offsets` for each row (cpu/matvec_int8.h)
//
// The layout is the same for every instruction set.
#pragma once
#include <cstddef>
#include <cstdint>

namespace fastvoc {

enum Precision { kFloat32 = 0, kBFloat16 = 1, kInt8 = 2 };

constexpr int kMaxPanel = 64;

struct Matrix {
  const char* data;
  int N, K;   // padded
  int width;  // of a full panel
  const float* scales = nullptr;            // (N,) int8: what a row's whole numbers are multiplied with
  const std::int32_t* offsets = nullptr;    // (N,) int8: 128·Σ_k of a row
};

constexpr int round_up(int n, int to) { return (n + to - 1) / to * to; }
constexpr int padded_inputs(int k, int precision) { return round_up(k, precision == kBFloat16 ? 32 : 16); }
constexpr int padded_outputs(int n) { return round_up(n, 16); }

}  // namespace fastvoc
