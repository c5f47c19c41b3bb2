// A stack of gated residual layers, CPU: all layers of a whole batch in one call.
//
// Plain PyTorch moves about a thousand floats per sample and layer. Here a tile of some hundred samples goes through a layer
// at once: gate and z stay in L1/L2, only x, the skip sum and the conditioning pass by. Bound by multiply-adds.
//
// A team of threads shares the rows (samples of all batch entries) evenly and meets after each layer. What a row's result
// is depends on neither the tile nor the thread it falls to.
//
// The diffusion step's bias is no term of every sample: inside the signal Σ_j W_in[j]·step is constant, so it joins b_in once
// a layer, and rows outside the signal are taken as -step, which cancels it there.
#include "core/gated_residual_stack.h"

#include "core/parallel.h"
#include "cpu/products.h"

namespace fastvoc::FASTVOC_ISA {
namespace {

constexpr int kTile = 192;  // rows

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

// What one run needs, carved from the caller's workspace. X is what products read: float or bf16.
template <class X>
struct Buffers {
  X* x[2];     // (B, T, x_width): a layer's input and its output, in turn
  float* res;  // (B, T, x_width): x in full precision, where X is bf16
  X* cond;     // (B, T, c_width), where X is bf16
  float* skip;  // (B, T, s_width), where the output's rows are no whole vectors
  // of each thread
  X *z, *edge;             // (tile, z_width); the row that stands outside the signal
  float *b_in, *b_res;     // with the step's share
  Source<X>* sources;      // kernel + 1

  std::int64_t bytes = 0;  // of all threads together

  Buffers(const GatedResidualStack& s, const GatedResidualJob& job, int thread, int n_threads) {
    constexpr bool half = sizeof(X) == 2;
    const auto take = [&](std::int64_t n) {
      char* p = job.workspace + bytes;
      bytes += (n + 63) / 64 * 64;
      return p;
    };
    const std::int64_t rows = job.B * job.T;
    x[0] = (X*)take(rows * s.x_width * sizeof(X));
    x[1] = (X*)take(rows * s.x_width * sizeof(X));
    res = (float*)take(half ? rows * s.x_width * 4 : 0);
    cond = (X*)take(half ? rows * s.c_width * 2 : 0);
    skip = (float*)take(s.s_width == s.S ? 0 : rows * s.s_width * 4);
    const std::int64_t shared = bytes;
    for (int i = 0; i <= thread; ++i) {
      z = (X*)take(std::int64_t(kTile) * s.z_width * sizeof(X));
      edge = (X*)take(s.x_width * sizeof(X));
      b_in = (float*)take(2ll * s.z_width * 4);
      b_res = (float*)take(s.x_width * 4);
      sources = (Source<X>*)take((s.kernel + 1) * sizeof(Source<X>));
    }
    bytes = shared + (bytes - shared) / (thread + 1) * n_threads;
  }
};

template <class X>
class Run {
  static constexpr bool kHalf = sizeof(X) == 2;

 public:
  Run(const GatedResidualStack& stack, const GatedResidualJob& job, int thread, int n_threads, Barrier& barrier)
      : s_(stack), job_(job), barrier_(barrier), b_(stack, job, thread, n_threads) {
    const std::int64_t rows = job.B * job.T;
    first_ = rows * thread / n_threads, last_ = rows * (thread + 1) / n_threads;
    if (s_.s_width == s_.S) b_.skip = job.out;
  }

  void run() {
    const FlushDenormals flush;
#if defined(FASTVOC_USE_AMX)
    if (kHalf) tile_configure_square();
#endif
    begin();
    for (int l = job_.first_layer; l < job_.last_layer; ++l) {
      barrier_.wait();
      std::int64_t entry = -1;
      for (std::int64_t r = first_; r < last_;) {
        const std::int64_t b = r / job_.T, t = r - b * job_.T;
        const std::int64_t end = last_ - r < job_.T - t ? last_ - r : job_.T - t;
        const std::int64_t n = end < kTile ? end : kTile;
        if (b != entry) prepare(l, b), entry = b;
        tile(l, b, t, n);
        r += n;
      }
    }
    if (job_.last_layer == s_.n_layers) finish();
#if defined(FASTVOC_USE_AMX)
    if (kHalf) tile_release();
#endif
  }

