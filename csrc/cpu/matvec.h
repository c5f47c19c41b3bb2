// Products of a packed matrix (core/matrix.h) with M columns, M small: the heart of generation.
//
// Bound by reading the weights (one column) or by multiply-adds (several). So each weight is loaded once for up to four
// columns, and a column's sums are formed in one fixed order whatever M is: a stream sounds the same alone or in company.
//
//   fp32   y = Σ_even k + Σ_odd k, two chains
//   bf16   per 32 inputs the even and the odd sum, then both into y: the order of AMX (cpu/amx.h). Where the machine has
//          vdpbf16ps and no AMX, its own order (two chains of pairs).
#pragma once
#include "core/matrix.h"
#include "cpu/simd.h"
#if defined(FASTVOC_USE_AMX)
#include "cpu/amx.h"
#endif

namespace fastvoc::FASTVOC_ISA {
namespace {

constexpr int kRegisters = kLanes == 16 ? 32 : 16;

// Zeroes registers. `= {}` would do, but the compiler then clears an array in memory, 1 KB at a time.
template <int M, int NV>
inline void clear(vfloat (&sums)[M][NV]) {
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) sums[m][v] = vfloat{};
}

// out[m][v] for NV vectors of outputs and M columns; `out` rows are kMaxPanel apart.
template <int NV, int M>
inline void block(const float* w, int width, const float* in, int ld, int K, float* out) {
  vfloat even[M][NV], odd[M][NV];
  clear(even), clear(odd);
  for (int k = 0; k < K; k += 2, w += 2 * width) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      const vfloat w0 = load(w + v * kLanes), w1 = load(w + width + v * kLanes);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        even[m][v] = fma(w0, splat(in[m * ld + k]), even[m][v]);
        odd[m][v] = fma(w1, splat(in[m * ld + k + 1]), odd[m][v]);
      }
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(out + m * kMaxPanel + v * kLanes, even[m][v] + odd[m][v]);
}

#if defined(FASTVOC_USE_DPBF16)

template <int NV, int M>
inline void block(const bf16* w, int width, const bf16* in, int ld, int K, float* out) {
  vfloat first[M][NV], second[M][NV];
  clear(first), clear(second);
  for (int k = 0; k < K; k += 4, w += 4 * width) {
    for (int m = 0; m < M; ++m) {
      std::int32_t x[2];
      std::memcpy(x, in + m * ld + k, 8);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        first[m][v] = dot_pairs(first[m][v], load_pairs(w + 2 * v * kLanes), x[0] - vint{});
        second[m][v] = dot_pairs(second[m][v], load_pairs(w + 2 * (width + v * kLanes)), x[1] - vint{});
      }
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(out + m * kMaxPanel + v * kLanes, first[m][v] + second[m][v]);
}
typedef bf16 Operand16;  // what the columns of a bf16 product are read as

#else

template <int NV, int M>
inline void block(const bf16* w, int width, const float* in, int ld, int K, float* out) {
  vfloat y[M][NV];
  clear(y);
  for (int k = 0; k < K; k += 32) {
    vfloat even[M][NV], odd[M][NV];
    clear(even), clear(odd);
    for (int p = 0; p < 32; p += 2, w += 2 * width) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        const vint pairs = load_pairs(w + 2 * v * kLanes);
        // One column leaves nothing else to do while weights arrive: +15 % from L2 (1 KB ahead, Skylake); fp32 loses by it
        if (M == 1) __builtin_prefetch(w + 2 * v * kLanes + 512);
        const vfloat w0 = even_of(pairs), w1 = odd_of(pairs);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
          even[m][v] = fma(w0, splat(in[m * ld + k + p]), even[m][v]);
          odd[m][v] = fma(w1, splat(in[m * ld + k + p + 1]), odd[m][v]);
        }
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) y[m][v] += even[m][v] + odd[m][v];
  }
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(out + m * kMaxPanel + v * kLanes, y[m][v]);
}
typedef float Operand16;  // widened beforehand: a broadcast straight from memory is free, a shift for each is not

#endif

