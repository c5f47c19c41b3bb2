// The gradient of one gated residual layer (fastvoc/ops/gated_residual.py), in four phases.
//
// Phases follow each other; the units of one phase may be shared out among threads in any way: what a unit computes does not
// depend on it. kGate counts tiles of kTile samples, all items' tiles one after the other; kInput the same, or tiles of pairs;
// kWeightsIn counts rows of dw_in, tap after tap, or the gate's rows with all taps at once; kWeightsOut rows of dw_out.
//
// A kernel of 3 is differentiated by minimal filtering, as it is computed (core/gated_residual_stack.h): of four inputs and two
// gradients d samples apart, du is the same filtering with the taps the other way round, and
//
//   m0 = g0·(u0 - u2)    m1 = ½(g0 + g1)·(u1 + u2)    m2 = ½(g0 - g1)·(u2 - u1)    m3 = g1·(u3 - u1)        summed over pairs
//   dW0 = m0 + m1 + m2    dW1 = m1 - m2    dW2 = m1 + m2 + m3
//
// Four products each instead of six.
#pragma once
#include <cstdint>

#include "core/minimal_filtering.h"

namespace fastvoc {

struct GatedResidualBackward {
  enum Phase {
    kGate,
    kInput,
    kWeightsIn,
    kWeightsOut,
  };
  static constexpr std::int64_t kTile = 96, kPairs = kTile / 2;
  static constexpr std::int64_t kChunk = 128, kRows = 48;  // pairs and rows of dw_in that go through the sums over time together

  std::int64_t B, T;
  int R, H, S, k;            // channels: residual, half gate, skip; kernel
  std::int64_t dilation, left;
  float rho;
  const float *dx_out, *dskip, *u, *a;  // (B, T, R), (B, T, S), (B, T, R) the convolution's input, (B, T, 2H) the gate's
  const float *w_in, *w_out;            // (k, 2H, R), or (4, 2H, R): W2, ½(W0 ± W1 + W2), W0; (R + S, H) with ρ in the residual rows
  float *z, *da, *dx;                   // (B, T, H), (B, T, 2H), (B, T, R)
  float *dw_in, *dw_out;                // (k, 2H, R), (R + S, H) without ρ
  float* du_sums;                       // (B, input_tiles, R): what du sums up to in each tile
  float* workspace;                     // workspace_floats()

  bool minimal() const { return k == 3; }
  std::int64_t tiles() const { return (T + kTile - 1) / kTile; }

  std::int64_t pairs() const { return pairs_of(T, dilation); }
  std::int64_t input_tiles() const { return minimal() ? (pairs() + kPairs - 1) / kPairs : tiles(); }

  std::int64_t units(Phase phase) const {
    if (phase == kGate) return B * tiles();
    if (phase == kInput) return B * input_tiles();
    if (phase == kWeightsIn) return (minimal() ? 1 : std::int64_t(k)) * 2 * H;
    return R + S;
  }

  // Minimal filtering's sums over time, (4, 2H, R), then each thread's own: operands and products of a tile, or of a chunk.
  std::int64_t sums_floats() const { return minimal() ? std::int64_t(4) * 2 * H * R : 0; }
  std::int64_t thread_floats() const {
    const std::int64_t of_tile = 4 * kPairs * (2 * H + R) + 2 * H, of_chunk = 4 * kChunk * (R + kRows) + 2 * H + R;
    return minimal() ? (of_tile > of_chunk ? of_tile : of_chunk) + 16 : 0;
  }
  std::int64_t workspace_floats(int n_threads) const { return sums_floats() + n_threads * thread_floats(); }
};

}  // namespace fastvoc
