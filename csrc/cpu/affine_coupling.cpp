// Affine coupling, CPU.   y = x·e^log_s + t,   its inverse x = (y - t)·e^-log_s,   and Σ log_s in the same pass
// (Kingma and Dhariwal 2018, "Glow", table 1; Prenger et al. 2019, "WaveGlow", eq. 7-8)
//
//   x, log_s, t, y, dy, dx, dlog_s   n float32 each, contiguous
//
// Bound by memory: four or five values cross it for one exponential.
#include "cpu/elementwise.h"

namespace fastvoc::FASTVOC_ISA {

double affine_coupling(const float* x, const float* log_s, const float* t, float* y, std::int64_t n) {
  // In double, which is free beside the memory: log scales of both signs leave little of what a float sum rounds off
  typedef double vdouble __attribute__((vector_size(8 * kLanes)));
  vdouble sums{};
  elementwise<3, 1>({x, log_s, t}, {y}, n, [&](const vfloat* in, vfloat* out) {
    out[0] = fma(in[0], exp(in[1]), in[2]);
    sums += __builtin_convertvector(in[1], vdouble);
  });
  double total = 0;
  for (int i = 0; i < kLanes; ++i) total += sums[i];
  return total;
}

void affine_coupling_inverse(const float* y, const float* log_s, const float* t, float* x, std::int64_t n) {
  elementwise<3, 1>({y, log_s, t}, {x}, n, [](const vfloat* in, vfloat* out) { out[0] = (in[0] - in[2]) * exp(-in[1]); });
}

void affine_coupling_backward(const float* dy, float dsum, const float* x, const float* log_s, float* dx, float* dlog_s,
                              std::int64_t n) {
  elementwise<3, 2>({dy, x, log_s}, {dx, dlog_s}, n, [=](const vfloat* in, vfloat* out) {
    out[0] = in[0] * exp(in[2]);
    out[1] = fma(out[0], in[1], splat(dsum));
  });
}

}  // namespace fastvoc::FASTVOC_ISA
