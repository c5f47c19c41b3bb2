// The gradient of one gated residual layer (fastvoc/ops/gated_residual.py), in three phases.
//
// Phases follow each other; the units of one phase may be shared out among threads in any way: what a unit computes does not
// depend on it. kGate and kInput count tiles of kTile samples, all items' tiles one after the other; kWeights counts rows
// of dw_in, tap after tap, and behind them rows of dw_out.
#pragma once
#include <cstdint>

namespace fastvoc {

struct GatedResidualBackward {
  enum Phase {
    kGate,
    kInput,
    kWeights,
  };
  static constexpr std::int64_t kTile = 96;

  std::int64_t B, T;
  int R, H, S, k;            // channels: residual, half gate, skip; kernel
  std::int64_t dilation, left;
  float rho;
  const float *dx_out, *dskip, *u, *a;  // (B, T, R), (B, T, S), (B, T, R) the convolution's input, (B, T, 2H) the gate's
  const float *w_in, *w_out;            // (k, 2H, R) tap after tap, (R + S, H) with ρ in the residual rows
  float *z, *da, *dx;                   // (B, T, H), (B, T, 2H), (B, T, R)
  float *dw_in, *dw_out;                // (k, 2H, R), (R + S, H) without ρ
  float* du_sums;                       // (B, tiles, R): what du sums up to in each tile

  static std::int64_t tiles_of(std::int64_t T) { return (T + kTile - 1) / kTile; }
  std::int64_t tiles() const { return tiles_of(T); }
  std::int64_t units(Phase phase) const { return phase == kWeights ? std::int64_t(k) * 2 * H + R + S : B * tiles(); }
};

}  // namespace fastvoc
