// The gradient of a gated residual layer, CPU.   core/gated_residual.h has shapes and phases.
//
//   kGate        dz = ρ·W_resᵀ·dx' + W_skipᵀ·dskip;   da, z from dz and a
//   kInput       du = Σ_j W_in[:, :, j]ᵀ·da, tap after tap, nothing is gathered;   dx = du + ρ·dx'
//   kWeightsIn   dW_in[:, :, j] = Σ_t da(t)·u(t + j·d - left)ᵀ
//   kWeightsOut  dW_out = Σ_t (dx', dskip)(t)·z(t)ᵀ
//
// All are products whose right side is read in place, a row of it per step: weights, or what the samples held. So one
// block does them all; its left side goes along rows or along columns. Minimal filtering makes its operands first, of as many
// samples as stay in L2.
#include "core/gated_residual.h"

#include "cpu/elementwise.h"
#include "cpu/products.h"

namespace fastvoc::FASTVOC_ISA {
namespace {

using Job = GatedResidualBackward;

constexpr int kDepth = 256;  // longer sums are made in parts: rounding errors stay small, and what is read again stays in L2

// M rows and NV vectors of   c[m][n] = (onto ? c[m][n] : 0) + Σ_i a[m·row + i·depth]·b[i·ldb + n],   i < K;   the last vector
// has `last` columns
template <int NV, int M>
__attribute__((noinline)) void block(int K, const float* a, std::int64_t row, std::int64_t depth, const float* b,
                                     std::int64_t ldb, float* c, std::int64_t ldc, int last, bool onto) {
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
      store_some(at, onto ? load_some(at, n) + sums[m][v] : sums[m][v], n);
    }
}

template <int NV>
inline void all_rows(std::int64_t M, int K, const float* a, std::int64_t row, std::int64_t depth, const float* b,
                     std::int64_t ldb, float* c, std::int64_t ldc, int last, bool onto) {
  std::int64_t m = 0;
  for (; m + 6 <= M; m += 6) block<NV, 6>(K, a + m * row, row, depth, b, ldb, c + m * ldc, ldc, last, onto);
  if (m + 4 <= M) block<NV, 4>(K, a + m * row, row, depth, b, ldb, c + m * ldc, ldc, last, onto), m += 4;
  if (m + 2 <= M) block<NV, 2>(K, a + m * row, row, depth, b, ldb, c + m * ldc, ldc, last, onto), m += 2;
  if (m < M) block<NV, 1>(K, a + m * row, row, depth, b, ldb, c + m * ldc, ldc, last, onto);
}

// c (M, N) = a·b, or c + a·b; b (K, N), K > 0. a's rows lie `row` apart, the numbers in one `depth`.
void multiply(std::int64_t M, int N, std::int64_t K, const float* a, std::int64_t row, std::int64_t depth, const float* b,
              std::int64_t ldb, float* c, std::int64_t ldc, bool onto) {
  for (std::int64_t i = 0; i < K; i += kDepth, a += kDepth * depth, b += kDepth * ldb, onto = true) {
    const int part = int(K - i < kDepth ? K - i : kDepth);
    for (int n = 0; n < N; n += kPanel * kLanes) {
      const int rest = N - n, vectors = (rest + kLanes - 1) / kLanes, last = rest - (vectors - 1) * kLanes;
      const auto with = [&](auto width, int columns) {
        all_rows<decltype(width)::value>(M, part, a, row, depth, b + n, ldb, c + n, ldc, columns, onto);
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
  multiply(rows, H, R, job.dx_out + first * R, R, 1, job.w_out, H, z, H, false);  // z holds dz until the gate turns it into z
  if (S) multiply(rows, H, S, job.dskip + first * S, S, 1, job.w_out + std::int64_t(R) * H, H, z, H, true);
  for (std::int64_t r = 0; r < rows; ++r, z += H, a += 2 * H, da += 2 * H)
    elementwise<3, 3>({z, a, a + H}, {da, da + H, z}, H, gate_backward);
}

// Calls f(i, n) for each vector of N numbers: the n ≤ kLanes from i on
template <class F>
inline void vectors(int N, F f) {
  int i = 0;
  for (; i + kLanes <= N; i += kLanes) f(i, kLanes);
  if (i < N) f(i, N - i);
}

// One sample's dx = du + ρ·dx', and du's share of du_sum
inline void finish_dx(const Job& job, float* dx, vfloat du, const float* dx_out, float* du_sum, int i, int n) {
  store_some(du_sum + i, load_some(du_sum + i, n) + du, n);
  store_some(dx + i, fma(splat(job.rho), load_some(dx_out + i, n), du), n);
}

// Samples t0 … t1 - 1 of item b
void input_phase(const Job& job, std::int64_t b, std::int64_t t0, std::int64_t t1, float* du_sum) {
  const int R = job.R, G = 2 * job.H;
  const float *dx_out = job.dx_out + b * job.T * R, *da = job.da + b * job.T * G;
  float* dx = job.dx + b * job.T * R;
  std::memset(dx + t0 * R, 0, (t1 - t0) * R * sizeof(float));
  for (int j = 0; j < job.k; ++j) {
    const std::int64_t shift = job.left - j * job.dilation;  // tap j at sample t + shift sees sample t
    const std::int64_t from = t0 + shift < 0 ? -shift : t0, to = t1 + shift > job.T ? job.T - shift : t1;
    if (from < to)
      multiply(to - from, R, G, da + (from + shift) * G, G, 1, job.w_in + std::int64_t(j) * G * R, R, dx + from * R, R, true);
  }
  for (std::int64_t t = t0; t < t1; ++t)
    vectors(R, [&](int i, int n) { finish_dx(job, dx + t * R, load_some(dx + t * R + i, n), dx_out + t * R, du_sum, i, n); });
}

// x0 - x2, x1 + x2, x2 - x1, x3 - x1: N numbers of each, the results `apart`
inline void combine(const float* const (&x)[4], float* to, std::int64_t apart, int N) {
  vectors(N, [&](int i, int n) {
    const vfloat x0 = load_some(x[0] + i, n), x1 = load_some(x[1] + i, n), x2 = load_some(x[2] + i, n), x3 = load_some(x[3] + i, n);
    store_some(to + i, x0 - x2, n), store_some(to + apart + i, x1 + x2, n);
    store_some(to + 2 * apart + i, x2 - x1, n), store_some(to + 3 * apart + i, x3 - x1, n);
  });
}

// The four rows (width n, all of an item's in x) from t on, d apart; `zeros` outside the signal.
inline void rows_from(const Job& job, const float* x, int n, std::int64_t t, const float* zeros, const float* (&rows)[4]) {
  for (int i = 0; i < 4; ++i, t += job.dilation) rows[i] = std::uint64_t(t) < std::uint64_t(job.T) ? x + t * n : zeros;
}

// Pairs q0 … q1 - 1 of item b, at most kPairs
void input_pairs(const Job& job, std::int64_t b, std::int64_t q0, std::int64_t q1, float* du_sum, float* scratch) {
  const int R = job.R, G = 2 * job.H, n = int(q1 - q0);
  const std::int64_t d = job.dilation;
  const float *dx_out = job.dx_out + b * job.T * R, *da = job.da + b * job.T * G;
  float *dx = job.dx + b * job.T * R, *zeros = scratch, *products = zeros + G, *operands = products + 4 * Job::kPairs * R;
  const std::int64_t apart = Job::kPairs * R;
  std::memset(zeros, 0, G * sizeof(float));
  int seconds = 0;
  for (int i = 0; i < n; ++i) {
    const std::int64_t t = first_of_pair(q0 + i, job.dilation);
    seconds += t + d < job.T;
    const float* rows[4];
    rows_from(job, da, G, t + job.left - 2 * d, zeros, rows);
    combine(rows, operands + i * G, Job::kPairs * G, G);
  }
  for (int j = 0; j < 4; ++j)
    multiply(j < 3 ? n : seconds, R, G, operands + j * Job::kPairs * G, G, 1, job.w_in + std::int64_t(j) * G * R, R,
             products + j * apart, R, false);
  for (int p = 0; p < n; ++p) {
    const std::int64_t t = first_of_pair(q0 + p, job.dilation);
    vectors(R, [&](int i, int n) {
      const float* s = products + p * R + i;
      const vfloat s1 = load_some(s + apart, n), s2 = load_some(s + 2 * apart, n);
      finish_dx(job, dx + t * R, load_some(s, n) + (s1 + s2), dx_out + t * R, du_sum, i, n);
      if (p < seconds)
        finish_dx(job, dx + (t + d) * R, load_some(s + 3 * apart, n) + (s1 - s2), dx_out + (t + d) * R, du_sum, i, n);
    });
  }
}

// Rows m0 … m1 - 1 of dw (n of them in all, N columns) = Σ_t left(t)·right(t + shift), t + shift inside the signal
void accumulate(const Job& job, std::int64_t m0, std::int64_t m1, const float* left, int n_left, const float* right, int N,
                std::int64_t shift, float* dw) {
  if (m0 >= m1) return;
  std::memset(dw + m0 * N, 0, (m1 - m0) * N * sizeof(float));
  const std::int64_t first = shift < 0 ? -shift : 0, last = shift > 0 ? job.T - shift : job.T;
  for (std::int64_t b = 0; b < job.B; ++b)
    if (first < last)
      multiply(m1 - m0, N, last - first, left + (b * job.T + first) * n_left + m0, 1, n_left,
               right + (b * job.T + first + shift) * N, N, dw + m0 * N, N, true);
}

// Rows first … last - 1 of n from `offset` on
template <class F>
inline void overlap(std::int64_t first, std::int64_t last, std::int64_t offset, std::int64_t n, F f) {
  const std::int64_t m0 = first - offset, m1 = last - offset;
  f(m0 > 0 ? m0 : 0, m1 < n ? m1 : n);
}

void weights_in_phase(const Job& job, std::int64_t first, std::int64_t last) {
  const int R = job.R, G = 2 * job.H;
  for (int j = 0; j < job.k; ++j)
    overlap(first, last, std::int64_t(j) * G, G, [&](std::int64_t m0, std::int64_t m1) {
      accumulate(job, m0, m1, job.da, G, job.u, R, j * job.dilation - job.left, job.dw_in + std::int64_t(j) * G * R);
    });
}

void weights_out_phase(const Job& job, std::int64_t first, std::int64_t last) {
  const int R = job.R, H = job.H, S = job.S;
  overlap(first, last, 0, R, [&](std::int64_t m0, std::int64_t m1) { accumulate(job, m0, m1, job.dx_out, R, job.z, H, 0, job.dw_out); });
  overlap(first, last, R, S, [&](std::int64_t m0, std::int64_t m1) {
    accumulate(job, m0, m1, job.dskip, S, job.z, H, 0, job.dw_out + std::int64_t(R) * H);
  });
}

// g0, ½(g0 + g1), ½(g0 - g1), g1 of pairs q0 … q0 + n - 1: columns m … m + rows - 1 of da
void combine_gradients(const Job& job, std::int64_t b, std::int64_t q0, int n, std::int64_t m, int rows, const float* zeros, float* to) {
  const int G = 2 * job.H;
  const float* da = job.da + b * job.T * G + m;
  const std::int64_t apart = Job::kChunk * Job::kRows;
  for (int p = 0; p < n; ++p, to += Job::kRows) {
    const std::int64_t t = first_of_pair(q0 + p, job.dilation);
    const float *first = da + t * G, *second = t + job.dilation < job.T ? da + (t + job.dilation) * G : zeros;
    vectors(rows, [&](int i, int n) {
      const vfloat g0 = load_some(first + i, n), g1 = load_some(second + i, n), half = splat(0.5f);
      store(to + i, g0), store(to + apart + i, half * (g0 + g1));
      store(to + 2 * apart + i, half * (g0 - g1)), store(to + 3 * apart + i, g1);
    });
  }
}

// Rows m0 … m1 - 1 of dw_in, all three taps
void weights_in_pairs(const Job& job, std::int64_t m0, std::int64_t m1, float* scratch) {
  const int R = job.R, G = 2 * job.H;
  const std::int64_t plane = std::int64_t(G) * R;
  float *sums = job.workspace, *zeros = scratch, *gradients = zeros + G + R, *inputs = gradients + 4 * Job::kChunk * Job::kRows;
  std::memset(zeros, 0, (G + R) * sizeof(float));
  if (!job.B || !job.T)  // no first chunk writes them
    for (int j = 0; j < 4; ++j) std::memset(sums + j * plane + m0 * R, 0, (m1 - m0) * R * sizeof(float));
  for (std::int64_t b = 0; b < job.B; ++b)
    for (std::int64_t q0 = 0; q0 < job.pairs(); q0 += Job::kChunk) {
      const int n = int(job.pairs() - q0 < Job::kChunk ? job.pairs() - q0 : Job::kChunk);
      for (int i = 0; i < n; ++i) {
        const float* rows[4];
        rows_from(job, job.u + b * job.T * R, R, first_of_pair(q0 + i, job.dilation) - job.left, zeros, rows);
        combine(rows, inputs + i * R, Job::kChunk * R, R);
      }
      for (std::int64_t m = m0; m < m1; m += Job::kRows) {
        const int rows = int(m1 - m < Job::kRows ? m1 - m : Job::kRows);
        combine_gradients(job, b, q0, n, m, rows, zeros, gradients);
        for (int j = 0; j < 4; ++j)
          multiply(rows, R, n, gradients + j * Job::kChunk * Job::kRows, 1, Job::kRows, inputs + j * Job::kChunk * R, R,
                   sums + j * plane + m * R, R, b > 0 || q0 > 0);
      }
    }
  for (std::int64_t i = m0 * R; i < m1 * R; ++i) {
    const float* at = sums + i;
    const float both = at[plane] + at[2 * plane];
    job.dw_in[i] = at[0] + both, job.dw_in[plane + i] = at[plane] - at[2 * plane], job.dw_in[2 * plane + i] = both + at[3 * plane];
  }
}

}  // namespace

void gated_residual_backward(const Job& job, Job::Phase phase, int thread, std::int64_t first, std::int64_t last) {
  const FlushDenormals flush;
  float* scratch = job.workspace + job.sums_floats() + thread * job.thread_floats();
  if (phase == Job::kWeightsIn) return job.minimal() ? weights_in_pairs(job, first, last, scratch) : weights_in_phase(job, first, last);
  if (phase == Job::kWeightsOut) return weights_out_phase(job, first, last);
  const auto end = [](std::int64_t start, std::int64_t size, std::int64_t n) { return start + size < n ? start + size : n; };
  for (; first < last; ++first) {
    const std::int64_t tiles = phase == Job::kGate ? job.tiles() : job.input_tiles(), b = first / tiles, tile = first % tiles;
    const std::int64_t t0 = tile * Job::kTile, q0 = tile * Job::kPairs;
    if (phase == Job::kGate) {
      gate_phase(job, b * job.T + t0, end(t0, Job::kTile, job.T) - t0);
      continue;
    }
    float* du_sum = job.du_sums + first * job.R;
    std::memset(du_sum, 0, job.R * sizeof(float));
    if (job.minimal()) input_pairs(job, b, q0, end(q0, Job::kPairs, job.pairs()), du_sum, scratch);
    else input_phase(job, b, t0, end(t0, Job::kTile, job.T), du_sum);
  }
}

}  // namespace fastvoc::FASTVOC_ISA
