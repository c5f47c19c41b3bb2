// A WaveNet, packed for generation, and what one call of the generator needs. Plain data: shared by every instruction set.
//
//   x = act(b + Σ_j E_j[y(t-1-j)])                                   E_j a table (classes) or a column (samples)
//   a = Σ_j W_in[j]·x(t - (k-1-j)·d) + W_cond·c(t) + b               for each layer
//   z = tanh(a[:H])·σ(a[H:]),  x ← (x + W_res·z + b)·ρ
//   y ~ head(W_logits·relu(W_hidden·relu(Σ_l W_skip[l]·z_l + b) + b) + b)
//
// Channel counts are padded (R to the matrices' inputs, H to 16); padded channels are zero throughout. The rows of W_in
// and W_cond are interleaved: 16 of the tanh half, then their 16 of the sigmoid half, so that one panel holds both.
#pragma once
#include <cstdint>
#include <vector>

#include "core/matrix.h"

namespace fastvoc {

class Barrier;

enum Head { kSoftmax = 0, kMixtureOfLogistics = 1, kGaussian = 2, kMixtureOfGaussians = 3 };
enum Activation { kNone = 0, kRelu = 1, kTanh = 2 };

struct WaveNetLayer {
  int dilation;
  Matrix past, now, res;    // (2·H, (kernel-1)·R), (2·H, R), (R, H); the last layer's res is never used
  const float *b_in, *b_res;
  std::int64_t ring;        // byte offset of this layer's past inputs in a stream's state
};

struct WaveNet {
  int precision, n_layers, kernel;
  int R, H, C;              // padded: of x as an input; of z; of the conditioning as an input
  int S_in, hidden_in;      // padded: of the skip sum and of the hidden layer as inputs
  int n_out;                // true outputs
  int head, n_mix, front_kernel, front_activation, n_classes;  // n_classes 0: samples go in, not classes
  float rho;
  const float *front, *b_front;  // (front_kernel, n_classes or 1, R), (R)
  const WaveNetLayer* layers;
  Matrix skip, hidden, logits, cond;  // (S, layers·H), (hidden, S), (out, hidden), (layers·2·H, C)
  const float *b_skip, *b_hidden, *b_logits;
  std::int64_t history, bias, positions, state_bytes;  // offsets in a stream's state

  int weight_bytes() const { return precision == kInt8 ? 1 : precision == kBFloat16 ? 2 : 4; }
  int input_bytes() const { return precision == kBFloat16 ? 2 : 4; }  // of what products read, and rings keep
  int gate_rows() const { return n_layers * 2 * H; }
};

// The head of a stream's state. After it: the last front_kernel samples or classes, each layer's ring position, the
// conditioning bias (b_in and the speaker's share), the rings. Memory of the caller; may be copied, saved and resumed.
struct WaveNetStream {
  std::int64_t n_done;  // samples generated so far: the index of the next one
  std::uint64_t seed;
  std::uint32_t stream;
  float temperature;
};

struct WaveNetJob {
  int n_streams;
  WaveNetStream* const* streams;
  const int* n_samples;            // to generate now, per stream; in descending order
  const float* const* cond;        // per stream (n_samples, n_mels) upsampled mel; or, with layer_cond, (n_samples, layers·G)
  bool layer_cond;                 // conditioning given per layer, in canonical row order
  int cond_ld, true_H;
  const float* const* noise;       // per stream (n_samples, draws), or null: Philox
  const float* const* forced;      // per stream (n_samples,): fed back instead of what was drawn; or null
  float* const* out;               // per stream (n_samples,): samples, or class numbers
  float* const* parameters;        // per stream (n_samples, n_out), or null
  char* workspace;
};

// Owns the packed weights. Built once; read-only afterwards.
class WaveNetPlan {
 public:
  struct Weights {  // canonical, float32, row-major; see fastvoc/ops/wavenet_generate.py
    int n_layers, kernel, residual, half_gate, skip, hidden, out, n_mels;
    int head, n_mix, front_kernel, front_activation, n_classes;
    float rho;
    const int* dilations;
    const float *front, *b_front;        // (front_kernel, n_classes or 1, residual), (residual)
    const float *in, *b_in;              // (layers, 2·half_gate, residual, kernel), (layers, 2·half_gate)
    const float *cond;                   // (layers, 2·half_gate, n_mels)
    const float *res, *b_res;            // (layers, residual, half_gate), (layers, residual)
    const float *skip_w, *b_skip;        // (layers, skip, half_gate), (skip)
    const float *hidden_w, *b_hidden;    // (hidden, skip), (hidden)
    const float *logits, *b_logits;      // (out, hidden), (out)
  };
  WaveNetPlan(const Weights& weights, int precision, int n_threads);
  ~WaveNetPlan();
  WaveNetPlan(const WaveNetPlan&) = delete;
  WaveNetPlan& operator=(const WaveNetPlan&) = delete;

  const WaveNet& net() const { return net_; }
  std::int64_t packed_bytes() const { return used_; }
  std::int64_t workspace_bytes(int n_streams) const;  // for one group of streams run by one team
  // speaker: (layers, 2·half_gate) added to the conditioning, or null.   initial: the sample or class before the first
  void begin(WaveNetStream* state, std::uint64_t seed, std::uint32_t stream, float temperature, float initial,
             const float* speaker) const;

 private:
  Matrix pack(const std::vector<float>& rows, int n, int k, int width);
  const float* keep(const std::vector<float>& values);

  WaveNet net_{};
  std::vector<WaveNetLayer> layers_;
  std::vector<float> b_in_;  // (layers, 2·H) interleaved
  int true_H_;
  char* memory_ = nullptr;
  std::int64_t used_ = 0, capacity_ = 0;
};

// Where row `half`·H + h of the canonical gate stands among the interleaved ones.
inline int interleaved(int half, int h) { return h / 16 * 32 + half * 16 + h % 16; }

// How many steps the conditioning and the past taps are computed ahead: enough to read their weights seldom, few enough
// to stay in L1/L2.
inline int cond_steps(const WaveNet& net, int n_streams) {
  const int steps = 32768 / (net.gate_rows() * n_streams);
  return steps < 1 ? 1 : steps > 16 ? 16 : steps;
}

}  // namespace fastvoc