 private:
  // Inputs as the products read them. The conditioning of a row is read by that row's thread alone.
  void begin() {
    if (kHalf && job_.cond)
      for (std::int64_t r = first_; r < last_; ++r)
        convert_row(job_.cond + r * s_.C, b_.cond + r * s_.c_width, s_.C, s_.c_width);
    const bool as_it_is = !kHalf && s_.R == s_.x_width;
    input_ = as_it_is ? (const X*)job_.x : b_.x[0];
    if (as_it_is || job_.first_layer > 0) return;
    for (std::int64_t r = first_; r < last_; ++r) {
      convert_row(job_.x + r * s_.R, b_.x[0] + r * s_.x_width, s_.R, s_.x_width);
      if (kHalf) convert_row(job_.x + r * s_.R, b_.res + r * s_.x_width, s_.R, s_.x_width);
    }
  }

  // Before the rows of batch entry b: its biases, and where layer l's products find their rows.
  void prepare(int l, std::int64_t b) {
    const StackLayer& layer = s_.layers[l];
    const X* x = l == 0 ? input_ : b_.x[l % 2];
    for (int j = 0; j < s_.kernel; ++j) {
      const std::int64_t shift = std::int64_t(j) * layer.dilation - s_.left(l);
      const StackMatrix& w = layer.taps[j];
      b_.sources[j] = {x + b * job_.T * s_.x_width, s_.x_width, shift, job_.T, b_.edge, (const X*)w.data, w.K};
    }
    n_sources_ = s_.kernel;
    if (job_.cond) {
      const StackMatrix& w = layer.cond;
      const X* cond = kHalf ? b_.cond : (const X*)job_.cond;
      b_.sources[n_sources_++] = {cond + b * job_.T * s_.c_width, s_.c_width, 0, job_.T, nullptr, (const X*)w.data, w.K};
    }
    biases_ = {layer.b_in, layer.b_res};
    if (!job_.step) {
      std::memset((void*)b_.edge, 0, s_.x_width * sizeof(X));
      return;
    }
    const float* step = job_.step + (b * s_.n_layers + l) * s_.R;
    convert_row(step, b_.edge, s_.R, s_.x_width);
    Source<X>* taps = b_.sources;  // every tap sees the step: none has rows
    for (int j = 0; j < s_.kernel; ++j) taps[j].n = 0;
    product(taps, s_.kernel, 2 * s_.z_width, 0, 1, [&](int n0, int nv, std::int64_t, int, const float* sums) {
      for (int v = 0; v < nv * kLanes; v += kLanes) store(b_.b_in + n0 + v, load(sums + v) + load(layer.b_in + n0 + v));
    });
    for (int j = 0; j < s_.kernel; ++j) taps[j].n = job_.T;
    for (int i = 0; i < s_.x_width; ++i) b_.b_res[i] = layer.b_res[i] + (s_.step_in_residual && i < s_.R ? step[i] : 0.f);
    float minus[kLanes];
    for (int i = 0; i < s_.x_width; i += kLanes) {
      for (int n = 0; n < kLanes; ++n) minus[n] = i + n < s_.R ? -step[i + n] : 0.f;
      write(b_.edge + i, load(minus));
    }
    biases_ = {b_.b_in, b_.b_res};
  }

