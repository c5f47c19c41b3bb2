// Drawing a sample from what the network says. One file for the four heads; the noise is passed in.
//
//   softmax    class k: the first with Σ_{i<=k} p_i > u, p = softmax(y / T); T = 0 takes the most probable class
//   mixtures   component: argmax_i of y_i - log(-log u_i) (Gumbel), whatever T is; T = 0: argmax_i y_i
//   logistic   mean + T·e^s·(log u - log(1 - u)), clamped to ±1
//   Gaussian   mean + T·e^s·n, clamped to ±1
//
// Logarithms are taken in double: a handful a sample, and the same on every machine to the last float bit.
#pragma once
#include <cmath>

#include "core/philox.h"
#include "core/wavenet.h"
#include "cpu/simd.h"

namespace fastvoc::FASTVOC_ISA {
namespace {

constexpr int kMaxDraws = 257;  // 256 mixture components and the sample itself

// How many random numbers a sample takes, and of which kind: uniform, but the last one normal for the Gaussian heads.
inline int draws_of(const WaveNet& net) {
  switch (net.head) {
    case kSoftmax: case kGaussian: return 1;
    default: return net.n_mix > 1 || net.head == kMixtureOfLogistics ? net.n_mix + 1 : 1;
  }
}

// A uniform number to a standard normal one: √2·erf⁻¹(2u - 1).
// Giles 2010, "Approximating the erfinv function", single precision; relative error 4e-7.
inline float normal_of(float u) {
  const float x = 2.f * u - 1.f;
  float w = -float(std::log(double(1.f - x) * double(1.f + x)));
  float p;
  if (w < 5.f) {
    w -= 2.5f;
    const float c[] = {2.81022636e-08f, 3.43273939e-07f, -3.5233877e-06f, -4.39150654e-06f, 0.00021858087f,
                       -0.00125372503f, -0.00417768164f, 0.246640727f, 1.50140941f};
    p = c[0];
    for (int i = 1; i < 9; ++i) p = c[i] + p * w;
  } else {
    w = float(std::sqrt(double(w))) - 3.f;
    const float c[] = {-0.000200214257f, 0.000100950558f, 0.00134934322f, -0.00367342844f, 0.00573950773f,
                       -0.0076224613f, 0.00943887047f, 1.00167406f, 2.83297682f};
    p = c[0];
    for (int i = 1; i < 9; ++i) p = c[i] + p * w;
  }
  return 1.41421356f * p * x;
}

// The draws of one sample, from its position alone. Mixture draws keep r9y9's distance of 1e-5 from 0 and 1.
inline void philox_draws(const WaveNet& net, const WaveNetStream& s, float* draws) {
  const int n = draws_of(net);
  for (int block = 0; block * 4 < n; ++block) {
    const Philox random(s.seed, std::uint64_t(s.n_done), s.stream, block);
    for (int i = block * 4; i < n && i < block * 4 + 4; ++i) {
      const float u = uniform(random.words[i % 4]);
      const bool is_normal = i == n - 1 && (net.head == kGaussian || net.head == kMixtureOfGaussians);
      draws[i] = is_normal ? normal_of(u) : net.head == kSoftmax ? u : 1e-5f + u * (1.f - 2e-5f);
    }
  }
}

inline float clamped(float x) { return x < -1.f ? -1.f : x > 1.f ? 1.f : x; }

// y: n_out numbers, room for a whole vector more behind them.   -> the class, as a float
inline float draw_class(float* y, int n, float temperature, float u) {
  int best = 0;
  for (int i = 1; i < n; ++i)
    if (y[i] > y[best]) best = i;
  if (temperature < 1e-6f) return float(best);
  const vfloat top = splat(y[best]), scale = splat(1.f / temperature);
  const int blocks = (n + kLanes - 1) / kLanes;
  for (int i = n; i < blocks * kLanes; ++i) y[i] = -1e30f;
  float total = 0;
  for (int b = 0; b < blocks; ++b) {
    const vfloat e = exp((load(y + b * kLanes) - top) * scale);
    store(y + b * kLanes, e);
    total += sum(e);
  }
  const float target = u * total;
  float below = 0;  // of the whole blocks before the one that holds the target
  int b = 0;
  for (; b < blocks - 1; ++b) {
    const float with = below + sum(load(y + b * kLanes));
    if (with > target) break;
    below = with;
  }
  for (int i = b * kLanes; i < n; ++i)
    if ((below += y[i]) > target) return float(i);
  return float(n - 1);
}

inline float draw_sample(const WaveNet& net, const float* y, float temperature, const float* draws) {
  const int n = net.n_mix;
  const float *means = y + n, *log_scales = y + 2 * n;
  int component = 0;
  if (net.head == kGaussian && net.n_out == 2) {
    means = y, log_scales = y + 1;
  } else if (draws_of(net) > 1) {
    double best = -1e300;
    for (int i = 0; i < n; ++i) {
      const double score = temperature == 0.f ? y[i] : y[i] - std::log(-std::log(double(draws[i])));
      if (score > best) best = score, component = i;
    }
  }
  const double last = draws[draws_of(net) - 1];
  const double noise = net.head == kMixtureOfLogistics ? std::log(last) - std::log(1.0 - last) : last;
  return clamped(float(means[component] + temperature * std::exp(double(log_scales[component])) * noise));
}

}  // namespace
}  // namespace fastvoc::FASTVOC_ISA
