// Gated activation, CPU.   y = tanh(a)·σ(b)        (van den Oord et al. 2016, "WaveNet", eq. 2)
//
//   a, b, y, dy, da, db   n float32 each, contiguous
//
// Out of cache it is bound by memory (12 bytes in and out per value), in cache by two exponentials and a division.
#include "cpu/elementwise.h"

namespace fastvoc::FASTVOC_ISA {

void gated_activation(const float* a, const float* b, float* y, std::int64_t n) {
  elementwise<2, 1>({a, b}, {y}, n, [](const vfloat* x, vfloat* out) { out[0] = gate(x[0], x[1]); });
}

void gated_activation_backward(const float* dy, const float* a, const float* b, float* da, float* db, std::int64_t n) {
  elementwise<3, 2>({dy, a, b}, {da, db}, n, [](const vfloat* x, vfloat* out) {
    vfloat all[3];
    gate_backward(x, all);
    out[0] = all[0], out[1] = all[1];
  });
}

}  // namespace fastvoc::FASTVOC_ISA
