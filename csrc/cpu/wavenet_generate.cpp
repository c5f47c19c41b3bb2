// WaveNet generation, CPU: a group of streams, sample by sample, from explicit state.
//
// Bound by reading the weights (R64 S256 L20: 1.74 MB in bf16, every sample). What the code therefore does:
//   - weights packed in the order in which they are read, products of one to a handful of columns (matvec.h);
//   - streams share each weight that is read; what one stream computes does not depend on its company;
//   - skips are kept as z of all layers and summed by one product at the end of a sample;
//   - conditioning is projected a few samples at a time, for all layers at once, never for the whole utterance;
//   - a layer's past taps are known as many samples ahead as its dilation: their products are made for several samples at
//     once, so that their weights are read once for them, and one column is never what they are multiplied with.
//
// How far ahead is looked changes no bit: gate input = now + ((bias + conditioning) + past), each sum in its own fixed order.
// A team of threads shares the panels of each matrix and meets after each. To hand a layer's z over takes two threads some 0.2 µs,
// more than a small residual product: each thread then makes all of it for itself, and a sample has layers + 4 such points
// instead of 2·layers + 4.
#include "core/parallel.h"
#include "core/wavenet.h"
#include "cpu/matvec_int8.h"
#include "cpu/sample.h"

namespace fastvoc::FASTVOC_ISA {
namespace {

inline void convert(const float* x, float* y, int n) { std::memcpy(y, x, n * 4); }
inline void convert(const float* x, bf16* y, int n) { to_bf16(x, y, n); }
inline void convert(const float* x, q8* y, int n) { std::memcpy((void*)y, x, n * 4); }

// n of any size; `to` has room for whole vectors, and what lies behind n stays zero
template <class X>
inline void convert_row(const float* from, X* to, int n) {
  int i = n / kLanes * kLanes;
  convert(from, to, i);
  if (i == n) return;
  float rest[kLanes] = {};
  std::memcpy(rest, from + i, (n - i) * sizeof(float));
  convert(rest, to + i, kLanes);
}

// Buffers of one group of M streams, carved from the caller's workspace. X is what products read: float, bf16 or q8.
template <class X>
struct Buffers {
  X* in;        // (layers, M, R): each layer's input; of each thread, where it makes them for itself
  X* taps;      // (kMaxColumns, (kernel-1)·R): past inputs of one layer, oldest first; each thread has its own
  X* z;         // (M, layers·H)
  X* skip;      // (M, S_in)
  X* hidden;    // (M, hidden_in)
  X* mel;       // (steps·M, C)
  float* x;     // (M, R); likewise
  float* y;     // (M, n_out and a vector)
  float* cond;  // (steps, M, layers·2·H): bias, conditioning and past taps
  float* scratch;

  static std::int64_t carve(const WaveNet& net, int M, char* base, Buffers* b) {
    std::int64_t at = 0;
    const auto take = [&](std::int64_t bytes) {
      char* p = base + at;
      at += aligned(bytes);
      return p;
    };
    const std::int64_t x = sizeof(X), steps = cond_steps(net, M);
    Buffers c;
    c.in = (X*)take(inputs_bytes(net, M));
    c.z = (X*)take(x * M * net.n_layers * net.H);
    c.skip = (X*)take(x * M * net.S_in);
    c.hidden = (X*)take(x * M * net.hidden_in);
    c.mel = (X*)take(x * steps * M * net.C);
    c.x = (float*)take(4ll * M * net.R);
    c.y = (float*)take(4ll * M * (net.n_out + 64));
    c.cond = (float*)take(4 * steps * M * net.gate_rows());
    c.taps = (X*)take(kMaxColumns * taps_bytes(net));
    c.scratch = (float*)take(4 * kMaxColumns * widest(net));
    if (b) *b = c;
    return at;
  }