// One panel for M columns, in vectors of outputs as the registers allow.
template <int M, class W, class X>
inline void panel_columns(const W* panel, int width, int n, const X* in, int ld, int K, float* out) {
  constexpr int kPair = sizeof(W) == 2 ? 2 : 1;
  constexpr int kWidest = M == 1 ? 4 : kRegisters / (M * (sizeof(W) == 2 ? 4 : 3)) >= 4 ? 4 : kRegisters / (M * 4) >= 2 ? 2 : 1;
  int v = 0;
  for (; v + kWidest <= n / kLanes; v += kWidest)
    block<kWidest, M>(panel + kPair * v * kLanes, width, in, ld, K, out + v * kLanes);
  if (kWidest > 2)
    for (; v + 2 <= n / kLanes; v += 2) block<2, M>(panel + kPair * v * kLanes, width, in, ld, K, out + v * kLanes);
  for (; v < n / kLanes; ++v) block<1, M>(panel + kPair * v * kLanes, width, in, ld, K, out + v * kLanes);
}

template <class W, class X>
__attribute__((noinline)) void panel_product(  // one copy for all callers: the loops inside are long, the call is nothing
    const W* panel, int width, int n, const X* in, int ld, int M, int K, float* out) {
  int m = 0;
  for (; m + 4 <= M; m += 4) panel_columns<4>(panel, width, n, in + m * ld, ld, K, out + m * kMaxPanel);
  for (; m + 2 <= M; m += 2) panel_columns<2>(panel, width, n, in + m * ld, ld, K, out + m * kMaxPanel);
  if (m < M) panel_columns<1>(panel, width, n, in + m * ld, ld, K, out + m * kMaxPanel);
}

constexpr int kMaxColumns = 16;  // of one call of product(): the rows of an AMX tile

// For panels first … last - 1: store_panel(n0, n, sums), sums[m][n] (rows kMaxPanel apart) being outputs n0 … n0 + n - 1.
// scratch: M·K floats.
template <class F>
inline void product(const Matrix& W, const float* in, int ld, int M, int first, int last, float*, F store_panel) {
  alignas(64) float sums[kMaxColumns * kMaxPanel];
  for (int p = first; p < last; ++p) {
    const int n0 = p * W.width, n = n0 + W.width <= W.N ? W.width : W.N - n0;
    panel_product(reinterpret_cast<const float*>(W.data) + std::int64_t(n0) * W.K, n, n, in, ld, M, W.K, sums);
    store_panel(n0, n, sums);
  }
}

template <class F>
inline void product(const Matrix& W, const bf16* in, int ld, int M, int first, int last, float* scratch, F store_panel) {
  if (first >= last) return;
  alignas(64) float sums[kMaxColumns * kMaxPanel];
#if defined(FASTVOC_USE_AMX)
  const bool tiles = M > 2;  // fewer columns leave most of a tile empty: the multiply-adds are as fast, and equal
  if (tiles) tile_configure(M);
#else
  constexpr bool tiles = false;
#endif
  const Operand16* columns;
  int columns_ld = W.K;
  if constexpr (sizeof(Operand16) == 2) {
    columns = reinterpret_cast<const Operand16*>(in), columns_ld = ld;
  } else {
    columns = reinterpret_cast<const Operand16*>(scratch);
    if (!tiles)
      for (int m = 0; m < M; ++m)
        widen(in + m * ld, scratch + m * W.K, W.K);
  }
  for (int p = first; p < last; ++p) {
    const int n0 = p * W.width, n = n0 + W.width <= W.N ? W.width : W.N - n0;
    const bf16* panel = reinterpret_cast<const bf16*>(W.data) + std::int64_t(n0) * W.K;
#if defined(FASTVOC_USE_AMX)
    if (tiles) {
      switch (n / 16) {
        case 4: tile_block<4>(panel, n, in, ld, W.K, sums); break;
        case 3: tile_block<3>(panel, n, in, ld, W.K, sums); break;
        case 2: tile_block<2>(panel, n, in, ld, W.K, sums); break;
        default: tile_block<1>(panel, n, in, ld, W.K, sums);
      }
    }
#endif
    if (!tiles) panel_product(panel, n, n, columns, columns_ld, M, W.K, sums);
    store_panel(n0, n, sums);
  }
#if defined(FASTVOC_USE_AMX)
  if (tiles) tile_release();
#endif
}

}  // namespace
}  // namespace fastvoc::FASTVOC_ISA
