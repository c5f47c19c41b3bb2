// One upsampling stage, CPU. The contract is fastvoc/ops/upsample.py.
//
//   in    (n_in, C)   frames first_in … first_in + n_in - 1 of a signal of n_frames frames, channels last
//   out   (n_out, C)  positions first_out … of its scale · n_frames
//
// Each output is a sum in a fixed order, whatever the range asked for: chunks equal the whole bit for bit.
#include "cpu/simd.h"

namespace fastvoc::FASTVOC_ISA {
namespace {

enum Edge { kZero = 0, kClamp = 1, kValid = 2 };

// The frame that a tap at `frame` reads, or null where it reads zeros.
inline const float* tap(const float* in, std::int64_t frame, std::int64_t n_frames, std::int64_t first_in, int C, int edge) {
  if (frame < 0 || frame >= n_frames) {
    if (edge != kClamp) return nullptr;
    frame = frame < 0 ? 0 : n_frames - 1;
  }
  return in + (frame - first_in) * C;
}

}  // namespace

// weight (scale, n_taps, freq_taps)
void upsample_fir(const float* in, const float* weight, float* out, std::int64_t n_frames, std::int64_t first_in,
                  std::int64_t first_out, std::int64_t n_out, int C, int scale, int n_taps, int freq_taps, int first,
                  float bias, float slope, int edge) {
  const FlushDenormals flush;
  const int half = (freq_taps - 1) / 2;
  for (std::int64_t n = first_out; n < first_out + n_out; ++n, out += C) {
    const float* w = weight + std::int64_t(n % scale) * n_taps * freq_taps;
    for (int c = 0; c < C; ++c) out[c] = bias;
    for (int i = 0; i < n_taps; ++i, w += freq_taps) {
      const float* frame = tap(in, n / scale + first + i, n_frames, first_in, C, edge);
      if (!frame) continue;
      for (int j = 0; j < freq_taps; ++j) {
        const int shift = j - half;
        const int from = shift < 0 ? -shift : 0, to = shift > 0 ? C - shift : C;
        for (int c = from; c < to; ++c) out[c] += w[j] * frame[c + shift];
      }
    }
    if (slope != 1.f)
      for (int c = 0; c < C; ++c) out[c] = out[c] < 0.f ? out[c] * slope : out[c];
  }
}

// weight (scale, n_taps, C, C_out), bias (C_out)
void upsample_mix(const float* in, const float* weight, const float* bias, float* out, std::int64_t n_frames,
                  std::int64_t first_in, std::int64_t first_out, std::int64_t n_out, int C, int C_out, int scale,
                  int n_taps, int first, int edge) {
  const FlushDenormals flush;
  // Phase by phase: a phase's weights (n_taps·C·C_out floats) stay in cache for all frames of the range
  for (int p = 0; p < scale; ++p) {
    std::int64_t n = first_out + (p - first_out % scale + scale) % scale;
    for (; n < first_out + n_out; n += scale) {
      float* y = out + (n - first_out) * C_out;
      std::memcpy(y, bias, C_out * sizeof(float));
      const float* w = weight + std::int64_t(p) * n_taps * C * C_out;
      for (int i = 0; i < n_taps; ++i) {
        const float* frame = tap(in, n / scale + first + i, n_frames, first_in, C, edge);
        if (!frame) {
          w += std::int64_t(C) * C_out;
          continue;
        }
        for (int c = 0; c < C; ++c, w += C_out)
          for (int o = 0; o < C_out; ++o) y[o] += w[o] * frame[c];
      }
    }
  }
}

}  // namespace fastvoc::FASTVOC_ISA
