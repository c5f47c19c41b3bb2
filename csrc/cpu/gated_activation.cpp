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

namespace {

// x: dy, a, b -> out: da, db, y
inline void backward(const vfloat* x, vfloat* out) {
  const vfloat t = tanh(x[1]), s = sigmoid(x[2]);
  out[2] = t * s;
  out[0] = x[0] * s * (1.f - t * t);
  out[1] = x[0] * out[2] * (1.f - s);
}

}  // namespace

void gated_activation_backward(const float* dy, const float* a, const float* b, float* da, float* db, std::int64_t n) {
  elementwise<3, 2>({dy, a, b}, {da, db}, n, [](const vfloat* x, vfloat* out) {
    vfloat all[3];
    backward(x, all);
    out[0] = all[0], out[1] = all[1];
  });
}

// Rows of a tanh half and a sigmoid half: dz (rows, H), a (rows, 2·H) -> z (rows, H), da (rows, 2·H)
void gate_rows_backward(const float* dz, const float* a, float* z, float* da, std::int64_t rows, int H) {
  for (std::int64_t r = 0; r < rows; ++r, dz += H, z += H, a += 2 * H, da += 2 * H)
    elementwise<3, 3>({dz, a, a + H}, {da, da + H, z}, H, backward);
}

}  // namespace fastvoc::FASTVOC_ISA
