#include "core/gated_residual_stack.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

#include "core/bf16.h"
#include "core/isa.h"

namespace fastvoc {
namespace {

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
      taps_[std::size_t(l) * s.n_taps + j] = pack(gate, R_in, [&](int n, float* row) {
        if (gate_row(n) < 0) return;
        const float* tap = in + std::int64_t(gate_row(n)) * R * k;
        const double sign = j == 1 ? 0.5 : -0.5;
        if (!s.minimal || j == 0 || j == 3)
          for (int r = 0, at = j == 3 && s.minimal ? 2 : j; r < R; ++r) row[r] = tap[std::int64_t(r) * k + at];
        else
          for (int r = 0; r < R; ++r, tap += 3) row[r] = float(0.5 * (double(tap[0]) + tap[2]) + sign * tap[1]);
      });
    const auto rows_of = [](const float* matrix, int N, int K) {
      return [=](int n, float* row) {
        if (n >= 0 && n < N) std::copy_n(matrix + std::int64_t(n) * K, K, row);
      };
    };
    const auto cond = rows_of(w.cond + std::int64_t(l) * 2 * H * C, 2 * H, C);
    layer.cond = pack(gate, C_in, [&](int n, float* row) { cond(gate_row(n), row); });
    const float* out = w.out + std::int64_t(l) * (R + S) * H;
    layer.res = pack(s.x_width, H_in, rows_of(out, R, H));
    layer.skip = pack(s.s_width, H_in, rows_of(out + std::int64_t(R) * H, S, H));
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

// fill(n, row): the K weights of output n, onto zeros.
template <class F>
StackMatrix GatedResidualStackPlan::pack(int N, int K, F fill) {
  const bool half = stack_.precision == kBFloat16;
  const int lanes = kernels_.stack_layout.lanes;
  char* data = take(std::int64_t(N) * K * (half ? 2 : 4));
  std::vector<float> row(K);
  for (int n0 = 0, width; n0 < N; n0 += width) {
    width = std::min(kernels_.stack_layout.panel * lanes, N - n0);
    if (width < kernels_.stack_layout.panel * lanes) width = width >= 2 * lanes ? 2 * lanes : lanes;
    const std::int64_t panel = std::int64_t(n0) * K;
    for (int n = 0; n < width; ++n) {
      std::fill(row.begin(), row.end(), 0.f);
      fill(n0 + n, row.data());
      auto* halves = reinterpret_cast<std::uint16_t*>(data) + panel + 2 * n;
      auto* floats = reinterpret_cast<float*>(data) + panel + n;
      if (half)
        for (int k = 0; k < K; ++k) halves[std::int64_t(k / 2) * width * 2 + k % 2] = std::uint16_t(bf16_bits(row[k]));
      else
        for (int k = 0; k < K; ++k) floats[std::int64_t(k) * width] = row[k];
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
