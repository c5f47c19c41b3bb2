// Drawing a sample from what the network says. One file for the four heads; the noise is passed in.
//
//   softmax    class k: the first with Σ_{i<=k} p_i > u, p = softmax(y / T); T = 0 takes the most probable class
//   mixtures   see core/draw.h
#pragma once
#include "core/draw.h"
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

// The draws of one sample, from its position alone. Mixture draws keep r9y9's distance of 1e-5 from 0 and 1.
inline void philox_draws(const WaveNet& net, const WaveNetStream& s, float* draws) {
  const int n = draws_of(net);
  for (int block = 0; block * 4 < n; ++block) {
    const Philox random(s.seed, std::uint64_t(s.n_done), s.stream, block);
    for (int i = block * 4; i < n && i < block * 4 + 4; ++i) {
      const bool is_normal = i == n - 1 && (net.head == kGaussian || net.head == kMixtureOfGaussians);
      draws[i] = noise_of(random.words[i % 4], is_normal ? 2 : net.head == kSoftmax ? 0 : 1);
    }
  }
}

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
      const double score = gumbel_score(y[i], temperature, draws[i]);
      if (score > best) best = score, component = i;
    }
  }
  return mixture_sample(means[component], log_scales[component], temperature, draws[draws_of(net) - 1],
                        net.head == kMixtureOfLogistics);
}

}  // namespace
}  // namespace fastvoc::FASTVOC_ISA