  // Rows t … t + n - 1 of batch entry b through layer l.
  void tile(int l, std::int64_t b, std::int64_t t, std::int64_t n) {
    const StackLayer& layer = s_.layers[l];
    product(b_.sources, n_sources_, 2 * s_.z_width, t, n, [&](int n0, int nv, std::int64_t m, int M, const float* sums) {
      for (int v = 0; v < nv; v += 2) {
        const vfloat b_tanh = load(biases_.in + n0 + v * kLanes), b_sigmoid = load(biases_.in + n0 + (v + 1) * kLanes);
        X* z = b_.z + m * s_.z_width + (n0 + v * kLanes) / 2;
        for (int i = 0; i < M; ++i, z += s_.z_width) {
          const float* sum = sums + (i * nv + v) * kLanes;
          write(z, gate(load(sum) + b_tanh, load(sum + kLanes) + b_sigmoid));
        }
      }
    });
    const bool last = l + 1 == s_.n_layers;
    const Source<X> z{b_.z, s_.z_width, -t, kTile, nullptr, (const X*)layer.res.data, layer.res.K};
    const std::int64_t row = b * job_.T + t;
    if (!last || !s_.S) {
      const X* x = (l == 0 ? input_ : b_.x[l % 2]) + row * s_.x_width;
      X* next = b_.x[(l + 1) % 2] + row * s_.x_width;
      float* res = b_.res + row * s_.x_width;
      const vfloat rho = splat(s_.rho);
      product(&z, 1, s_.x_width, t, n, [&](int n0, int nv, std::int64_t m, int M, const float* sums) {
        for (int v = 0; v < nv; ++v) {
          const vfloat bias = load(biases_.res + n0 + v * kLanes);
          std::int64_t at = m * s_.x_width + n0 + v * kLanes;
          for (int i = 0; i < M; ++i, at += s_.x_width) {
            const vfloat r = load(sums + (i * nv + v) * kLanes) + bias;
            const vfloat y = (load(kHalf ? res + at : (const float*)x + at) + r) * rho;
            if (kHalf) store(res + at, y);
            write(next + at, y);
          }
        }
      });
    }
    if (!s_.S) return;
    const Source<X> z_skip{b_.z, s_.z_width, -t, kTile, nullptr, (const X*)layer.skip.data, layer.skip.K};
    float* skip = b_.skip + row * s_.s_width;
    product(&z_skip, 1, s_.s_width, t, n, [&](int n0, int nv, std::int64_t m, int M, const float* sums) {
      for (int v = 0; v < nv; ++v) {
        const vfloat bias = load(layer.b_skip + n0 + v * kLanes);
        float* to = skip + m * s_.s_width + n0 + v * kLanes;
        for (int i = 0; i < M; ++i, to += s_.s_width) {
          const vfloat y = load(sums + (i * nv + v) * kLanes) + bias;
          store(to, l ? load(to) + y : y);
        }
      }
    });
  }

  // Rows that are not whole vectors leave the workspace.
  void finish() {
    const int width = s_.S ? s_.s_width : s_.x_width, n = s_.S ? s_.S : s_.R;
    const float* from = s_.S ? b_.skip : kHalf ? b_.res : (const float*)b_.x[s_.n_layers % 2];
    if (from == job_.out) return;
    for (std::int64_t r = first_; r < last_; ++r) std::memcpy(job_.out + r * n, from + r * width, n * sizeof(float));
  }

  const GatedResidualStack& s_;
  const GatedResidualJob& job_;
  Barrier& barrier_;
  Buffers<X> b_;
  std::int64_t first_, last_;  // this thread's rows
  const X* input_;
  struct { const float *in, *res; } biases_;
  int n_sources_;
};

}  // namespace

std::int64_t gated_residual_stack_workspace(const GatedResidualStack& stack, const GatedResidualJob& job, int n_threads) {
  return stack.precision == kBFloat16 ? Buffers<bf16>(stack, job, 0, n_threads).bytes
                                      : Buffers<float>(stack, job, 0, n_threads).bytes;
}

// One member of the team that runs a job; all members must run at the same time.
void gated_residual_stack(const GatedResidualStack& stack, const GatedResidualJob& job, int thread, int n_threads,
                          Barrier& barrier) {
  if (stack.precision == kBFloat16)
    Run<bf16>(stack, job, thread, n_threads, barrier).run();
  else
    Run<float>(stack, job, thread, n_threads, barrier).run();
}

}  // namespace fastvoc::FASTVOC_ISA
