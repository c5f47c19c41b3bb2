// A stack of gated residual layers, packed for one instruction set, and what one run of it needs. Plain data.
//
//   a = Σ_j W_in[j]·u(t + j·d - left) + W_cond·c(t) + b_in        u = x + step, zeros outside the signal
//   z = tanh(a[:H])·σ(a[H:]);   r, s = W_out·z + b_out
//   x ← (x + r)·ρ, or (u + r)·ρ;   y += s
//
// A kernel of 3 is computed by minimal filtering (Winograd 1980; Lavin and Gray 2016, F(2, 3)): two outputs d samples apart
// take four products instead of six, of differences and sums of the inputs with as many of the taps:
//
//   a(t)     = W0·(x0 - x2) + ½(W0 + W1 + W2)·(x1 + x2) + ½(W0 - W1 + W2)·(x2 - x1)        x0, x1, … the inputs that they
//   a(t + d) = W2·(x3 - x1) + ½(W0 + W1 + W2)·(x1 + x2) - ½(W0 - W1 + W2)·(x2 - x1)        see, d samples apart
//
// Its rounding errors are those of the plain sum, within a few percent (measured; F(4, 3) would have up to 2.4 times as much).
//
// Channel counts are padded with zeros: outputs to whole vectors, inputs to what a multiplication reads at once. The
// gate's columns stand in pairs: a vector of the tanh half, then its vector of the sigmoid half.
#pragma once
#include <cstdint>
#include <vector>

#include "core/matrix.h"

namespace fastvoc {

struct CpuKernels;

// How an instruction set wants its weights.
struct StackLayout {
  int lanes;        // floats of a vector
  int panel;        // vectors of a full panel
  int inputs_bf16;  // bf16 inputs are padded to a multiple of this
  bool minimal_bf16;  // whether minimal filtering pays in bf16
};

// One matrix in panels of at most `panel` vectors of outputs: as many full ones as fit, then one of 2 and one of 1 vectors as
// needed. Inside a panel inputs are outermost: fp32 [k][n], bf16 [k / 2][n][k % 2].
struct StackMatrix {
  const char* data;
  int N, K;  // padded
};

struct StackLayer {
  int dilation;
  const StackMatrix* taps;      // n_taps of (2·H, R): W_in[j], or the four of minimal filtering
  StackMatrix cond, res, skip;  // (2·H, C), (R, H), (S, H)
  const float *b_in, *b_res, *b_skip;
};

struct GatedResidualStack {
  int precision, n_layers, kernel;
  int R, H, S, C;  // true
  int x_width, z_width, s_width, c_width;  // padded: a row of x, of z, of the skip sum, of the conditioning as an operand
  bool causal, step_in_residual;
  bool minimal;
  int n_taps;
  float rho;
  const StackLayer* layers;

  std::int64_t left(int l) const {
    const std::int64_t reach = std::int64_t(kernel - 1) * layers[l].dilation;
    return causal ? reach : reach / 2;
  }
};

struct GatedResidualJob {
  int first_layer, last_layer;  // a run may be made in several jobs, with the same workspace
  std::int64_t B, T;
  const float* x;     // (B, T, R)
  const float* cond;  // (B, T, C), or null
  const float* step;  // (B, layers, R), or null
  float* out;         // (B, T, S), or the last x (B, T, R) where S = 0

  // Conditioning that was projected beforehand, of the layers before n_projected; `cond` is that of the others:
  // sample t has Σ_j taps[t][j]·projection[l][b][first[t] + j], or where first is null projection[l][b][t].
  int n_projected, n_taps;
  std::int64_t n_frames;
  float* projection;          // (n_projected, B, n_frames, 2·z_width): W_cond·c in the gate's columns
  const std::int32_t* first;  // (T)
  const float* taps;          // (T, n_taps)
  bool cond_apart;  // the products of `cond` are summed apart and then added, as those of a projection are: the same bits
  bool project;  // only make the projection of first_layer … last_layer - 1, of `cond` with its T = n_frames

  // Of a stack of one layer, for its gradient; canonical, or null
  const float* added;      // (B, T, 2·H), added to a: conditioning of the caller's
  float* a;                // (B, T, 2·H)
  float* x_next;           // (B, T, R)
  char* workspace;    // aligned to 64 bytes; the first job needs no clearing of it
};

// Owns the packed weights. Built once; read-only afterwards.
class GatedResidualStackPlan {
 public:
  struct Weights {  // canonical, float32, row-major; see fastvoc/ops/gated_residual_stack.py
    int n_layers, kernel, R, H, S, C;
    bool causal, step_in_residual;
    float rho;
    const int* dilations;
    const float *in, *b_in;    // (layers, 2·H, R, kernel), (layers, 2·H)
    const float* cond;         // (layers, 2·H, C)
    const float *out, *b_out;  // (layers, R + S, H), (layers, R + S)
  };
  GatedResidualStackPlan(const Weights& weights, int precision, const CpuKernels& kernels);
  ~GatedResidualStackPlan();
  GatedResidualStackPlan(const GatedResidualStackPlan&) = delete;
  GatedResidualStackPlan& operator=(const GatedResidualStackPlan&) = delete;

  const GatedResidualStack& stack() const { return stack_; }
  const CpuKernels& kernels() const { return kernels_; }
  std::int64_t packed_bytes() const { return used_; }

 private:
  template <class F>
  StackMatrix pack(int N, int K, F fill);
  template <class F>
  const float* keep(int N, F value);
  char* take(std::int64_t bytes);

  const CpuKernels& kernels_;
  GatedResidualStack stack_{};
  std::vector<StackLayer> layers_;
  std::vector<StackMatrix> taps_;
  char* memory_ = nullptr;
  std::int64_t used_ = 0, capacity_ = 0;
};

}  // namespace fastvoc
