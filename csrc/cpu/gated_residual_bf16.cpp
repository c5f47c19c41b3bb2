// A gated residual layer and its gradient with bf16 products, CPU.   core/gated_residual_bf16.h has shapes and phases.
//
//   kForward  a = Σ_j W_in[:, :, j]·u(t + j·d - left) + b_in + cond;   x' and skip from z
//   kGate     dz = ρ·W_resᵀ·dx' + W_skipᵀ·dskip;   da, z from dz and a, and while they are in the cache
//             dW_in[:, :, j] += Σ_t da(t)·u(t + j·d - left)ᵀ;   dW_out += Σ_t (dx', dskip)(t)·z(t)ᵀ
//   kInput    du = Σ_j W_in[:, :, j]ᵀ·da(t + left - j·d);   dx = du + ρ·dx'
//
// All are products.h's. Those of the weights' gradients sum over time, so their operands are arranged anew for each tile: the
// left side channel by channel, the right side in pairs of samples. Bound by multiply-adds.
#include "core/gated_residual_bf16.h"

#include "core/bf16.h"
#include "cpu/products.h"

namespace fastvoc::FASTVOC_ISA {
namespace {

using Job = GatedResidualBf16;
constexpr int kTile = int(Job::kTile);

// Panels of a matrix (N, K) whose row n lies at row(n), its numbers `stride` apart.
template <class F>
void pack(bf16* to, int N, int K, std::int64_t stride, float scale, F row) {
  panels(N, [&](auto width, int n0) {
    constexpr int columns = decltype(width)::value * kLanes;
    for (int n = 0; n < columns; ++n) {
      const float* w = row(n0 + n);
      char* at = (char*)(to + std::int64_t(n0) * K + 2 * n);
      for (int k = 0; k < K; k += 2, w += 2 * stride, at += 4 * columns) {
        const std::uint32_t pair = bf16_bits(w[0] * scale) | bf16_bits(w[stride] * scale) << 16;
        std::memcpy(at, &pair, 4);
      }
    }
  });
}

// Where everything lies in the workspace.
struct Space {
  bf16 *in, *res, *skip;  // packed: taps, then both halves of w_out
  float *b_in, *shares;
  // of the thread
  bf16 *z, *left, *right;  // (tile, H); (channels, tile); (tile / 2, channels, 2) in panels
  std::int64_t* times;
  Source<bf16>* sources;
  bf16* zeros;

