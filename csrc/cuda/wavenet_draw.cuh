// Drawing a sample by one warp. The noise is core/draw.h's: the same numbers as on the CPU.
#pragma once
#define FASTVOC_ISA cuda
#include "cuda/common.cuh"
#include "core/draw.h"
#include "core/wavenet.h"

namespace fastvoc {

struct DrawHead { int head, n_mix, n_out; };

__device__ __forceinline__ int draws_of(const DrawHead& h) {
  if (h.head == kSoftmax || h.head == kGaussian) return 1;
  return h.n_mix > 1 || h.head == kMixtureOfLogistics ? h.n_mix + 1 : 1;
}

// Number i of a sample's noise: given, or Philox's for this position.
struct Noise {
  const float* given;
  std::uint64_t seed, position;
  std::uint32_t stream;

  __device__ float at(const DrawHead& h, int i) const {
    if (given) return given[i];
    const cuda::Philox random(seed, position, stream, i / 4);
    const bool normal = i == draws_of(h) - 1 && (h.head == kGaussian || h.head == kMixtureOfGaussians);
    return cuda::noise_of(random.words[i % 4], normal ? 2 : h.head == kSoftmax ? 0 : 1);
  }
};

// The largest value of the warp and its index; of equal ones the lowest index.
template <class T>
__device__ __forceinline__ void warp_argmax(T& value, int& index) {
  for (int m = 16; m; m >>= 1) {
    const T other = __shfl_xor_sync(~0u, value, m);
    const int at = __shfl_xor_sync(~0u, index, m);
    if (other > value || (other == value && at < index)) value = other, index = at;
  }
}

// y: n numbers.   -> the class: the first with Σ_{i<=k} p_i > u, p = softmax(y / T); T = 0: the most probable one
__device__ OUT_OF_LINE inline int draw_class(const float* y, int n, float temperature, float u) {
  const int lane = threadIdx.x % 32, share = (n + 31) / 32;
  const int first = min(n, lane * share), last = min(n, first + share);  // neighbouring classes, so that sums run in order
  float top = -INFINITY;
  int best = first;
  for (int i = first; i < last; ++i)
    if (y[i] > top) top = y[i], best = i;
  warp_argmax(top, best);
  if (temperature < 1e-6f) return best;
  const float scale = 1.f / temperature;
  float own = 0;
  for (int i = first; i < last; ++i) own += expf((y[i] - top) * scale);
  float upto = own;
  for (int d = 1; d < 32; d *= 2) {
    const float lower = __shfl_up_sync(~0u, upto, d);
    if (lane >= d) upto += lower;
  }
  const float target = u * __shfl_sync(~0u, upto, 31);
  const unsigned reached = __ballot_sync(~0u, upto > target && first < last);
  if (!reached) return n - 1;
  const int owner = __ffs(reached) - 1;
  int drawn = last - 1;
  if (lane == owner) {
    float below = upto - own;
    for (int i = first; i < last; ++i)
      if ((below += expf((y[i] - top) * scale)) > target) {
        drawn = i;
        break;
      }
  }
  return __shfl_sync(~0u, drawn, owner);
}

__device__ OUT_OF_LINE inline float draw_sample(const DrawHead& h, const float* y, float temperature, const Noise& noise) {
  const int lane = threadIdx.x % 32, n = h.n_mix, n_draws = draws_of(h);
  const float *means = y + n, *log_scales = y + 2 * n;
  int component = 0;
  if (h.head == kGaussian && h.n_out == 2) {
    means = y, log_scales = y + 1;
  } else if (n_draws > 1) {
    double best = -INFINITY;
    component = n;
    for (int i = lane; i < n; i += 32) {
      const double score = cuda::gumbel_score(y[i], temperature, noise.at(h, i));
      if (score > best) best = score, component = i;
    }
    warp_argmax(best, component);
    if (component >= n) component = 0;  // all scores are NaN or -∞: let the sample show it
  }
  return cuda::mixture_sample(means[component], log_scales[component], temperature, noise.at(h, n_draws - 1),
                              h.head == kMixtureOfLogistics);
}

}  // namespace fastvoc
