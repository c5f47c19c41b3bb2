// The shape of a WaveNet on the GPU: how its weights are packed for a team of blocks, and where a block keeps what it works
// on. fastvoc/ops/wavenet_generate_cuda.py packs by the same rules.
//
// A matrix is cut into tiles of 16 × 16, each in the order in which a warp's lanes hold it (mma.cuh, A): lane after lane, 8
// values each. Tile j of a phase belongs to member j mod team and is the (j div team)-th of its own. A gate tile has 8 rows
// of the tanh half, then their 8 of the sigmoid half, so that a lane holds both. The columns of a layer's rows are
// [taps of x, oldest first | x | z of the layer before], each padded to 16:
//
//   a_l = Σ_j W_l[j]·x_l(t - (k-1-j)d) + ρ·W_l[k-1]·(x_{l-1} + W_res·z_{l-1} + b_res)      for l > 0: one exchange a layer
//   x_l = ρ·(x_{l-1} + W_res·z_{l-1} + b_res)                                               in the same phase
#pragma once
#include "cuda/common.cuh"

namespace fastvoc {

struct WaveNetSizes {  // int64: filled by Python, in this order
  std::int64_t layers, kernel, residual, half_gate, skip, hidden, out, n_classes, head, n_mix, front_kernel, front_activation,
      dtype, team, threads;
};

constexpr int kTileValues = 256;

struct WaveNetLayout {
  int layers, taps, team, columns;                // taps: kernel - 1; columns: streams that a team carries at once
  int x_tiles, gate_tiles, z_tiles, skip_tiles, hidden_tiles, out_tiles;  // z_tiles: of 16, as an input
  int past_ld, x_ld, z_ld, skip_ld, hidden_ld, out_ld;  // values from stream to stream; 8 more than needed: other banks
  std::int64_t past, x, z, skip, hidden, out, x_float, board;  // bytes; board: all of it
  std::int64_t layer0, layer1, layer, head_skip, head_hidden, head_out, slab;  // bytes in a member's weights; layer: of one l > 0

  FASTVOC_HD int cond_rows() const { return layers * gate_tiles * 16; }
  // Of the tiles that member `rank` has, how many are gate tiles; and of n tiles after `before` others, how many are its own
  FASTVOC_HD int own(int n, int rank, int before = 0) const {
    const int first = (rank + team - before % team) % team;
    return n > first ? (n - first + team - 1) / team : 0;
  }
  FASTVOC_HD int most(int n) const { return (n + team - 1) / team; }
  FASTVOC_HD int gate_columns(int l) const { return (taps + 1) * x_tiles + (l ? z_tiles : 0); }  // in tiles
};

inline WaveNetLayout wavenet_layout(const WaveNetSizes& s, int columns) {
  const auto tiles = [](std::int64_t n) { return int(ceil_div(n, 16)); };
  const std::int64_t e = s.dtype == 0 ? 4 : 2;
  WaveNetLayout w{};
  w.layers = int(s.layers), w.taps = int(s.kernel - 1), w.team = int(s.team), w.columns = columns;
  w.x_tiles = tiles(s.residual), w.gate_tiles = int(ceil_div(s.half_gate, 8)), w.z_tiles = tiles(s.half_gate);
  w.skip_tiles = tiles(s.skip), w.hidden_tiles = tiles(s.hidden), w.out_tiles = tiles(s.out);
  w.past_ld = w.taps * w.x_tiles * 16 + 8;
  w.x_ld = w.x_tiles * 16 + 8, w.z_ld = w.layers * w.z_tiles * 16 + 8, w.skip_ld = w.skip_tiles * 16 + 8;
  w.hidden_ld = w.hidden_tiles * 16 + 8, w.out_ld = w.out_tiles * 16 + 4;
  std::int64_t at = 0;
  const auto take = [&](std::int64_t bytes) {
    const std::int64_t here = at;
    at += round_up(bytes, 128);
    return here;
  };
  w.past = take(e * w.layers * columns * w.past_ld);
  w.x = take(e * 2 * columns * w.x_ld);
  w.z = take(e * columns * w.z_ld);
  w.skip = take(e * columns * w.skip_ld);
  w.hidden = take(e * columns * w.hidden_ld);
  w.out = take(4ll * columns * w.out_ld);
  w.x_float = take(4ll * w.most(w.x_tiles) * 128);
  w.board = at;
  const std::int64_t tile = e * kTileValues;
  at = 0;
  w.layer0 = take(tile * w.most(w.gate_tiles) * w.gate_columns(0));
  w.layer = round_up(tile * (w.most(w.gate_tiles) * w.gate_columns(1) + w.most(w.x_tiles) * w.z_tiles), 128);
  w.layer1 = at, at += w.layer * (w.layers - 1);
  w.head_skip = take(tile * w.most(w.skip_tiles) * w.layers * w.z_tiles);
  w.head_hidden = take(tile * w.most(w.hidden_tiles) * w.skip_tiles);
  w.head_out = take(tile * w.most(w.out_tiles) * w.hidden_tiles);
  w.slab = at;
  return w;
}

// What a block needs of shared memory besides the board and the weights: sums of two rounds, and a tile per warp.
FASTVOC_HD inline std::int64_t wavenet_scratch(const WaveNetLayout& w, int threads, int front_kernel) {
  const int warps = threads / 32;
  return round_up(warps * (2 * 512 + 512) + 4ll * w.columns * (w.layers + front_kernel), 128);
}

}  // namespace fastvoc
