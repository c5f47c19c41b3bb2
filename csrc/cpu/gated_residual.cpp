// The gradient of a gated residual layer, CPU.   core/gated_residual.h has shapes and phases.
//
//   kGate     dz = ρ·W_resᵀ·dx' + W_skipᵀ·dskip;   da, z from dz and a
//   kInput    du = Σ_j W_in[:, :, j]ᵀ·da, tap after tap, nothing is gathered;   dx = du + ρ·dx'
//   kWeights  dW_in[:, :, j] = Σ_t da(t)·u(t + j·d - left)ᵀ;   dW_out = Σ_t (dx', dskip)(t)·z(t)ᵀ
//
// All are products whose right side is read in place, a row of it per step: weights, or what the samples held. So one
// block does them all; its left side goes along rows or along columns.
#include "core/gated_residual.h"

#include "cpu/elementwise.h"
#include "cpu/products.h"

namespace fastvoc::FASTVOC_ISA {
namespace {

using Job = GatedResidualBackward;

constexpr int kDepth = 256;  // longer sums are made in parts: rounding errors stay small, and what is read again stays in L2

// M rows and NV vectors of   c[m][n] += Σ_i a[m·row + i·depth]·b[i·ldb + n],   i < K;   the last vector has `last` columns
template <int NV, int M>
__attribute__((noinline)) void block(int K, const float* a, std::int64_t row, std::int64_t depth, const float* b,
                                     std::int64_t ldb, float* c, std::int64_t ldc, int last) {
  vfloat sums[M][NV];
  const float* rows[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    rows[m] = a + m * row;
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) sums[m][v] = vfloat{};
  }
  const auto multiply = [&](auto load_last) {
    for (std::int64_t i = 0; i < K * depth; i += depth, b += ldb) {
      vfloat right[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV - 1; ++v) right[v] = load(b + v * kLanes);
      right[NV - 1] = load_last(b + (NV - 1) * kLanes);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const vfloat left = splat(rows[m][i]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) sums[m][v] = fma(right[v], left, sums[m][v]);
      }
    }
  };
  if (last == kLanes) multiply([](const float* p) { return load(p); });
  else multiply([last](const float* p) { return load_some(p, last); });
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      float* at = c + m * ldc + v * kLanes;
      const int n = v < NV - 1 ? kLanes : last;
      store_some(at, load_some(at, n) + sums[m][v], n);
    }
}

template <int NV>
inline void all_rows(std::int64_t M, int K, const float* a, std::int64_t row, std::int64_t depth, const float* b,
                     std::int64_t ldb, float* c, std::int64_t ldc, int last) {
  std::int64_t m = 0;
  for (; m + 6 <= M; m += 6) block<NV, 6>(K, a + m * row, row, depth, b, ldb, c + m * ldc, ldc, last);
  if (m + 4 <= M) block<NV, 4>(K, a + m * row, row, depth, b, ldb, c + m * ldc, ldc, last), m += 4;
  if (m + 2 <= M) block<NV, 2>(K, a + m * row, row, depth, b, ldb, c + m * ldc, ldc, last), m += 2;
  if (m < M) block<NV, 1>(K, a + m * row, row, depth, b, ldb, c + m * ldc, ldc, last);
}

// c (M, N) += a·b, b (K, N). a's rows lie `row` apart, the numbers in one `depth`.
void multiply_onto(std::int64_t M, int N, std::int64_t K, const float* a, std::int64_t row, std::int64_t depth, const float* b,
                   std::int64_t ldb, float* c, std::int64_t ldc) {
  for (std::int64_t i = 0; i < K; i += kDepth, a += kDepth * depth, b += kDepth * ldb) {
    const int part = int(K - i < kDepth ? K - i : kDepth);
    for (int n = 0; n < N; n += kPanel * kLanes) {
      const int rest = N - n, vectors = (rest + kLanes - 1) / kLanes, last = rest - (vectors - 1) * kLanes;
      const auto with = [&](auto width, int columns) {
        all_rows<decltype(width)::value>(M, part, a, row, depth, b + n, ldb, c + n, ldc, columns);
      };
      if (vectors > kPanel) with(Constant<kPanel>{}, kLanes);
      else if (vectors == kPanel) with(Constant<kPanel>{}, last);
      else if (vectors == 3) with(Constant<3>{}, last);
      else if (vectors == 2) with(Constant<2>{}, last);
      else with(Constant<1>{}, last);
    }
  }
}