  // What thread 1, 2, … has for itself, from `own` on.
  void carve_own(const WaveNet& net, int M, char* own) {
    taps = (X*)own;
    scratch = (float*)(own += kMaxColumns * taps_bytes(net));
    own += kMaxColumns * 4 * widest(net);
    if (!alone(net, M)) return;
    in = (X*)own;
    x = (float*)(own + inputs_bytes(net, M));
  }
  static std::int64_t own_bytes(const WaveNet& net, int M) {
    return kMaxColumns * (taps_bytes(net) + 4 * widest(net)) + (alone(net, M) ? inputs_bytes(net, M) + aligned(4ll * M * net.R) : 0);
  }

  // Whether each thread computes the residual path for itself: where that takes less time than to hand z over.
  static bool alone(const WaveNet& net, int M) { return std::int64_t(net.R) * net.H * net.weight_bytes() * M <= 16384; }

 private:
  static std::int64_t aligned(std::int64_t bytes) { return (bytes + 63) / 64 * 64; }
  static std::int64_t inputs_bytes(const WaveNet& net, int M) { return aligned(std::int64_t(sizeof(X)) * net.n_layers * M * net.R); }
  static std::int64_t taps_bytes(const WaveNet& net) { return aligned(std::int64_t(net.kernel - 1) * net.R * sizeof(X)); }
  static std::int64_t widest(const WaveNet& net) {
    std::int64_t widest = net.n_layers * net.H;
    for (int k : {(net.kernel - 1) * net.R, net.R, net.S_in, net.hidden_in, net.C}) widest = k > widest ? k : widest;
    return widest;
  }
};

template <class X>
class Generator {
 public:
  Generator(const WaveNet& net, const WaveNetJob& job, int thread, int n_threads, Barrier& barrier, char* scratches)
      : net_(net), job_(job), thread_(thread), n_threads_(n_threads), barrier_(barrier), capacity_(job.n_streams) {
    const std::int64_t shared = Buffers<X>::carve(net, capacity_, job.workspace, &b_);
    if (thread > 0)
      b_.carve_own(net, capacity_, scratches + shared + std::int64_t(thread - 1) * Buffers<X>::own_bytes(net, capacity_));
  }

  void run() {
    const FlushDenormals flush;
    int steps_ready = 0, row = 0;
    M_ = capacity_;
    for (int t = 0;; ++t, ++row) {
      int active = M_;
      while (active > 0 && job_.n_samples[active - 1] <= t) --active;  // the shortest streams come last
      if (active == 0) return;
      if (active != M_) M_ = active, steps_ready = 0;  // rows of the conditioning buffer move: project again
      if (steps_ready == row || steps_ready == 0) {
        steps_ready = condition(t);
        row = 0;
      }
      look_ahead(row, steps_ready);
      sample(t, row);
    }
  }

 private:
  // The panels that are this thread's: an even share, the first threads taking what is left over.
  template <class F>
  void share(const Matrix& W, const X* in, int ld, F store_panel) {
    const int panels = (W.N + W.width - 1) / W.width;
    multiply(W, in, ld, panels * thread_ / n_threads_, panels * (thread_ + 1) / n_threads_, store_panel);
    barrier_.wait();
  }

  template <class F>
  void multiply(const Matrix& W, const X* in, int ld, int first, int last, F store_panel) {
    for (int m = 0; m < M_; m += kMaxColumns) {
      const int columns = M_ - m < kMaxColumns ? M_ - m : kMaxColumns;
      product(W, in + std::int64_t(m) * ld, ld, columns, first, last, b_.scratch,
              [&](int n0, int n, const float* sums) { store_panel(m, columns, n0, n, sums); });
    }
  }