  Space(const Job& job, bool gradient, int thread) {
    char* at = job.workspace;
    const auto take = [&](std::int64_t bytes) {
      char* p = at;
      at += (bytes + 63) / 64 * 64;
      return p;
    };
    const std::int64_t taps = std::int64_t(job.k) * 2 * job.H * job.R;
    in = (bf16*)take(job.packed_bytes());
    res = in + taps, skip = res + std::int64_t(job.R) * job.H;
    b_in = (float*)(skip + std::int64_t(job.S) * job.H);
    shares = (float*)take(job.shares_bytes(gradient));
    at += thread * ((job.thread_bytes(gradient) + 63) / 64 * 64);
    const int widest = job.R > job.H ? (job.R > job.S ? job.R : job.S) : (job.H > job.S ? job.H : job.S);
    times = (std::int64_t*)at;
    z = (bf16*)(times + kTile);
    left = z + std::int64_t(kTile) * job.H;
    right = left + (gradient ? std::int64_t(kTile) * (2 * job.H + job.R + job.S) : 0);
    sources = (Source<bf16>*)(right + (gradient ? std::int64_t(kTile) * widest : 0));
    zeros = (bf16*)(sources + job.k + 1);
    std::memset(zeros, 0, 4 * widest);
  }
};

void pack_forward(const Job& job) {
  const Space space(job, false, 0);
  const int R = job.R, H = job.H, S = job.S, k = job.k;
  // The gate's columns stand in pairs: a vector of the tanh half, then its vector of the sigmoid half
  const auto gate_row = [&](int n) { return n / kLanes % 2 * H + n / (2 * kLanes) * kLanes + n % kLanes; };
  for (int j = 0; j < k; ++j)
    pack(space.in + std::int64_t(j) * 2 * H * R, 2 * H, R, k, 1.f,
         [&](int n) { return job.w_in + std::int64_t(gate_row(n)) * R * k + j; });
  pack(space.res, R, H, 1, 1.f, [&](int n) { return job.w_out + std::int64_t(n) * H; });
  if (S) pack(space.skip, S, H, 1, 1.f, [&](int n) { return job.w_out + std::int64_t(R + n) * H; });
  for (int n = 0; n < 2 * H; ++n) space.b_in[n] = job.b_in[gate_row(n)];
}

void pack_gradient(const Job& job) {
  const Space space(job, true, 0);
  const int R = job.R, H = job.H, S = job.S, k = job.k;
  for (int j = 0; j < k; ++j)
    pack(space.in + std::int64_t(j) * 2 * H * R, R, 2 * H, std::int64_t(R) * k, 1.f,
         [&](int r) { return job.w_in + std::int64_t(r) * k + j; });
  pack(space.res, H, R, H, job.rho, [&](int h) { return job.w_out + h; });
  if (S) pack(space.skip, H, S, H, 1.f, [&](int h) { return job.w_out + std::int64_t(R) * H + h; });
}

struct Tile {
  std::int64_t b, t0, row;  // the first sample, within its item and in all
  int n;
  Tile(const Job& job, std::int64_t unit, std::int64_t* times) {
    b = unit / job.tiles(), t0 = unit % job.tiles() * kTile, row = b * job.T + t0;
    n = int(job.T - t0 < kTile ? job.T - t0 : kTile);
    for (int i = 0; i < n; ++i) times[i] = t0 + i;
  }
};

// f(m, n, sums): a vector of row m from column n on
template <class F>
inline void each_vector(const Source<bf16>* sources, int n_sources, int N, std::int64_t rows, F f) {
  product(sources, n_sources, N, rows, [&](int n0, int nv, std::int64_t m, int M, const float* sums) {
    for (int i = 0; i < M; ++i, sums += nv * kLanes)
      for (int v = 0; v < nv; ++v) f(m + i, n0 + v * kLanes, load(sums + v * kLanes));
  });
}

void forward(const Job& job, const Space& space, const Tile& tile) {
  const int R = job.R, H = job.H, S = job.S;
  for (int j = 0; j < job.k; ++j)
    space.sources[j] = {job.u + tile.b * job.T * R, R, space.in + std::int64_t(j) * 2 * H * R, R, space.times,
                        j * job.dilation - job.left, job.T, space.zeros};
  product(space.sources, job.k, 2 * H, tile.n, [&](int n0, int nv, std::int64_t m, int M, const float* sums) {
    for (int i = 0; i < M; ++i, sums += nv * kLanes)
      for (int v = 0; v < nv; v += 2) {
        const int n = n0 + v * kLanes, h = n / 2;
        const std::int64_t at = (tile.row + m + i) * 2 * H + h;
        vfloat a = load(sums + v * kLanes) + load(space.b_in + n);
        vfloat b = load(sums + (v + 1) * kLanes) + load(space.b_in + n + kLanes);
        if (job.cond) a += load_bf16(job.cond + at), b += load_bf16(job.cond + at + H);
        store_bf16(job.a + at, a), store_bf16(job.a + at + H, b);
        store_bf16(space.z + (m + i) * H + h, gate_bf16(a, b));
      }
  });
  Source<bf16> z{space.z, H, space.res, H, nullptr, 0, kTile, nullptr};
  const vfloat rho = splat(job.rho);
  each_vector(&z, 1, R, tile.n, [&](std::int64_t m, int n, vfloat sum) {
    const std::int64_t at = (tile.row + m) * R + n;
    store_bf16(job.x_out + at, (load_bf16(job.x + at) + (sum + load(job.b_out + n))) * rho);
  });
  if (!S) return;
  z.w = space.skip;
  each_vector(&z, 1, S, tile.n, [&](std::int64_t m, int n, vfloat sum) {
    store_bf16(job.skip + (tile.row + m) * S + n, sum + load(job.b_out + R + n));
  });
}

// Samples as an operand of a sum over time: row i of the tile is sample `first` + i of `of`, zero outside 0 … n - 1 of the
// signal and from `rows` on.
struct Samples {
  const bf16 *of, *zeros;
  std::int64_t ld, first, n;
  int rows;
  const bf16* row(int i) const {
    const std::int64_t t = first + i;
    return i < rows && std::uint64_t(t) < std::uint64_t(n) ? of + t * ld : zeros;
  }
  // The samples i and i + 1 of channels c …, side by side
  vint pair(int i, int c) const {
    vhalf a, b;
    std::memcpy(&a, row(i) + c, sizeof a);
    std::memcpy(&b, row(i + 1) + c, sizeof b);
    return vint(__builtin_convertvector(a, vuint) | __builtin_convertvector(b, vuint) << 16);
  }
};

inline int padded_rows(int n) { return (n + 31) / 32 * 32; }

// In panels of pairs, as weights are.
void arrange_right(const Samples& samples, int N, bf16* to) {
  const int K = padded_rows(samples.rows);
  panels(N, [&](auto width, int n0) {
    constexpr int columns = decltype(width)::value * kLanes;
    bf16* panel = to + std::int64_t(n0) * K;
    for (int i = 0; i < K; i += 2, panel += 2 * columns)
      for (int c = 0; c < columns; c += kLanes) {
        const vint pair = samples.pair(i, n0 + c);
        std::memcpy(panel + 2 * c, &pair, sizeof pair);
      }
  });
}

// Columns that differ in this bit of their number change places with rows that do: all bits in turn transpose.
template <int kBit>
inline void exchange(vint (&rows)[kLanes]) {
  if constexpr (kBit < kLanes) {
    vint upper, lower;
    for (int n = 0; n < kLanes; ++n) upper[n] = n & kBit ? kLanes + n - kBit : n, lower[n] = n & kBit ? kLanes + n : n + kBit;
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i)
      if (!(i & kBit)) {
        const vint a = rows[i], b = rows[i + kBit];
        rows[i] = __builtin_shuffle(a, b, upper), rows[i + kBit] = __builtin_shuffle(a, b, lower);
      }
    exchange<2 * kBit>(rows);
  }
}

// Channel by channel, kTile samples of each.
void arrange_left(const Samples& samples, int N, bf16* to) {
  const int K = padded_rows(samples.rows);
  for (int c = 0; c < N; c += kLanes)
    for (int t = 0; t < K; t += 2 * kLanes) {
      vint rows[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) rows[i] = samples.pair(t + 2 * i, c);
      exchange<1>(rows);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) std::memcpy(to + std::int64_t(c + i) * kTile + t, &rows[i], sizeof rows[i]);
    }
}

