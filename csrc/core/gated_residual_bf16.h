// A gated residual layer and its gradient with bf16 products (fastvoc/ops/gated_residual.py): samples are bf16, weights, their
// gradients and every sum fp32. Channels are padded with zeros to whole vectors, and to what AMX reads at once.
//
// Phases follow each other; the units of one phase may be shared out among threads in any way: what a unit computes does not
// depend on it. The forward pass is kForward; the gradient is kGate, kReduce, kInput.
#pragma once
#include <cstdint>

namespace fastvoc {

struct GatedResidualBf16 {
  enum Phase {
    kForward,  // a tile of samples a unit
    kGate,     // tiles_per_share() tiles a unit: da, and the unit's share of the weights' gradients
    kReduce,   // a row of dw_in or of dw_out a unit: the shares, added in order
    kInput,    // a tile a unit: dx
  };
  static constexpr std::int64_t kTile = 256;   // samples; a multiple of what AMX reads at once
  static constexpr std::int64_t kShares = 16;  // of the weights' gradients, at most

  typedef std::uint16_t bf16;
  std::int64_t B, T;
  int R, H, S, k;  // channels: residual, half gate, skip; kernel
  std::int64_t dilation, left;
  float rho;
  const float *w_in, *b_in, *w_out, *b_out;  // (2H, R, k), (2H), (R + S, H), (R + S)
  const bf16 *x, *u;                         // (B, T, R): of the residual path, and what the convolution sees
  // forward
  const bf16* cond;          // (B, T, 2H), or null
  bf16 *x_out, *skip, *a;    // (B, T, R), (B, T, S), (B, T, 2H), which the gradient reads
  // gradient
  const bf16 *dx_out, *dskip;
  bf16 *da, *dx;
  float *dw_in, *db_in, *dw_out, *db_out;  // as the weights
  float* du_sums;                          // (B, tiles, R): what du sums up to in each tile
  char* workspace;                         // see bytes(); aligned to 64 bytes

  std::int64_t tiles() const { return (T + kTile - 1) / kTile; }
  std::int64_t tiles_per_share() const { return (B * tiles() + kShares - 1) / kShares; }
  std::int64_t shares() const { return (B * tiles() + tiles_per_share() - 1) / tiles_per_share(); }
  std::int64_t units(Phase phase) const {
    return phase == kReduce ? 2 * H + R + S : phase == kGate ? shares()
                                                             : B * tiles();
  }

  // The workspace: packed weights, then the shares of the weights' gradients, then a piece for each thread.
  std::int64_t n_weights() const { return std::int64_t(k) * 2 * H * R + std::int64_t(R + S) * H; }
  std::int64_t share_floats() const { return n_weights() + 2 * H + R + S; }  // dw_in tap after tap, dw_out, db_in, db_out
  std::int64_t packed_bytes() const { return n_weights() * 2 + 64 + std::int64_t(2 * H) * 4; }
  std::int64_t shares_bytes(bool gradient) const { return gradient ? shares() * share_floats() * 4 : 0; }
  std::int64_t thread_bytes(bool gradient) const {
    const int widest = R > H ? (R > S ? R : S) : (H > S ? H : S);
    const std::int64_t rows = gradient ? H + 2 * H + R + S + widest : H;  // z; left sides of products; a right side
    return kTile * (rows * 2 + 8) + widest * 4 + (k + 2) * 64;            // times, a row of zeros, sources
  }
  std::int64_t bytes(bool gradient, int n_threads) const {
    return packed_bytes() + 64 + shares_bytes(gradient) + 64 + n_threads * (thread_bytes(gradient) + 64);
  }
};

}  // namespace fastvoc