  // Projects the conditioning of samples t … t + steps - 1 into b_.cond; returns steps.
  int condition(int t) {
    int steps = cond_steps(net_, capacity_);
    if (job_.n_samples[M_ - 1] - t < steps) steps = job_.n_samples[M_ - 1] - t;
    const int rows = net_.gate_rows();
    const auto bias_of = [&](int m) { return (const float*)((char*)job_.streams[m] + net_.bias); };
    if (job_.layer_cond || !net_.C || !job_.cond) {
      if (thread_ == 0)
        for (int s = 0; s < steps; ++s)
          for (int m = 0; m < M_; ++m) {
            float* to = b_.cond + (std::int64_t(s) * M_ + m) * rows;
            std::memcpy(to, bias_of(m), rows * 4);
            if (!job_.layer_cond) continue;
            const int H = job_.true_H;
            const float* from = job_.cond[m] + std::int64_t(t + s) * net_.n_layers * 2 * H;
            for (int l = 0; l < net_.n_layers; ++l)
              for (int half = 0; half < 2; ++half)
                for (int h = 0; h < H; ++h) to[l * 2 * net_.H + interleaved(half, h)] += *from++;
          }
      barrier_.wait();
      return steps;
    }
    if (thread_ == 0)
      for (int s = 0; s < steps; ++s)
        for (int m = 0; m < M_; ++m) {
          X* to = b_.mel + (std::int64_t(s) * M_ + m) * net_.C;
          std::memset((void*)to, 0, net_.C * sizeof(X));
          convert_row(job_.cond[m] + std::int64_t(t + s) * job_.cond_ld, to, job_.cond_ld);
        }
    barrier_.wait();
    const Matrix& W = net_.cond;
    const int panels = (W.N + W.width - 1) / W.width;
    for (int r = 0; r < steps * M_; r += kMaxColumns) {
      const int columns = steps * M_ - r < kMaxColumns ? steps * M_ - r : kMaxColumns;
      product(W, b_.mel + std::int64_t(r) * net_.C, net_.C, columns, panels * thread_ / n_threads_,
              panels * (thread_ + 1) / n_threads_, b_.scratch, [&](int n0, int n, const float* sums) {
                for (int i = 0; i < columns; ++i) {
                  const float* bias = bias_of((r + i) % M_) + n0;
                  float* to = b_.cond + std::int64_t(r + i) * rows + n0;
                  for (int v = 0; v < n; v += kLanes) store(to + v, load(bias + v) + load(sums + i * kMaxPanel + v));
                }
              });
    }
    barrier_.wait();
    return steps;
  }

  // Adds the past taps of layers whose turn it is to b_.cond, for samples row … of the steps that are ready: as many as the
  // dilation allows, a power of two, so that turns stay regular.
  void look_ahead(int row, int steps) {
    const int ld = (net_.kernel - 1) * net_.R;
    for (int l = 0; l < net_.n_layers; ++l) {
      const WaveNetLayer& layer = net_.layers[l];
      int span = 1;
      while (span < 16 && span * 2 <= layer.dilation) span *= 2;
      if (row % span) continue;
      const int n = (steps - row < span ? steps - row : span) * M_;
      const int panels = (layer.past.N + layer.past.width - 1) / layer.past.width;
      for (int r = 0; r < n; r += kMaxColumns) {
        const int columns = n - r < kMaxColumns ? n - r : kMaxColumns;
        for (int i = 0; i < columns; ++i) recall_taps(layer, l, (r + i) % M_, (r + i) / M_, b_.taps + i * ld);
        float* to = b_.cond + (std::int64_t(row) * M_ + r) * net_.gate_rows() + std::int64_t(l) * 2 * net_.H;
        product(layer.past, b_.taps, ld, columns, panels * thread_ / n_threads_, panels * (thread_ + 1) / n_threads_,
                b_.scratch, [&](int n0, int width, const float* sums) {
                  for (int i = 0; i < columns; ++i) {
                    float* c = to + std::int64_t(i) * net_.gate_rows() + n0;
                    for (int v = 0; v < width; v += kLanes) store(c + v, load(c + v) + load(sums + i * kMaxPanel + v));
                  }
                });
      }
    }
  }

  // Layer l's past inputs of the sample that comes `ahead` samples after the next one of stream m, oldest first.
  void recall_taps(const WaveNetLayer& layer, int l, int m, int ahead, X* to) {
    const char* state = (const char*)job_.streams[m];
    const int R = net_.R, taps = net_.kernel - 1, size = taps * layer.dilation;
    const X* ring = (const X*)(state + layer.ring);
    const int position = ((const std::int32_t*)(state + net_.positions))[l] + ahead;
    for (int j = 0; j < taps; ++j) {  // tap j lies (taps - j)·d samples back; slot `position` is the oldest
      int slot = position + j * layer.dilation;
      if (slot >= size) slot -= size;
      std::memcpy((void*)(to + j * R), ring + std::int64_t(slot) * R, R * sizeof(X));
    }
  }