// dw (M, N) += left·right over the samples of a tile
void accumulate(const bf16* left, const bf16* right, int M, int N, int rows, float* dw) {
  const Source<bf16> source{left, kTile, right, padded_rows(rows), nullptr, 0, M, nullptr};
  each_vector(&source, 1, N, M, [&](std::int64_t m, int n, vfloat sum) {
    float* at = dw + m * N + n;
    store(at, load(at) + sum);
  });
}

// x: dz, a, b -> da, db, and tanh(a)·σ(b), for results that become bf16: no differences of what is nearly equal.
//   e = e^2a, f = e^-b:   tanh = (e - 1)/(e + 1),   tanh' = 4·e/(e + 1)²,   σ = 1/(1 + f),   σ' = f·σ²
inline void gate_backward_bf16(const vfloat* x, vfloat* out) {
  const Exponential t = exponential_bf16(min(max(x[1] * 2.885390082f, splat(-40.f)), splat(40.f)));
  const Exponential s = exponential_bf16(max(min(x[2] * -1.44269504f, splat(60.f)), splat(-60.f)));
  const vfloat e = fma(t.scale, t.p, t.scale), f = fma(s.scale, s.p, s.scale);
  const vfloat below_t = reciprocal_bf16(e + 1.f), sigmoid = reciprocal_bf16(f + 1.f);
  const vfloat tanh = fma(t.scale, t.p, t.scale - 1.f) * below_t, scaled = x[0] * sigmoid;
  out[0] = scaled * (4.f * e * below_t * below_t);
  out[1] = scaled * tanh * (f * sigmoid);
  out[2] = tanh * sigmoid;
}

// Σ_t of each channel onto `sums`.
void add_up(const bf16* of, std::int64_t rows, int N, float* sums) {
  for (int c = 0; c < N; c += kLanes) {
    vfloat sum{};
    for (std::int64_t i = 0; i < rows; ++i) sum += load_bf16(of + i * N + c);
    store(sums + c, load(sums + c) + sum);
  }
}

