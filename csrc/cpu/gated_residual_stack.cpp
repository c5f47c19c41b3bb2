// A stack of gated residual layers, CPU: all layers of a whole batch in one call.
//
// Plain PyTorch moves about a thousand floats per sample and layer. Here a tile of some hundred samples goes through a layer
// at once: gate and z stay in L1/L2, only x, the skip sum and the conditioning pass by. Bound by multiply-adds.
//
// A team of threads shares the samples of all batch entries as it goes (core/parallel.h) and meets after each layer. What a sample's result is
// depends on its time alone: not on the tile, the thread or the batch it falls to.
//
// The diffusion step's bias is no term of every sample: inside the signal Σ_j W_in[j]·step is constant, so it joins b_in once
// a layer, and rows outside the signal are taken as -step, which cancels it there.
#include "core/gated_residual_stack.h"

#include "core/minimal_filtering.h"
#include "core/parallel.h"
#include "cpu/products.h"

namespace fastvoc::FASTVOC_ISA {
namespace {

constexpr int kTile = 192;  // samples; with minimal filtering half as many pairs

inline void write(float* to, vfloat v) { store(to, v); }
inline void write(bf16* to, vfloat v) { store_bf16(to, v); }

// n values, then zeros up to `width`, a multiple of kLanes
template <class X>
inline void convert_row(const float* from, X* to, int n, int width) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) write(to + i, load(from + i));
  for (; i < width; i += kLanes) {
    vfloat rest{};
    if (i < n) std::memcpy(&rest, from + i, (n - i) * sizeof(float));
    write(to + i, rest);
  }
}

// What one run needs, carved from the caller's workspace. P is what products read, X what x is kept in: minimal filtering makes
// its operands of x itself; without it x is an operand, and where that is bf16 its full precision is kept beside it.
template <class P, class X>
struct Buffers {
  X* x[2];      // (B, T, x_width): a layer's input and its output, in turn
  float* res;   // (B, T, x_width)
  P* cond;      // (B, T, c_width), where it is not read as it came
  float* skip;  // (B, T, s_width), where the output's rows are no whole vectors
  // of each thread
  P* z;                 // (tile, z_width)
  P* combined[4];       // (tile / 2, x_width): sums of inputs
  X* edge;              // the row that stands outside the signal
  P* step;              // a row with the step
  float *b_in, *b_res;  // with the step's share
  Source<P>* sources;   // n_taps + 1
  std::int64_t bytes = 0;  // of all threads together

  Buffers(const GatedResidualStack& s, const GatedResidualJob& job, int thread, int n_threads) {
    const auto take = [&](std::int64_t n) {
      char* p = job.workspace + bytes;
      bytes += (n + 63) / 64 * 64;
      return p;
    };
    const std::int64_t rows = job.B * job.T;
    x[0] = (X*)take(rows * s.x_width * sizeof(X));
    x[1] = (X*)take(rows * s.x_width * sizeof(X));
    res = (float*)take(sizeof(X) == 2 ? rows * s.x_width * 4 : 0);
    cond = (P*)take(sizeof(P) == 2 ? rows * s.c_width * 2 : 0);
    skip = (float*)take(s.s_width == s.S ? 0 : rows * s.s_width * 4);
    const std::int64_t shared = bytes;
    for (int i = 0; i <= thread; ++i) {
      z = (P*)take(std::int64_t(kTile) * s.z_width * sizeof(P));
      for (P*& c : combined) c = (P*)take(s.minimal ? std::int64_t(kTile / 2) * s.x_width * sizeof(P) : 0);
      edge = (X*)take(s.x_width * sizeof(X));
      step = (P*)take(s.x_width * sizeof(P));
      b_in = (float*)take(2ll * s.z_width * 4);
      b_res = (float*)take(s.x_width * 4);
      sources = (Source<P>*)take((s.n_taps + 1) * sizeof(Source<P>));
    }
    bytes = shared + (bytes - shared) / (thread + 1) * n_threads;
  }
};