  void sample(int t, int row) {
    const int L = net_.n_layers, R = net_.R, H = net_.H;
    const bool alone = Buffers<X>::alone(net_, capacity_);
    if (alone || thread_ == 0)
      for (int m = 0; m < M_; ++m) recall(m);
    if (!alone) barrier_.wait();
    for (int l = 0; l < L; ++l) {
      const WaveNetLayer& layer = net_.layers[l];
      const X* in = b_.in + std::int64_t(l) * capacity_ * R;
      const float* cond = b_.cond + std::int64_t(row) * M_ * net_.gate_rows() + std::int64_t(l) * 2 * H;
      share(layer.now, in, R, [&](int m0, int columns, int n0, int n, const float* sums) {
        for (int m = 0; m < columns; ++m) {
          const float *a = sums + m * kMaxPanel, *c = cond + std::int64_t(m0 + m) * net_.gate_rows() + n0;
          alignas(64) float z[kMaxPanel / 2];
          for (int i = 0; i < n; i += 32)
            for (int v = 0; v < 16; v += kLanes)
              store(z + i / 2 + v, gate(load(a + i + v) + load(c + i + v), load(a + i + 16 + v) + load(c + i + 16 + v)));
          convert(z, b_.z + std::int64_t(m0 + m) * L * H + l * H + n0 / 2, n / 2);
        }
      });
      if (l == L - 1) break;
      X* next = b_.in + std::int64_t(l + 1) * capacity_ * R;
      const vfloat rho = splat(net_.rho);
      const auto add = [&](int m0, int columns, int n0, int n, const float* sums) {
        for (int m = 0; m < columns; ++m) {
          float* x = b_.x + std::int64_t(m0 + m) * R + n0;
          for (int v = 0; v < n; v += kLanes)
            store(x + v, (load(x + v) + (load(sums + m * kMaxPanel + v) + load(layer.b_res + n0 + v))) * rho);
          convert(x, next + std::int64_t(m0 + m) * R + n0, n);
        }
      };
      if (alone) multiply(layer.res, b_.z + l * H, L * H, 0, (layer.res.N + layer.res.width - 1) / layer.res.width, add);
      else share(layer.res, b_.z + l * H, L * H, add);
    }
    const auto rectified = [&](const float* bias, X* to, int ld) {
      return [=](int m0, int columns, int n0, int n, const float* sums) {
        for (int m = 0; m < columns; ++m) {
          alignas(64) float h[kMaxPanel];
          for (int v = 0; v < n; v += kLanes) {
            const vfloat s = load(sums + m * kMaxPanel + v) + load(bias + n0 + v);
            store(h + v, s < 0.f ? vfloat{} : s);
          }
          convert(h, to + std::int64_t(m0 + m) * ld + n0, n);
        }
      };
    };
    share(net_.skip, b_.z, L * H, rectified(net_.b_skip, b_.skip, net_.S_in));
    share(net_.hidden, b_.skip, net_.S_in, rectified(net_.b_hidden, b_.hidden, net_.hidden_in));
    const int ld = net_.n_out + 64;
    share(net_.logits, b_.hidden, net_.hidden_in, [&](int m0, int columns, int n0, int n, const float* sums) {
      for (int m = 0; m < columns; ++m)
        for (int i = 0; i < n && n0 + i < net_.n_out; ++i)
          b_.y[std::int64_t(m0 + m) * ld + n0 + i] = sums[m * kMaxPanel + i] + net_.b_logits[n0 + i];
    });
    if (thread_ == 0)
      for (int m = 0; m < M_; ++m) finish(m, t, b_.y + std::int64_t(m) * ld);
    barrier_.wait();
  }

