// Products of packed panels (core/gated_residual_stack.h) with many rows: the heart of the feed-forward stacks.
//
//   out[m][n] = Σ_sources Σ_k row(source, m)[k]·w(source)[k][n]
//
// A source is a matrix of inputs seen at some shift in time, and the weights that it meets: a tap of a dilated convolution is the
// same array of rows, some rows further on, so nothing is ever gathered. A block keeps its sums in registers; what a row's
// sums are does not depend on the block's size, so results do not depend on how rows are shared out.
//
// Measured, Zen 4, weights in L2: 97 % of the rate of fp32 multiply-adds, 96 % of that of vdpbf16ps.
#pragma once
#include "cpu/simd.h"
#if defined(FASTVOC_USE_AMX)
#include "cpu/amx.h"
#endif

namespace fastvoc::FASTVOC_ISA {
namespace {

// 16 registers hold 6·2 sums, 2 weights, 1 input; 32 hold 6·4, 4, 1
constexpr int kPanel = kLanes == 16 ? 4 : 2;  // vectors of a full panel: StackLayout::panel
#if defined(FASTVOC_USE_AMX)
constexpr int kInputsBf16 = 32;  // bf16 inputs that are read at once: StackLayout::inputs_bf16
constexpr bool kMinimalBf16 = false;  // tiles multiply faster than sums of inputs could be made for them
#else
constexpr bool kMinimalBf16 = true;
constexpr int kInputsBf16 = 2;
#endif
constexpr int kMaxDepth = 256;  // longer sums are made in parts, which keeps rounding errors as small as a blocked GEMM's

template <class X>
struct Source {
  const X* base;              // row i at base + i·ld
  std::int64_t ld;
  const X* w;
  int K;
  const std::int64_t* times;  // row m of the product is row times[m] + shift here; without times row m
  std::int64_t shift, n;
  const X* outside;           // stands for the rows before 0 and from n on

  const X* row(std::int64_t m) const {
    if (!times) return base + m * ld;
    const std::int64_t i = times[m] + shift;
    return std::uint64_t(i) < std::uint64_t(n) ? base + i * ld : outside;
  }
};

template <int N> struct Constant { static constexpr int value = N; };

// One step of a block: inputs k … k + kStep<X> - 1 of M rows times NV vectors of weights.
template <class X> constexpr int kStep = sizeof(X) == 2 ? 2 : 1;

template <int NV, int M>
inline void step(const float* w, const float* const (&rows)[M], int k, vfloat (&sums)[M][NV]) {
  vfloat weights[NV];
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) weights[v] = load(w + v * kLanes);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    const vfloat x = splat(rows[m][k]);
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) sums[m][v] = fma(weights[v], x, sums[m][v]);
  }
}

template <int NV, int M>
inline void step(const bf16* w, const bf16* const (&rows)[M], int k, vfloat (&sums)[M][NV]) {
  vint weights[NV];
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) weights[v] = load_pairs(w + 2 * v * kLanes);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    std::int32_t pair;
    std::memcpy(&pair, rows[m] + k, 4);
    const vint x = pair - vint{};
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) sums[m][v] = dot_pairs(sums[m][v], weights[v], x);
  }
}

// sums into out, or onto what is there. `out` holds whole panels: M rows of NV vectors.
template <int NV, int M>
inline void spill(vfloat (&sums)[M][NV], float* out, bool onto) {
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      float* at = out + (m * NV + v) * kLanes;
      store(at, onto ? load(at) + sums[m][v] : sums[m][v]);
      sums[m][v] = vfloat{};
    }
}

template <int NV, int M, class X>
__attribute__((noinline)) void block(const Source<X>* sources, int n_sources, std::int64_t n0, std::int64_t m0, float* out) {
  vfloat sums[M][NV];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) sums[m][v] = vfloat{};
  int depth = 0;
  bool onto = false;
  for (int s = 0; s < n_sources; ++s) {
    const Source<X>& source = sources[s];
    const X* rows[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) rows[m] = source.row(m0 + m);
    const X* w = source.w + n0 * source.K;
    for (int k = 0; k < source.K;) {
      const int rest = source.K - k, end = k + (rest < kMaxDepth - depth ? rest : kMaxDepth - depth);
      depth += end - k;
      for (; k < end; k += kStep<X>, w += kStep<X> * NV * kLanes) step<NV, M>(w, rows, k, sums);
      if (depth == kMaxDepth) {
        spill(sums, out, onto);
        onto = true, depth = 0;
      }
    }
  }
  spill(sums, out, onto);
}