void gate(const Job& job, const Space& space, const Tile& tile, float* share) {
  const int R = job.R, H = job.H, S = job.S, n = tile.n;
  const bf16 *dx_out = job.dx_out + tile.b * job.T * R, *dskip = job.dskip + tile.b * job.T * S;
  const Source<bf16> sources[2] = {{dx_out, R, space.res, R, space.times, 0, job.T, space.zeros},
                                   {dskip, S, space.skip, S, space.times, 0, job.T, space.zeros}};
  const bf16* a = job.a + tile.row * 2 * H;
  bf16* da = job.da + tile.row * 2 * H;
  each_vector(sources, S ? 2 : 1, H, n, [&](std::int64_t m, int h, vfloat dz) {
    const std::int64_t at = m * 2 * H + h;
    const vfloat x[3] = {dz, load_bf16(a + at), load_bf16(a + at + H)};
    vfloat out[3];
    gate_backward_bf16(x, out);
    store_bf16(da + at, out[0]), store_bf16(da + at + H, out[1]), store_bf16(space.z + m * H + h, out[2]);
  });

  float *dw_out = share + std::int64_t(job.k) * 2 * H * R, *db_in = share + job.n_weights(), *db_out = db_in + 2 * H;
  bf16 *left_da = space.left, *left_dx = left_da + std::int64_t(2 * H) * kTile, *left_dskip = left_dx + std::int64_t(R) * kTile;
  arrange_left({da, space.zeros, 2 * H, 0, n, n}, 2 * H, left_da);
  for (int j = 0; j < job.k; ++j) {
    arrange_right({job.u + tile.b * job.T * R, space.zeros, R, tile.t0 + j * job.dilation - job.left, job.T, n}, R, space.right);
    accumulate(left_da, space.right, 2 * H, R, n, share + std::int64_t(j) * 2 * H * R);
  }
  arrange_right({space.z, space.zeros, H, 0, n, n}, H, space.right);
  arrange_left({dx_out + tile.t0 * R, space.zeros, R, 0, n, n}, R, left_dx);
  accumulate(left_dx, space.right, R, H, n, dw_out);
  if (S) arrange_left({dskip + tile.t0 * S, space.zeros, S, 0, n, n}, S, left_dskip);
  if (S) accumulate(left_dskip, space.right, S, H, n, dw_out + std::int64_t(R) * H);
  add_up(da, n, 2 * H, db_in);
  add_up(dx_out + tile.t0 * R, n, R, db_out);
  if (S) add_up(dskip + tile.t0 * S, n, S, db_out + R);
}

// Row `unit` of dw_in, or of dw_out behind them: the sum of all shares.
void reduce(const Job& job, const Space& space, std::int64_t unit) {
  const int R = job.R, H = job.H, k = job.k, G = 2 * H;
  const std::int64_t each = job.share_floats(), n = job.shares(), weights = job.n_weights();
  const auto sum = [&](std::int64_t at) {
    float s = 0;
    for (std::int64_t i = 0; i < n; ++i) s += space.shares[i * each + at];
    return s;
  };
  if (unit < G) {
    job.db_in[unit] = sum(weights + unit);
    for (int j = 0; j < k; ++j)
      for (int r = 0; r < R; ++r) job.dw_in[(unit * R + r) * k + j] = sum((std::int64_t(j) * G + unit) * R + r);
  } else {
    const std::int64_t row = unit - G;
    const float scale = row < R ? job.rho : 1.f;
    job.db_out[row] = sum(weights + unit) * scale;
    for (int h = 0; h < H; ++h) job.dw_out[row * H + h] = sum(std::int64_t(k) * G * R + row * H + h) * scale;
  }
}

void input(const Job& job, const Space& space, const Tile& tile) {
  const int R = job.R, G = 2 * job.H;
  for (int j = 0; j < job.k; ++j)
    space.sources[j] = {job.da + tile.b * job.T * G, G, space.in + std::int64_t(j) * G * R, G, space.times,
                        job.left - j * job.dilation, job.T, space.zeros};
  float* du_sum = job.du_sums + (tile.b * job.tiles() + tile.t0 / kTile) * R;
  std::memset(du_sum, 0, R * sizeof(float));
  const vfloat rho = splat(job.rho);
  each_vector(space.sources, job.k, R, tile.n, [&](std::int64_t m, int n, vfloat du) {
    const std::int64_t at = (tile.row + m) * R + n;
    store(du_sum + n, load(du_sum + n) + du);
    store_bf16(job.dx + at, fma(load_bf16(job.dx_out + at), rho, du));
  });
}

}  // namespace

void gated_residual_bf16_pack(const Job& job, bool gradient) { gradient ? pack_gradient(job) : pack_forward(job); }

void gated_residual_bf16(const Job& job, Job::Phase phase, int thread, std::int64_t first, std::int64_t last) {
  const FlushDenormals flush;
  const Space space(job, phase != Job::kForward, thread);
  if (phase == Job::kReduce) {
    for (; first < last; ++first) reduce(job, space, first);
    return;
  }
#if defined(FASTVOC_USE_AMX)
  tile_configure_square();
#endif
  for (; first < last; ++first) {
    if (phase == Job::kForward) forward(job, space, Tile(job, first, space.times));
    if (phase == Job::kInput) input(job, space, Tile(job, first, space.times));
    if (phase != Job::kGate) continue;
    float* share = space.shares + first * job.share_floats();
    std::memset(share, 0, job.share_floats() * sizeof(float));
    const std::int64_t each = job.tiles_per_share(), all = job.B * job.tiles();
    for (std::int64_t i = first * each; i < (first + 1) * each && i < all; ++i)
      gate(job, space, Tile(job, i, space.times), share);
  }
#if defined(FASTVOC_USE_AMX)
  tile_release();
#endif
}

}  // namespace fastvoc::FASTVOC_ISA