// Samples that go through a layer together.
struct Tile {
  std::int64_t b;             // the batch entry
  int n, first;               // samples; of these the first ones of pairs, the rest being their second ones
  std::int64_t times[kTile];  // of each
};

// Whether a layer multiplies its conditioning, in the taps' sums or apart.
enum Conditioning { kNone,
                    kMerged,
                    kApart };

template <class P, bool kMinimal>
class Run {
  static constexpr bool kHalf = sizeof(P) == 2;
  template <bool minimal, class Q> struct Kept { typedef Q type; };
  template <class Q> struct Kept<true, Q> { typedef float type; };
  typedef typename Kept<kMinimal, P>::type X;

 public:
  Run(const GatedResidualStack& stack, const GatedResidualJob& job, int thread, int n_threads, Barrier& barrier, Shares& shares)
      : s_(stack), job_(job), thread_(thread), n_threads_(n_threads), barrier_(barrier), shares_(shares), b_(stack, job, thread, n_threads) {
    if (s_.s_width == s_.S) b_.skip = job.out;
    if (job.x_next && sizeof(X) == 4 && s_.R == s_.x_width) b_.x[s_.n_layers % 2] = (X*)job.x_next;
  }

  static std::int64_t workspace(const GatedResidualStack& stack, const GatedResidualJob& job, int n_threads) {
    return Buffers<P, X>(stack, job, 0, n_threads).bytes;
  }

  void run() {
    const FlushDenormals flush;
#if defined(FASTVOC_USE_AMX)
    if (kHalf) tile_configure_square();
#endif
    begin();
    shares_.deal(job_.first_layer, thread_, units(job_.first_layer));
    for (int l = job_.first_layer; l < job_.last_layer; ++l) {
      barrier_.wait();
      if (l + 1 < job_.last_layer) shares_.deal(l + 1, thread_, units(l + 1));
      job_.project ? project(l) : layer(l);
    }
    if (job_.last_layer == s_.n_layers && !job_.project) finish();
#if defined(FASTVOC_USE_AMX)
    if (kHalf) tile_release();
#endif
  }

 private:
  // f(first, last): this thread's share of n things
  template <class F>
  void share(std::int64_t n, F f) {
    const std::int64_t first = n / n_threads_ * thread_ + n % n_threads_ * thread_ / n_threads_;
    f(first, n / n_threads_ * (thread_ + 1) + n % n_threads_ * (thread_ + 1) / n_threads_);
  }

  // Of one batch entry: what its samples are shared out in, samples or pairs.
  std::int64_t units_of_entry(int l) const { return kMinimal ? pairs_of(job_.T, s_.layers[l].dilation) : job_.T; }
  std::int64_t units(int l) const { return job_.B * (job_.project ? job_.T : units_of_entry(l)); }

