#include "core/wavenet.h"

#include <sys/mman.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

#include "core/bf16.h"

namespace fastvoc {
namespace {

constexpr std::int64_t kAlign = 64;
std::int64_t aligned(std::int64_t n) { return (n + kAlign - 1) / kAlign * kAlign; }

}  // namespace

WaveNetPlan::WaveNetPlan(const Weights& w, int precision, int n_threads) : true_H_(w.half_gate) {
  const int L = w.n_layers, k = w.kernel, R = w.residual, H = w.half_gate;
  WaveNet& net = net_;
  net.precision = precision;
  net.n_layers = L;
  net.kernel = k;
  net.R = padded_inputs(R, precision);
  net.H = padded_inputs(H, precision);
  net.C = padded_inputs(w.n_mels, precision);
  net.S_in = padded_inputs(w.skip, precision);
  net.hidden_in = padded_inputs(w.hidden, precision);
  net.n_out = w.out;
  net.head = w.head;
  net.n_mix = w.n_mix;
  net.front_kernel = w.front_kernel;
  net.front_activation = w.front_activation;
  net.n_classes = w.n_classes;
  net.rho = w.rho;
  const int Rp = net.R, Hp = net.H, G = 2 * Hp;
  // Threads share a matrix by panels: narrow ones give each a share, at a small price in loads
  const int width = n_threads > 1 ? 32 : kMaxPanel;

  capacity_ = 4096;  // bounds the sum of all that follows
  const auto weights_of = [&](std::int64_t n, std::int64_t kk) { return aligned(padded_outputs(int(n)) * kk * net.weight_bytes()) + 2 * aligned(padded_outputs(int(n)) * 4); };
  capacity_ += L * (weights_of(G, (k - 1) * Rp) + weights_of(G, Rp) + weights_of(R, Hp) + aligned(G * 4) + aligned(padded_outputs(R) * 4));
  capacity_ += weights_of(w.skip, L * Hp) + weights_of(w.hidden, net.S_in) + weights_of(w.out, net.hidden_in);
  capacity_ += weights_of(L * G, net.C) + 4096;
  const std::int64_t front_rows = std::int64_t(w.front_kernel) * (w.n_classes ? w.n_classes : 1) + 1;
  capacity_ += aligned(front_rows * Rp * 4) + 4 * aligned((w.skip + w.hidden + w.out + 64) * 4);
  constexpr std::int64_t kHuge = 2 << 20;
  capacity_ = (capacity_ + kHuge - 1) / kHuge * kHuge;
  memory_ = static_cast<char*>(std::aligned_alloc(kHuge, capacity_));
  if (!memory_) throw std::bad_alloc();
  madvise(memory_, capacity_, MADV_HUGEPAGE);  // a hint: fewer misses of the address cache while weights stream by

  layers_.resize(L);
  b_in_.assign(std::int64_t(L) * G, 0.f);
  for (int l = 0; l < L; ++l) {
    WaveNetLayer& layer = layers_[l];
    layer.dilation = w.dilations[l];
    const int past = (k - 1) * Rp;
    std::vector<float> taps(std::int64_t(G) * past, 0.f), now(std::int64_t(G) * Rp, 0.f), res(std::int64_t(R) * Hp, 0.f), b_res(padded_outputs(R), 0.f);
    for (int half = 0; half < 2; ++half)
      for (int h = 0; h < H; ++h) {
        const std::int64_t row = std::int64_t(l) * 2 * H + half * H + h;
        b_in_[std::int64_t(l) * G + interleaved(half, h)] = w.b_in[row];
        const std::int64_t to = interleaved(half, h);
        for (int r = 0; r < R; ++r) {
          const float* from = w.in + (row * R + r) * k;
          for (int j = 0; j < k - 1; ++j) taps[to * past + j * Rp + r] = from[j];
          now[to * Rp + r] = from[k - 1];
        }
      }
    for (int r = 0; r < R; ++r) {
      b_res[r] = w.b_res[l * R + r];
      for (int h = 0; h < H; ++h) res[r * Hp + h] = w.res[(std::int64_t(l) * R + r) * H + h];
    }
    layer.past = pack(taps, G, past, width);
    layer.now = pack(now, G, Rp, width);
    layer.res = pack(res, R, Hp, width);
    layer.b_in = b_in_.data() + std::int64_t(l) * G;
    layer.b_res = keep(b_res);
  }

  std::vector<float> skip(std::int64_t(w.skip) * L * Hp, 0.f), cond(std::int64_t(L) * G * net.C, 0.f);
  for (int l = 0; l < L; ++l) {
    for (int s = 0; s < w.skip; ++s)
      for (int h = 0; h < H; ++h)
        skip[(std::int64_t(s) * L + l) * Hp + h] = w.skip_w[(std::int64_t(l) * w.skip + s) * H + h];
    for (int half = 0; half < 2; ++half)
      for (int h = 0; h < H; ++h)
        for (int c = 0; c < w.n_mels; ++c)
          cond[(std::int64_t(l) * G + interleaved(half, h)) * net.C + c] =
              w.cond[((std::int64_t(l) * 2 + half) * H + h) * w.n_mels + c];
  }
  const auto padded_columns = [](const float* from, int n, int from_k, int to_k) {
    std::vector<float> to(std::int64_t(n) * to_k, 0.f);
    for (int i = 0; i < n; ++i) std::memcpy(&to[std::int64_t(i) * to_k], from + std::int64_t(i) * from_k, from_k * 4);
    return to;
  };
  const auto padded_bias = [](const float* b, int n) {
    std::vector<float> to(padded_outputs(n), 0.f);
    std::memcpy(to.data(), b, n * 4);
    return to;
  };
  net.skip = pack(skip, w.skip, L * Hp, width);
  net.hidden = pack(padded_columns(w.hidden_w, w.hidden, w.skip, net.S_in), w.hidden, net.S_in, width);
  net.logits = pack(padded_columns(w.logits, w.out, w.hidden, net.hidden_in), w.out, net.hidden_in, width);
  net.cond = pack(cond, L * G, net.C, width);
  net.b_skip = keep(padded_bias(w.b_skip, w.skip));
  net.b_hidden = keep(padded_bias(w.b_hidden, w.hidden));
  net.b_logits = keep(padded_bias(w.b_logits, w.out));
  net.front = keep(padded_columns(w.front, int(front_rows) - 1, R, Rp));
  net.b_front = keep(padded_columns(w.b_front, 1, R, Rp));
  net.layers = layers_.data();

  std::int64_t at = aligned(sizeof(WaveNetStream));
  net.history = at, at = aligned(at + w.front_kernel * 4);
  net.positions = at, at = aligned(at + L * 4);
  net.bias = at, at = aligned(at + std::int64_t(L) * G * 4);
  for (WaveNetLayer& layer : layers_)
    layer.ring = at, at = aligned(at + std::int64_t(k - 1) * layer.dilation * Rp * net.input_bytes());
  net.state_bytes = at;
}

WaveNetPlan::~WaveNetPlan() { std::free(memory_); }

// rows: (n, k), k already padded
Matrix WaveNetPlan::pack(const std::vector<float>& rows, int n, int k, int width) {
  const int N = padded_outputs(n);
  Matrix m{memory_ + used_, N, k, width};
  const bool half = net_.precision == kBFloat16, eighth = net_.precision == kInt8;
  used_ = aligned(used_ + std::int64_t(N) * k * net_.weight_bytes());
  if (used_ > capacity_) throw std::logic_error("fastvoc: packed weights outgrew their bound");
  std::vector<float> scales(N, 0.f), inverse(N, 0.f), offsets(N, 0.f);
  if (eighth) {
    for (int i = 0; i < n; ++i) {
      float largest = 0;
      for (int kk = 0; kk < k; ++kk) largest = std::fmax(largest, std::fabs(rows[std::int64_t(i) * k + kk]));
      scales[i] = largest / 127.f, inverse[i] = largest > 1e-30f ? 127.f / largest : 0.f;
    }
  }
  for (int n0 = 0; n0 < N; n0 += width) {
    const int panel = N - n0 < width ? N - n0 : width;
    char* to = const_cast<char*>(m.data) + std::int64_t(n0) * k * net_.weight_bytes();
    for (int kk = 0; kk < k; ++kk)
      for (int i = 0; i < panel; ++i) {
        const float value = n0 + i < n ? rows[std::int64_t(n0 + i) * k + kk] : 0.f;
        if (eighth) {
          const std::int8_t q = std::int8_t(std::lrintf(value * inverse[n0 + i]));
          reinterpret_cast<std::int8_t*>(to)[(std::int64_t(kk / 4) * panel + i) * 4 + kk % 4] = q;
          offsets[n0 + i] += 128.f * q;
        } else if (half)
          reinterpret_cast<std::uint16_t*>(to)[(std::int64_t(kk / 2) * panel + i) * 2 + kk % 2] = std::uint16_t(bf16_bits(value));
        else
          reinterpret_cast<float*>(to)[std::int64_t(kk) * panel + i] = value;
      }
  }
  if (eighth) {
    std::vector<float> bits(N);
    for (int i = 0; i < N; ++i) {
      const std::int32_t whole = std::int32_t(offsets[i]);  // exact: multiples of 128 below 2³¹
      std::memcpy(&bits[i], &whole, 4);
    }
    m.scales = keep(scales);
    m.offsets = reinterpret_cast<const std::int32_t*>(keep(bits));
  }
  return m;
}

const float* WaveNetPlan::keep(const std::vector<float>& values) {
  char* to = memory_ + used_;
  used_ = aligned(used_ + std::int64_t(values.size()) * 4);
  if (used_ > capacity_) throw std::logic_error("fastvoc: packed weights outgrew their bound");
  std::memcpy(to, values.data(), values.size() * 4);
  return reinterpret_cast<float*>(to);
}

void WaveNetPlan::begin(WaveNetStream* state, std::uint64_t seed, std::uint32_t stream, float temperature, float initial,
                        const float* speaker) const {
  char* base = reinterpret_cast<char*>(state);
  std::memset(base, 0, net_.state_bytes);
  *state = {0, seed, stream, temperature};
  float* history = reinterpret_cast<float*>(base + net_.history);
  for (int j = 0; j < net_.front_kernel; ++j) history[j] = initial;
  float* bias = reinterpret_cast<float*>(base + net_.bias);
  std::memcpy(bias, b_in_.data(), b_in_.size() * 4);
  if (!speaker) return;
  for (int l = 0; l < net_.n_layers; ++l)
    for (int half = 0; half < 2; ++half)
      for (int h = 0; h < true_H_; ++h)
        bias[l * 2 * net_.H + interleaved(half, h)] += speaker[(l * 2 + half) * true_H_ + h];
}

}  // namespace fastvoc