template <int NV, class X>
inline int some_rows(const Source<X>* sources, int n_sources, std::int64_t n0, std::int64_t m, std::int64_t rows, float* out) {
  if (rows >= 6) return block<NV, 6>(sources, n_sources, n0, m, out), 6;
  if (rows >= 4) return block<NV, 4>(sources, n_sources, n0, m, out), 4;
  if (rows >= 2) return block<NV, 2>(sources, n_sources, n0, m, out), 2;
  return block<NV, 1>(sources, n_sources, n0, m, out), 1;
}

constexpr int kMaxRows = 32;  // of one block

#if defined(FASTVOC_USE_AMX)

// `rows` rows (at most 16·NH) of NV vectors of a panel that is `width` columns wide, by tiles. out: rows `width` apart.
template <int NH, int NV>
__attribute__((noinline)) void tiles(const Source<bf16>* sources, int n_sources, std::int64_t n0, int column, int width,
                                     std::int64_t m0, std::int64_t rows, float* out) {
  tile_clear<NH, NV>();
  alignas(64) bf16 border[2][16][32];
  for (int s = 0; s < n_sources; ++s) {
    const Source<bf16>& source = sources[s];
    const bf16 *a[2], *w = source.w + n0 * source.K + 2 * column;
    std::int64_t ld[2];
    bool inside[2];
    for (int h = 0; h < NH; ++h) {
      const std::int64_t m = m0 + 16 * h, i = !source.times ? m : m - m0 < rows ? source.times[m] + source.shift : -1;
      inside[h] = !source.times || (i >= 0 && i + 16 <= source.n);  // times are consecutive here
      a[h] = inside[h] ? source.base + i * source.ld : border[h][0];
      ld[h] = inside[h] ? source.ld : 32;
    }
    for (int k = 0; k < source.K; k += 32, w += 32 * width) {
      for (int h = 0; h < NH; ++h)
        if (!inside[h])
          for (int m = 0; m < 16; ++m) {
            const bf16* row = 16 * h + m < rows ? source.row(m0 + 16 * h + m) : nullptr;
            if (row) std::memcpy(border[h][m], row + k, 64);
            else std::memset(border[h][m], 0, 64);
          }
      tile_multiply<NH, NV>(a, ld, w, width);
      for (int h = 0; h < NH; ++h) a[h] += inside[h] ? 32 : 0;
    }
  }
  tile_result<NH, NV>(out, width);
}

template <int NV>
inline int some_rows(const Source<bf16>* sources, int n_sources, std::int64_t n0, std::int64_t m, std::int64_t rows, float* out) {
  const auto of = [&](auto narrow, int column) {
    constexpr int nv = decltype(narrow)::value;
    if (rows > 16) tiles<2, nv>(sources, n_sources, n0, column, NV * 16, m, rows, out + column);
    else tiles<1, nv>(sources, n_sources, n0, column, NV * 16, m, rows, out + column);
  };
  for (int v = 0; v + 2 <= NV; v += 2) of(Constant<2>{}, v * 16);
  if (NV % 2) of(Constant<1>{}, (NV - 1) * 16);
  return int(rows < 32 ? rows : 32);
}

#endif

// Calls f(Constant<NV>, n0) for each panel of N columns, as core/gated_residual_stack.h packs them.
template <class F>
inline void panels(int N, F f) {
  int n0 = 0;
  for (; n0 + kPanel * kLanes <= N; n0 += kPanel * kLanes) f(Constant<kPanel>{}, n0);
  if (kPanel > 2 && n0 + 2 * kLanes <= N) f(Constant<2>{}, n0), n0 += 2 * kLanes;
  if (n0 < N) f(Constant<1>{}, n0);
}

// All N columns of some rows. each(n0, nv, m, M, sums): rows m … m + M - 1 of nv vectors from column n0 on.
template <class X, class F>
inline void product(const Source<X>* sources, int n_sources, int N, std::int64_t rows, F each) {
  panels(N, [&](auto width, int n0) {
    constexpr int NV = decltype(width)::value;
    alignas(64) float sums[kMaxRows * NV * kLanes];
    for (std::int64_t m = 0; m < rows;) {
      const int M = some_rows<NV>(sources, n_sources, n0, m, rows - m, sums);
      each(n0, NV, m, M, sums);
      m += M;
    }
  });
}

}  // namespace
}  // namespace fastvoc::FASTVOC_ISA
