// The noise of a sample and what a mixture makes of it: the arithmetic that every backend shares, number for number.
//
//   component: argmax_i of y_i - log(-log u_i) (Gumbel), whatever T is; T = 0: argmax_i y_i
//   logistic   mean + T·e^s·(log u - log(1 - u)), clamped to ±1
//   Gaussian   mean + T·e^s·n, clamped to ±1
//
// Logarithms are taken in double: a handful a sample, and the same on every machine to the last float bit.
#pragma once
#include <cmath>

#include "core/philox.h"

namespace fastvoc::FASTVOC_ISA {
namespace {

// a·b + c with two roundings, also where a compiler would fuse them
FASTVOC_HD inline float times_plus(float a, float b, float c) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(__fmul_rn(a, b), c);
#else
  return a * b + c;
#endif
}

// A uniform number to a standard normal one: √2·erf⁻¹(2u - 1).
// Giles 2010, "Approximating the erfinv function", single precision; relative error 4e-7.
FASTVOC_HD inline float normal_of(float u) {
  const float x = times_plus(2.f, u, -1.f);
  float w = -float(std::log(double(1.f - x) * double(1.f + x)));
  float p;
  if (w < 5.f) {
    w -= 2.5f;
    const float c[] = {2.81022636e-08f, 3.43273939e-07f, -3.5233877e-06f, -4.39150654e-06f, 0.00021858087f,
                       -0.00125372503f, -0.00417768164f, 0.246640727f, 1.50140941f};
    p = c[0];
    for (int i = 1; i < 9; ++i) p = times_plus(p, w, c[i]);
  } else {
    w = float(std::sqrt(double(w))) - 3.f;
    const float c[] = {-0.000200214257f, 0.000100950558f, 0.00134934322f, -0.00367342844f, 0.00573950773f,
                       -0.0076224613f, 0.00943887047f, 1.00167406f, 2.83297682f};
    p = c[0];
    for (int i = 1; i < 9; ++i) p = times_plus(p, w, c[i]);
  }
  return 1.41421356f * p * x;
}

// What a Philox word becomes: kind 0: uniform in (0, 1); 1: uniform with r9y9's distance of 1e-5 from 0 and 1; 2: normal.
FASTVOC_HD inline float noise_of(std::uint32_t word, int kind) {
  const float u = uniform(word);
  return kind == 2 ? normal_of(u) : kind == 1 ? times_plus(u, 1.f - 2e-5f, 1e-5f) : u;
}

FASTVOC_HD inline double gumbel_score(float y, float temperature, float u) {
  return temperature == 0.f ? double(y) : y - std::log(-std::log(double(u)));
}

FASTVOC_HD inline float clamped(float x) { return x < -1.f ? -1.f : x > 1.f ? 1.f : x; }

FASTVOC_HD inline float mixture_sample(float mean, float log_scale, float temperature, float draw, bool logistic) {
  const double last = draw, noise = logistic ? std::log(last) - std::log(1.0 - last) : last;
  return clamped(float(mean + temperature * std::exp(double(log_scale)) * noise));
}

}  // namespace
}  // namespace fastvoc::FASTVOC_ISA
