// Invertible 1×1 convolution, CPU.   y = W·x for every sample      (Kingma and Dhariwal 2018, "Glow", section 3.2)
//
//   w (C, C)   x, y, dy, dx (C, T), row-major float32, one item;   C at most kMaxChannels
//
// The matrix is small (WaveGlow: 8, 6, 4), so the products wait for memory: each input row is loaded once a block.
#include "cpu/simd.h"

namespace fastvoc::FASTVOC_ISA {
namespace {

constexpr int kMaxChannels = 32;         // ops/invertible_conv1x1.py declines more
constexpr std::int64_t kBlock = 1024;     // samples that dy and x keep in a near cache for their product; 256 were slower
constexpr int kTile = 4;                 // rows of a product that share the loads of a column

// Rows first … first + kRows of y = W·x, for kVectors vectors of samples. ld_x, ld_y: floats from row to row.
template <int kRows, int kVectors>
inline void rows(const float* w, const float* x, std::int64_t ld_x, float* y, std::int64_t ld_y, int C) {
  vfloat sums[kRows][kVectors] = {};
  for (int j = 0; j < C; ++j)
    for (int v = 0; v < kVectors; ++v) {
      const vfloat column = load(x + j * ld_x + v * kLanes);
      for (int i = 0; i < kRows; ++i) sums[i][v] = fma(splat(w[i * C + j]), column, sums[i][v]);
    }
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kVectors; ++v) store(y + i * ld_y + v * kLanes, sums[i][v]);
}

template <int kVectors>
inline void all_rows(const float* w, const float* x, std::int64_t ld_x, float* y, std::int64_t ld_y, int C) {
  int i = 0;
  for (; i + kTile <= C; i += kTile) rows<kTile, kVectors>(w + i * C, x, ld_x, y + i * ld_y, ld_y, C);
  for (; i + 2 <= C; i += 2) rows<2, kVectors>(w + i * C, x, ld_x, y + i * ld_y, ld_y, C);
  if (i < C) rows<1, kVectors>(w + i * C, x, ld_x, y + i * ld_y, ld_y, C);
}

// The samples first … last - 1, less than a vector of them, as rows of one vector padded with zeros.
inline void padded(const float* x, std::int64_t T, std::int64_t n, int C, float* out) {
  for (int j = 0; j < C; ++j) {
    vfloat v{};
    std::memcpy(&v, x + j * T, n * sizeof(float));
    store(out + j * kLanes, v);
  }
}

void product(const float* w, const float* x, float* y, int C, std::int64_t T, std::int64_t first, std::int64_t last) {
  std::int64_t t = first;
  for (; t + 2 * kLanes <= last; t += 2 * kLanes) all_rows<2>(w, x + t, T, y + t, T, C);
  for (; t + kLanes <= last; t += kLanes) all_rows<1>(w, x + t, T, y + t, T, C);
  if (t == last) return;
  float in[kMaxChannels * kLanes], out[kMaxChannels * kLanes];
  padded(x + t, T, last - t, C, in);
  all_rows<1>(w, in, kLanes, out, kLanes, C);
  for (int i = 0; i < C; ++i) std::memcpy(y + i * T + t, out + i * kLanes, (last - t) * sizeof(float));
}

// sums[i][j] += dy[i]·x[j] over n samples, a multiple of kLanes; the lanes stay apart. soon: kTile rows that are read next, if any.
template <int kRows, int kColumns>
inline void outer(const float* dy, const float* x, std::int64_t ld, std::int64_t n, vfloat* sums, int C, const float* soon = nullptr) {
  vfloat local[kRows][kColumns] = {};
  for (std::int64_t t = 0; t < n; t += kLanes) {
    if (soon)
      for (int j = 0; j < kTile; ++j) __builtin_prefetch(soon + j * ld + t);
    vfloat column[kColumns];
    for (int j = 0; j < kColumns; ++j) column[j] = load(x + j * ld + t);
    for (int i = 0; i < kRows; ++i) {
      const vfloat row = load(dy + i * ld + t);
      for (int j = 0; j < kColumns; ++j) local[i][j] = fma(row, column[j], local[i][j]);
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kColumns; ++j) sums[i * C + j] += local[i][j];
}

inline void all_outer(const float* dy, const float* x, std::int64_t ld, std::int64_t n, vfloat* sums, int C) {
  int i = 0;
  for (; i + kTile <= C; i += kTile) {
    int j = 0;
    for (; j + kTile <= C; j += kTile) {
      // The next samples of every row are fetched meanwhile: reading and multiplying would else take turns
      const float* soon = (j == 0 ? dy : x) + i * ld + n;
      outer<kTile, kTile>(dy + i * ld, x + j * ld, ld, n, sums + i * C + j, C, j <= kTile ? soon : nullptr);
    }
    for (; j < C; ++j) outer<kTile, 1>(dy + i * ld, x + j * ld, ld, n, sums + i * C + j, C);
  }
  for (; i < C; ++i)
    for (int j = 0; j < C; ++j) outer<1, 1>(dy + i * ld, x + j * ld, ld, n, sums + i * C + j, C);
}

}  // namespace

void invertible_conv1x1(const float* w, const float* x, float* y, int C, std::int64_t T, std::int64_t first,
                        std::int64_t last) {
  product(w, x, y, C, T, first, last);
}

// dx = Wᵀ·dy, and dw (C, C) = Σ_t dy·xᵀ over the samples first … last - 1. w is the transpose already.
void invertible_conv1x1_backward(const float* w, const float* dy, const float* x, float* dx, double* dw, int C,
                                 std::int64_t T, std::int64_t first, std::int64_t last) {
  vfloat sums[kMaxChannels * kMaxChannels];
  for (int i = 0; i < C * C; ++i) sums[i] = vfloat{};
  for (std::int64_t t = first; t < last; t += kBlock) {
    const std::int64_t end = t + kBlock < last ? t + kBlock : last;
    const std::int64_t whole = (end - t) / kLanes * kLanes;
    product(w, dy, dx, C, T, t, end);
    all_outer(dy + t, x + t, T, whole, sums, C);
    if (t + whole == end) continue;
    float rest_dy[kMaxChannels * kLanes], rest_x[kMaxChannels * kLanes];
    padded(dy + t + whole, T, end - t - whole, C, rest_dy);
    padded(x + t + whole, T, end - t - whole, C, rest_x);
    all_outer(rest_dy, rest_x, kLanes, kLanes, sums, C);
  }
  for (int i = 0; i < C * C; ++i) dw[i] = sum(sums[i]);
}

}  // namespace fastvoc::FASTVOC_ISA