  // Inputs as the products read them.
  void begin() {
    const bool as_it_is = sizeof(X) == 4 && s_.R == s_.x_width;
    input_ = as_it_is ? (const X*)job_.x : b_.x[0];
    share(job_.B * job_.T, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t r = first; r < last; ++r) {
        if (kHalf && job_.cond) convert_row(job_.cond + r * s_.C, b_.cond + r * s_.c_width, s_.C, s_.c_width);
        if (as_it_is || job_.first_layer > 0 || job_.project) continue;
        convert_row(job_.x + r * s_.R, b_.x[0] + r * s_.x_width, s_.R, s_.x_width);
        if (sizeof(X) == 2) convert_row(job_.x + r * s_.R, b_.res + r * s_.x_width, s_.R, s_.x_width);
      }
    });
  }

  // W_cond·c of this thread's share of the frames.
  void project(int l) {
    const StackMatrix& w = s_.layers[l].cond;
    float* to = job_.projection + l * job_.B * job_.T * 2 * s_.z_width;
    const P* cond = kHalf ? b_.cond : (const P*)job_.cond;
    // Named by their times: of rows without, tiles would read 16 even at the end
    Tile tile;
    for (std::int64_t first, last; shares_.take(l, thread_, kTile, first, last);) {
      const int n = int(last - first);
      for (int i = 0; i < n; ++i) tile.times[i] = first + i;
      const Source<P> source{cond, s_.c_width, (const P*)w.data, w.K, tile.times, 0, job_.B * job_.T, nullptr};
      product(&source, 1, 2 * s_.z_width, n, [&](int n0, int nv, std::int64_t m, int M, const float* sums) {
        for (int i = 0; i < M; ++i, sums += nv * kLanes)
          for (int v = 0; v < nv * kLanes; v += kLanes) store(to + (first + m + i) * 2 * s_.z_width + n0 + v, load(sums + v));
      });
    }
  }

  void layer(int l) {
    constexpr std::int64_t kUnits = kMinimal ? kTile / 2 : kTile;
    const std::int64_t d = s_.layers[l].dilation, T = job_.T, of_entry = units_of_entry(l);
    Tile tile;
    tile.b = -1;
    for (std::int64_t unit, last; shares_.take(l, thread_, kUnits, unit, last);) {
      while (unit < last) {
        const std::int64_t b = unit / of_entry, q = unit % of_entry;
        const std::int64_t n = last - unit < of_entry - q ? last - unit : of_entry - q;
        unit += n;
        tile.n = tile.first = int(n);
        for (int i = 0; i < n; ++i) tile.times[i] = kMinimal ? first_of_pair(q + i, d) : q + i;
        if (kMinimal)
          for (int i = 0; i < n && tile.times[i] + d < T; ++i) tile.times[tile.n++] = tile.times[i] + d;
        if (b != tile.b) tile.b = b, prepare(l, b, tile);
        if constexpr (kMinimal) gate_pairs(l, tile);
        else gate_samples(tile);
        outputs(l, tile);
      }
    }
  }

  const X* input(int l) const { return l == 0 ? input_ : b_.x[l % 2]; }

  // Before the samples of batch entry b: its biases, and where layer l's products find their rows.
  void prepare(int l, std::int64_t b, const Tile& tile) {
    const StackLayer& layer = s_.layers[l];
    for (int j = 0; j < s_.n_taps; ++j) {
      Source<P>& source = b_.sources[j];
      source = {nullptr, s_.x_width, (const P*)layer.taps[j].data, layer.taps[j].K, nullptr, 0, job_.T, nullptr};
      if constexpr (kMinimal) {
        source.base = b_.combined[j];
      } else {
        source.base = input(l) + b * job_.T * s_.x_width;
        source.times = tile.times, source.shift = std::int64_t(j) * layer.dilation - s_.left(l), source.outside = b_.edge;
      }
    }
    const P* cond = kHalf ? b_.cond : (const P*)job_.cond;
    projection_ = l < job_.n_projected ? job_.projection + (l * job_.B + b) * job_.n_frames * 2 * s_.z_width : nullptr;
    cond_ = projection_ || !job_.cond ? kNone : job_.cond_apart ? kApart
                                                                : kMerged;
    if (cond_ != kNone)
      b_.sources[s_.n_taps] = {cond + b * job_.T * s_.c_width, s_.c_width, (const P*)layer.cond.data, layer.cond.K,
                               tile.times, 0, job_.T, nullptr};
    biases_ = {layer.b_in, layer.b_res};
    if (job_.step) add_step(l, job_.step + (b * s_.n_layers + l) * s_.R);
    else std::memset((void*)b_.edge, 0, s_.x_width * sizeof(X));
  }

  void add_step(int l, const float* step) {
    const StackLayer& layer = s_.layers[l];
    alignas(64) float scaled[kLanes];
    for (int i = 0; i < s_.x_width; i += kLanes) {  // of minimal filtering's sums only the second is not zero: 2·step
      for (int n = 0; n < kLanes; ++n) scaled[n] = i + n < s_.R ? (kMinimal ? 2 : 1) * step[i + n] : 0.f;
      write(b_.step + i, load(scaled));
      for (int n = 0; n < kLanes; ++n) scaled[n] = i + n < s_.R ? -step[i + n] : 0.f;
      write(b_.edge + i, load(scaled));
    }
    std::memcpy(b_.b_in, layer.b_in, 2ll * s_.z_width * 4);
    // Rows 0 apart: tiles read 16 of them
    for (int j = kMinimal ? 1 : 0; j < (kMinimal ? 2 : s_.n_taps); ++j) {
      const Source<P> tap{b_.step, 0, (const P*)layer.taps[j].data, layer.taps[j].K, nullptr, 0, 1, nullptr};
      product(&tap, 1, 2 * s_.z_width, 1, [&](int n0, int nv, std::int64_t, int, const float* sums) {
        for (int v = 0; v < nv * kLanes; v += kLanes) store(b_.b_in + n0 + v, load(sums + v) + load(b_.b_in + n0 + v));
      });
    }
    for (int i = 0; i < s_.x_width; ++i) b_.b_res[i] = layer.b_res[i] + (s_.step_in_residual && i < s_.R ? step[i] : 0.f);
    biases_ = {b_.b_in, b_.b_res};
  }

  // z of a tile: a plain sum over the taps.
  void gate_samples(const Tile& tile) {
    panels(2 * s_.z_width, [&](auto width, int n0) {
      constexpr int NV = decltype(width)::value;
      alignas(64) float sums[2][kMaxRows * NV * kLanes];
      for (int m = 0; m < tile.n;) {
        const int M = some_rows<NV>(b_.sources, s_.n_taps + (cond_ == kMerged), n0, m, tile.n - m, sums[0]);
        if (cond_ == kApart) some_rows<NV>(b_.sources + s_.n_taps, 1, n0, m, tile.n - m, sums[1]);
        for (int i = 0; i < M; ++i)
          for (int v = 0; v < NV; v += 2) {
            const float* at = sums[0] + (i * NV + v) * kLanes;
            write_z(tile, m + i, n0 + v * kLanes, load(at), load(at + kLanes), at + kMaxRows * NV * kLanes);
          }
        m += M;
      }
    });
  }

  // z of a tile by minimal filtering.
  void gate_pairs(int l, const Tile& tile) {
    combine(l, tile);
    const int pairs = tile.first, seconds = tile.n - tile.first, with_cond = cond_ == kMerged ? 2 : 1;
    // The conditioning of each sample joins the product that is its alone
    Source<P> first[2] = {b_.sources[0], b_.sources[s_.n_taps]}, second[2] = {b_.sources[3], b_.sources[s_.n_taps]};
    second[1].times += pairs;
    panels(2 * s_.z_width, [&](auto width, int n0) {
      constexpr int NV = decltype(width)::value;
      alignas(64) float sums[4][kMaxRows * NV * kLanes], cond[2][kMaxRows * NV * kLanes];
      for (int m = 0; m < pairs;) {
        const int rows = pairs - m;
        const int M = some_rows<NV>(first, with_cond, n0, m, rows, sums[0]);
        some_rows<NV>(b_.sources + 1, 1, n0, m, rows, sums[1]);
        some_rows<NV>(b_.sources + 2, 1, n0, m, rows, sums[2]);
        const int M2 = seconds - m < M ? seconds - m : M;
        const auto of_seconds = [&](const Source<P>* sources, int n, float* out) {
          for (int i = 0; i < M2;) i += some_rows<NV>(sources, n, n0, m + i, M2 - i, out + i * NV * kLanes);
        };
        of_seconds(second, with_cond, sums[3]);
        if (cond_ == kApart) some_rows<NV>(first + 1, 1, n0, m, rows, cond[0]), of_seconds(second + 1, 1, cond[1]);
        for (int i = 0; i < M; ++i)
          for (int v = 0; v < NV; v += 2) {
            const int at = (i * NV + v) * kLanes;
            const auto sum = [&](int j, int half) { return load(sums[j] + at + half * kLanes); };
            write_z(tile, m + i, n0 + v * kLanes, sum(0, 0) + (sum(1, 0) + sum(2, 0)), sum(0, 1) + (sum(1, 1) + sum(2, 1)),
                    cond[0] + at);
            if (i < M2)
              write_z(tile, pairs + m + i, n0 + v * kLanes, sum(3, 0) + (sum(1, 0) - sum(2, 0)), sum(3, 1) + (sum(1, 1) - sum(2, 1)),
                      cond[1] + at);
          }
        m += M;
      }
    });
  }

  // x0 - x2, x1 + x2, x2 - x1, x3 - x1 of each pair.
  void combine(int l, const Tile& tile) {
    const StackLayer& layer = s_.layers[l];
    const float* x = (const float*)input(l) + tile.b * job_.T * s_.x_width;
    for (int i = 0; i < tile.first; ++i) {
      const float* in[4];
      for (int j = 0; j < 4; ++j) {
        const std::int64_t t = tile.times[i] + std::int64_t(j) * layer.dilation - s_.left(l);
        in[j] = std::uint64_t(t) < std::uint64_t(job_.T) ? x + t * s_.x_width : (const float*)b_.edge;
      }
      P* to[4];
      for (int j = 0; j < 4; ++j) to[j] = b_.combined[j] + std::int64_t(i) * s_.x_width;
      for (int r = 0; r < s_.x_width; r += kLanes) {
        const vfloat x0 = load(in[0] + r), x1 = load(in[1] + r), x2 = load(in[2] + r), x3 = load(in[3] + r);
        write(to[0] + r, x0 - x2);
        write(to[1] + r, x1 + x2);
        write(to[2] + r, x2 - x1);
        write(to[3] + r, x3 - x1);
      }
    }
  }

  void write_z(const Tile& tile, std::int64_t row, int column, vfloat tanh_sum, vfloat sigmoid_sum, const float* cond) {
    const float* bias = biases_.in + column;
    vfloat a = tanh_sum + load(bias), b = sigmoid_sum + load(bias + kLanes);
    if (cond_ == kApart) {
      a += load(cond), b += load(cond + kLanes);
    } else if (projection_) {
      const std::int64_t t = tile.times[row];
      const float* frame = projection_ + (job_.first ? job_.first[t] : t) * 2 * s_.z_width + column;
      if (!job_.first) a += load(frame), b += load(frame + kLanes);
      else
        for (int j = 0; j < job_.n_taps; ++j, frame += 2 * s_.z_width) {
          const vfloat tap = splat(job_.taps[t * job_.n_taps + j]);
          a = fma(tap, load(frame), a), b = fma(tap, load(frame + kLanes), b);
        }
    }
    if (job_.a) {
      const int h = column / 2, n = s_.H - h;
      const std::int64_t at = (tile.b * job_.T + tile.times[row]) * 2 * s_.H + h;
      if (job_.added) a += load_some(job_.added + at, n), b += load_some(job_.added + at + s_.H, n);
      store_some(job_.a + at, a, n), store_some(job_.a + at + s_.H, b, n);
    }
    write(b_.z + row * s_.z_width + column / 2, kHalf ? gate_bf16(a, b) : gate(a, b));
  }

  // The next x and the skip sum of a tile.
  void outputs(int l, const Tile& tile) {
    const StackLayer& layer = s_.layers[l];
    const std::int64_t start = tile.b * job_.T;
    Source<P> z{b_.z, s_.z_width, (const P*)layer.res.data, layer.res.K, nullptr, 0, kTile, nullptr};
    if (l + 1 < s_.n_layers || !s_.S || job_.x_next) {
      const X* x = input(l) + start * s_.x_width;
      X* next = b_.x[(l + 1) % 2] + start * s_.x_width;
      float* res = b_.res + start * s_.x_width;
      const vfloat rho = splat(s_.rho);
      product(&z, 1, s_.x_width, tile.n, [&](int n0, int nv, std::int64_t m, int M, const float* sums) {
        for (int i = 0; i < M; ++i, sums += nv * kLanes) {
          const std::int64_t at = tile.times[m + i] * s_.x_width + n0;
          for (int v = 0; v < nv * kLanes; v += kLanes) {
            const vfloat before = load(sizeof(X) == 2 ? res + at + v : (const float*)x + at + v);
            const vfloat y = (before + (load(sums + v) + load(biases_.res + n0 + v))) * rho;
            if (sizeof(X) == 2) store(res + at + v, y);
            write(next + at + v, y);
          }
        }
      });
    }
    if (!s_.S) return;
    z.w = (const P*)layer.skip.data;
    float* skip = b_.skip + start * s_.s_width;
    product(&z, 1, s_.s_width, tile.n, [&](int n0, int nv, std::int64_t m, int M, const float* sums) {
      for (int i = 0; i < M; ++i, sums += nv * kLanes) {
        float* to = skip + tile.times[m + i] * s_.s_width + n0;
        for (int v = 0; v < nv * kLanes; v += kLanes) {
          const vfloat y = load(sums + v) + load(layer.b_skip + n0 + v);
          store(to + v, l ? load(to + v) + y : y);
        }
      }
    });
  }

  // Rows that are not whole vectors leave the workspace.
  void finish() {
    const float* x = sizeof(X) == 2 ? b_.res : (const float*)b_.x[s_.n_layers % 2];
    float* x_out = s_.S ? job_.x_next : job_.out;
    const bool copy_x = x_out && x != x_out, copy_skip = s_.S && b_.skip != job_.out;
    if (!copy_x && !copy_skip) return;
    barrier_.wait();
    share(job_.B * job_.T, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t r = first; r < last; ++r) {
        if (copy_x) std::memcpy(x_out + r * s_.R, x + r * s_.x_width, s_.R * sizeof(float));
        if (copy_skip) std::memcpy(job_.out + r * s_.S, b_.skip + r * s_.s_width, s_.S * sizeof(float));
      }
    });
  }

  const GatedResidualStack& s_;
  const GatedResidualJob& job_;
  const int thread_, n_threads_;
  Barrier& barrier_;
  Shares& shares_;
  Buffers<P, X> b_;
  const X* input_;
  struct { const float *in, *res; } biases_;
  const float* projection_;  // of the layer and the batch entry, or null
  Conditioning cond_;
};

template <class P, bool kMinimal> struct Kind { typedef Run<P, kMinimal> run; };

// f(Kind<…>) of what the stack is packed for
template <class F>
inline void with_kind(const GatedResidualStack& stack, F f) {
  if (stack.precision == kFloat32) return stack.minimal ? f(Kind<float, true>{}) : f(Kind<float, false>{});
  if constexpr (kMinimalBf16)
    if (stack.minimal) return f(Kind<bf16, true>{});
  f(Kind<bf16, false>{});
}

}  // namespace

std::int64_t gated_residual_stack_workspace(const GatedResidualStack& stack, const GatedResidualJob& job, int n_threads) {
  std::int64_t bytes = 0;
  with_kind(stack, [&](auto kind) { bytes = decltype(kind)::run::workspace(stack, job, n_threads); });
  return bytes;
}

// One member of the team that runs a job; all members must run at the same time.
void gated_residual_stack(const GatedResidualStack& stack, const GatedResidualJob& job, int thread, int n_threads,
                          Barrier& barrier, Shares& shares) {
  with_kind(stack, [&](auto kind) { typename decltype(kind)::run(stack, job, thread, n_threads, barrier, shares).run(); });
}

}  // namespace fastvoc::FASTVOC_ISA