  // Before the layers: the first layer's input from the last samples.
  void recall(int m) {
    char* state = (char*)job_.streams[m];
    const int R = net_.R;
    const float* history = (const float*)(state + net_.history);
    float* x = b_.x + std::int64_t(m) * R;
    std::memcpy(x, net_.b_front, R * 4);
    for (int j = 0; j < net_.front_kernel; ++j) {
      const int column = net_.n_classes ? int(history[j]) : 0;
      const float* w = net_.front + (std::int64_t(j) * (net_.n_classes ? net_.n_classes : 1) + column) * R;
      const vfloat gain = splat(net_.n_classes ? 1.f : history[j]);
      for (int v = 0; v < R; v += kLanes) store(x + v, fma(gain, load(w + v), load(x + v)));
    }
    if (net_.front_activation != kNone)
      for (int v = 0; v < R; v += kLanes) {
        const vfloat s = load(x + v);
        store(x + v, net_.front_activation == kRelu ? (s < 0.f ? vfloat{} : s) : tanh(s));
      }
    convert(x, b_.in + std::int64_t(m) * R, R);
  }

  // After them: draws the sample, and remembers it and every layer's input.
  void finish(int m, int t, float* y) {
    char* state = (char*)job_.streams[m];
    WaveNetStream& stream = *job_.streams[m];
    const int R = net_.R, taps = net_.kernel - 1;
    if (job_.parameters) std::memcpy(job_.parameters[m] + std::int64_t(t) * net_.n_out, y, net_.n_out * 4);
    float own[kMaxDraws];
    const float* draws = own;
    if (job_.noise) draws = job_.noise[m] + std::int64_t(t) * draws_of(net_);
    else philox_draws(net_, stream, own);
    const float drawn = net_.head == kSoftmax ? draw_class(y, net_.n_out, stream.temperature, draws[0])
                                              : draw_sample(net_, y, stream.temperature, draws);
    job_.out[m][t] = drawn;
    float* history = (float*)(state + net_.history);
    for (int j = net_.front_kernel - 1; j > 0; --j) history[j] = history[j - 1];
    history[0] = job_.forced ? job_.forced[m][t] : drawn;
    std::int32_t* positions = (std::int32_t*)(state + net_.positions);
    for (int l = 0; l < net_.n_layers; ++l) {
      const WaveNetLayer& layer = net_.layers[l];
      X* slot = (X*)(state + layer.ring) + std::int64_t(positions[l]) * R;
      std::memcpy((void*)slot, b_.in + (std::int64_t(l) * capacity_ + m) * R, R * sizeof(X));
      if (++positions[l] == taps * layer.dilation) positions[l] = 0;
    }
    ++stream.n_done;
  }

  const WaveNet& net_;
  const WaveNetJob& job_;
  const int thread_, n_threads_;
  Barrier& barrier_;
  const int capacity_;  // streams at the start; M_ of them still run
  int M_ = 0;
  Buffers<X> b_;
};

}  // namespace

// Bytes of workspace that a job of n_streams run by n_threads needs.
std::int64_t wavenet_workspace(const WaveNet& net, int n_streams, int n_threads) {
  const std::int64_t shared = net.precision == kBFloat16 ? Buffers<bf16>::carve(net, n_streams, nullptr, nullptr)
                                                         : Buffers<float>::carve(net, n_streams, nullptr, nullptr);
  const std::int64_t own = net.precision == kBFloat16 ? Buffers<bf16>::own_bytes(net, n_streams)
                                                      : Buffers<float>::own_bytes(net, n_streams);
  return shared + (n_threads - 1) * own + 64;
}

// One member of the team that runs a job; all members must run at the same time.
void wavenet_generate(const WaveNet& net, const WaveNetJob& job, int thread, int n_threads, Barrier& barrier) {
  if (net.precision == kInt8)
    Generator<q8>(net, job, thread, n_threads, barrier, job.workspace).run();
  else if (net.precision == kBFloat16)
    Generator<bf16>(net, job, thread, n_threads, barrier, job.workspace).run();
  else
    Generator<float>(net, job, thread, n_threads, barrier, job.workspace).run();
}

}  // namespace fastvoc::FASTVOC_ISA