// `rows` samples from row `first` of all items' on
void gate_phase(const Job& job, std::int64_t first, std::int64_t rows) {
  const int R = job.R, H = job.H, S = job.S;
  float *z = job.z + first * H, *da = job.da + first * 2 * H;
  const float* a = job.a + first * 2 * H;
  for (std::int64_t i = 0; i < rows * H; ++i) z[i] = 0;  // holds dz until the gate turns it into z
  multiply_onto(rows, H, R, job.dx_out + first * R, R, 1, job.w_out, H, z, H);
  multiply_onto(rows, H, S, job.dskip + first * S, S, 1, job.w_out + std::int64_t(R) * H, H, z, H);
  for (std::int64_t r = 0; r < rows; ++r, z += H, a += 2 * H, da += 2 * H)
    elementwise<3, 3>({z, a, a + H}, {da, da + H, z}, H, gate_backward);
}

// Samples t0 … t1 - 1 of item b
void input_phase(const Job& job, std::int64_t b, std::int64_t t0, std::int64_t t1) {
  const int R = job.R, G = 2 * job.H;
  const float *dx_out = job.dx_out + b * job.T * R, *da = job.da + b * job.T * G;
  float* dx = job.dx + b * job.T * R;
  for (std::int64_t i = t0 * R; i < t1 * R; ++i) dx[i] = 0;
  for (int j = 0; j < job.k; ++j) {
    const std::int64_t shift = job.left - j * job.dilation;  // tap j at sample t + shift sees sample t
    const std::int64_t from = t0 + shift < 0 ? -shift : t0, to = t1 + shift > job.T ? job.T - shift : t1;
    if (from < to)
      multiply_onto(to - from, R, G, da + (from + shift) * G, G, 1, job.w_in + std::int64_t(j) * G * R, R, dx + from * R, R);
  }
  float* du_sum = job.du_sums + (b * job.tiles() + t0 / Job::kTile) * R;
  for (int r = 0; r < R; ++r) du_sum[r] = 0;
  for (std::int64_t t = t0; t < t1; ++t)
    for (int r = 0; r < R; ++r) {
      float& x = dx[t * R + r];
      du_sum[r] += x;
      x += job.rho * dx_out[t * R + r];
    }
}

// Rows m0 … m1 - 1 of dw (n of them in all, N columns) += Σ_t left(t)·right(t + shift), t + shift inside the signal
void accumulate(const Job& job, std::int64_t m0, std::int64_t m1, const float* left, int n_left, const float* right, int N,
                std::int64_t shift, float* dw) {
  if (m0 >= m1) return;
  for (std::int64_t i = m0 * N; i < m1 * N; ++i) dw[i] = 0;
  const std::int64_t first = shift < 0 ? -shift : 0, last = shift > 0 ? job.T - shift : job.T;
  for (std::int64_t b = 0; b < job.B; ++b)
    if (first < last)
      multiply_onto(m1 - m0, N, last - first, left + (b * job.T + first) * n_left + m0, 1, n_left,
                    right + (b * job.T + first + shift) * N, N, dw + m0 * N, N);
}

void weights_phase(const Job& job, std::int64_t first, std::int64_t last) {
  const int R = job.R, H = job.H, S = job.S, G = 2 * H;
  const auto rows = [&](std::int64_t offset, int n, const float* left, const float* right, int N, std::int64_t shift, float* dw) {
    const std::int64_t m0 = first - offset, m1 = last - offset;
    accumulate(job, m0 > 0 ? m0 : 0, m1 < n ? m1 : n, left, n, right, N, shift, dw);
  };
  for (int j = 0; j < job.k; ++j)
    rows(std::int64_t(j) * G, G, job.da, job.u, R, j * job.dilation - job.left, job.dw_in + std::int64_t(j) * G * R);
  rows(std::int64_t(job.k) * G, R, job.dx_out, job.z, H, 0, job.dw_out);
  rows(std::int64_t(job.k) * G + R, S, job.dskip, job.z, H, 0, job.dw_out + std::int64_t(R) * H);
}

}  // namespace

void gated_residual_backward(const Job& job, Job::Phase phase, std::int64_t first, std::int64_t last) {
  const FlushDenormals flush;
  if (phase == Job::kWeights) return weights_phase(job, first, last);
  for (; first < last; ++first) {
    const std::int64_t b = first / job.tiles(), t0 = first % job.tiles() * Job::kTile;
    const std::int64_t t1 = t0 + Job::kTile < job.T ? t0 + Job::kTile : job.T;
    if (phase == Job::kGate) gate_phase(job, b * job.T + t0, t1 - t0);
    else input_phase(job, b, t0, t1);
  }
}

}  // namespace fastvoc::FASTVOC_ISA
