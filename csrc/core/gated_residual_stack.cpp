#include "core/gated_residual_stack.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

#include "core/isa.h"

namespace fastvoc {
namespace {

std::uint16_t rounded(float x) {  // to bf16, nearest even; NaN stays NaN
  std::uint32_t u;
  std::memcpy(&u, &x, 4);
  if ((u & 0x7fffffff) > 0x7f800000) return std::uint16_t((u >> 16) | 0x40);
  return std::uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

std::int64_t aligned(std::int64_t n) { return (n + 63) / 64 * 64; }

}  // namespace

GatedResidualStackPlan::GatedResidualStackPlan(const Weights& w, int precision, const CpuKernels& kernels)
    : kernels_(kernels) {
  const StackLayout& layout = kernels.stack_layout;
  const bool half = precision == kBFloat16;
  const int inputs = half ? layout.inputs_bf16 : 1;
  const int unit = std::max(layout.lanes, inputs);  // a row that is written in vectors and read as inputs
  GatedResidualStack& s = stack_;
  s.precision = precision;
  s.n_layers = w.n_layers, s.kernel = w.kernel;
  s.R = w.R, s.H = w.H, s.S = w.S, s.C = w.C;
  s.x_width = round_up(w.R, unit);
  s.z_width = round_up(w.H, unit);
  s.s_width = round_up(w.S, layout.lanes);
  s.c_width = half ? round_up(w.C, unit) : w.C;
  s.causal = w.causal, s.step_in_residual = w.step_in_residual;
  s.rho = w.rho;

  s.minimal = w.kernel == 3 && (!half || layout.minimal_bf16);
  s.n_taps = s.minimal ? 4 : w.kernel;

  const int L = w.n_layers, k = w.kernel, R = w.R, H = w.H, S = w.S, C = w.C, gate = 2 * s.z_width;
  const int R_in = round_up(R, inputs), H_in = round_up(H, inputs), C_in = round_up(C, inputs);
  const std::int64_t element = half ? 2 : 4;
  const auto bytes = [&](std::int64_t n, std::int64_t kk) { return aligned(n * kk * element); };
  capacity_ = L * (s.n_taps * bytes(gate, R_in) + bytes(gate, C_in) + bytes(s.x_width, H_in) + bytes(s.s_width, H_in) +
                   aligned(4 * gate) + aligned(4 * s.x_width) + aligned(4 * s.s_width));
  constexpr std::int64_t kHuge = 2 << 20;
  capacity_ = (capacity_ + kHuge - 1) / kHuge * kHuge;
  memory_ = static_cast<char*>(std::aligned_alloc(kHuge, capacity_));
  if (!memory_) throw std::bad_alloc();
  madvise(memory_, capacity_, MADV_HUGEPAGE);  // a hint: fewer misses of the address cache while weights stream by

  // The row of the canonical gate that stands in column n, or -1 for padding
  const auto gate_row = [&](int n) {
    const int vector = n / layout.lanes, h = vector / 2 * layout.lanes + n % layout.lanes;
    return h < H ? vector % 2 * H + h : -1;
  };
  layers_.resize(L);
  taps_.resize(std::size_t(L) * s.n_taps);
  for (int l = 0; l < L; ++l) {
    StackLayer& layer = layers_[l];
    layer.dilation = w.dilations[l];
    const float* in = w.in + std::int64_t(l) * 2 * H * R * k;
    layer.taps = &taps_[std::size_t(l) * s.n_taps];
    for (int j = 0; j < s.n_taps; ++j)
      taps_[std::size_t(l) * s.n_taps + j] = pack(gate, R_in, [&](int n, int r) {
        if (gate_row(n) < 0 || r >= R) return 0.f;
        const float* tap = in + (std::int64_t(gate_row(n)) * R + r) * k;
        if (!s.minimal) return tap[j];
        const double even = double(tap[0]) + tap[2], odd = tap[1];
        return j == 0 ? tap[0] : j == 3 ? tap[2] : float(0.5 * (j == 1 ? even + odd : even - odd));
      });
    const float* cond = w.cond + std::int64_t(l) * 2 * H * C;
    layer.cond = pack(gate, C_in, [&](int n, int c) {
      return gate_row(n) < 0 || c >= C ? 0.f : cond[std::int64_t(gate_row(n)) * C + c];
    });
    const float* out = w.out + std::int64_t(l) * (R + S) * H;
    layer.res = pack(s.x_width, H_in, [&](int n, int h) { return n < R && h < H ? out[std::int64_t(n) * H + h] : 0.f; });
    layer.skip = pack(s.s_width, H_in, [&](int n, int h) { return n < S && h < H ? out[std::int64_t(R + n) * H + h] : 0.f; });
    const float *b_in = w.b_in + std::int64_t(l) * 2 * H, *b_out = w.b_out + std::int64_t(l) * (R + S);
    layer.b_in = keep(gate, [&](int n) { return gate_row(n) < 0 ? 0.f : b_in[gate_row(n)]; });
    layer.b_res = keep(s.x_width, [&](int n) { return n < R ? b_out[n] : 0.f; });
    layer.b_skip = keep(s.s_width, [&](int n) { return n < S ? b_out[R + n] : 0.f; });
  }
  s.layers = layers_.data();
}

GatedResidualStackPlan::~GatedResidualStackPlan() { std::free(memory_); }

char* GatedResidualStackPlan::take(std::int64_t bytes) {
  char* at = memory_ + used_;
  used_ += aligned(bytes);
  if (used_ > capacity_) throw std::logic_error("fastvoc: packed weights outgrew their bound");
  return at;
}

template <class F>
StackMatrix GatedResidualStackPlan::pack(int N, int K, F value) {
  const bool half = stack_.precision == kBFloat16;
  const int lanes = kernels_.stack_layout.lanes;
  char* data = take(std::int64_t(N) * K * (half ? 2 : 4));
  for (int n0 = 0, width; n0 < N; n0 += width) {
    width = std::min(kernels_.stack_layout.panel * lanes, N - n0);
    if (width < kernels_.stack_layout.panel * lanes) width = width >= 2 * lanes ? 2 * lanes : lanes;
    for (int k = 0; k < K; ++k)
      for (int n = 0; n < width; ++n) {
        const float v = value(n0 + n, k);
        const std::int64_t panel = std::int64_t(n0) * K;
        if (half)
          reinterpret_cast<std::uint16_t*>(data)[panel + (std::int64_t(k / 2) * width + n) * 2 + k % 2] = rounded(v);
        else
          reinterpret_cast<float*>(data)[panel + std::int64_t(k) * width + n] = v;
      }
  }
  return {data, N, K};
}

template <class F>
const float* GatedResidualStackPlan::keep(int N, F value) {
  float* to = reinterpret_cast<float*>(take(4ll * N));
  for (int n = 0; n < N; ++n) to[n] = value(n);
  return to;
}

}  // namespace fastvoc
