// WaveNet generation, CUDA: one persistent kernel for a chunk of samples of many streams. van den Oord et al. 2016
//
// A team of blocks carries up to 8 streams, the columns of its matrix products: a column more costs a tensor core nothing.
// On sm_90 and later a team is a cluster: each member keeps its share of the weights in its own shared memory, and after
// each phase puts its share of the results into everybody's (distributed shared memory). A sample takes layers + 3 phases.
// Elsewhere a team is one block. What of the weights does not fit into shared memory streams from L2, where it stays.
//
// What bounds it: the exchange between phases (a cluster barrier) where the weights are resident, L2 bandwidth where not.
// Sums run in an order that the plan fixes: a stream's samples do not depend on its company, chunks or pauses.
#include "cuda/mma.cuh"
#include "cuda/team.cuh"
#include "cuda/wavenet.cuh"
#include "cuda/wavenet_draw.cuh"

namespace fastvoc {
namespace {

struct WaveNetArguments {
  WaveNetLayout layout;
  DrawHead head;
  int n_classes, front_kernel, front_activation;
  float rho;
  const char* weights;                                     // (team, slab)
  const float *front, *b_front;                            // (front_kernel, n_classes or 1, R padded), (R padded)
  const float *b_res, *b_skip, *b_hidden, *b_out;          // padded to 16: (layers, R), (S), (D), (A)
  const int* dilations;
  const std::int64_t* rings;                               // bytes in a state, per layer
  std::int64_t history;                                    // bytes in a state
  char* const* states;
  const int* n_samples;                                    // per stream, of the whole call
  const float* cond;                                       // (chunk, B, cond_rows): projected, biases included
  const float *const *noise, *const *forced;               // per stream, or null
  float *const *out, *const *parameters;                   // parameters: or null
  char* boards;                                            // where shared memory has no room for them, else null
  std::int64_t resident;                                   // bytes of a member's weights that are kept in shared memory
  int B, start, count;                                     // samples start … start + count - 1 of each stream
};

// Sums of one tile of 16 rows and 8 columns, as mma.cuh lays them out.
template <class X>
struct TileSums {
  float c[4] = {};
  __device__ __forceinline__ void step(const X* tile, const X* in, int ld, int columns) {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const uint4 w = *reinterpret_cast<const uint4*>(tile + lane * 8);
    const FragmentA a{{w.x, w.y, w.z, w.w}};
    FragmentB b{{0, 0}};
    if (g < columns) {
      b.r[0] = *reinterpret_cast<const std::uint32_t*>(in + g * ld + 2 * q);
      b.r[1] = *reinterpret_cast<const std::uint32_t*>(in + g * ld + 2 * q + 8);
    }
    mma<X>(c, a, b);
  }
  __device__ __forceinline__ void finish() {}
};

template <>
struct TileSums<float> {  // each lane sums over its own 4 of 16 inputs, for both of its rows and all columns
  float c[4] = {}, s[2][8] = {};
  __device__ __forceinline__ void step(const float* tile, const float* in, int ld, int columns) {
    const int lane = threadIdx.x % 32, q = lane % 4;
    const Pack<float, 4> w0 = load<float, 4>(tile + lane * 8), w1 = load<float, 4>(tile + lane * 8 + 4);
#pragma unroll
    for (int m = 0; m < 8; ++m) {
      if (m >= columns) break;
      const Pack<float, 2> u = load<float, 2>(in + m * ld + 2 * q), v = load<float, 2>(in + m * ld + 2 * q + 8);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        s[r][m] = fmaf(w0.v[2 * r], u.v[0], fmaf(w0.v[2 * r + 1], u.v[1], s[r][m]));
        s[r][m] = fmaf(w1.v[2 * r], v.v[0], fmaf(w1.v[2 * r + 1], v.v[1], s[r][m]));
      }
    }
  }
  __device__ __forceinline__ void finish() {
    const int q = threadIdx.x % 4;
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int m = 0; m < 8; ++m) {
        float v = s[r][m];
        v += __shfl_xor_sync(~0u, v, 1);
        v += __shfl_xor_sync(~0u, v, 2);
        if (m / 2 == q) c[2 * r + m % 2] = v;
      }
  }
};

// Inputs of a tile: up to three vectors behind one another, each some tiles long.
template <class X>
struct Inputs {
  const X* in;
  int ld, tiles;
};

template <class X>
struct Generator {
  const WaveNetArguments& a;
  const WaveNetLayout& w;
  const Team team;
  const int thread, lane, warp, warps, first_stream, columns;  // columns: streams of this team
  char *board, *scratch, *resident;
  int round = 0;

  __device__ Generator(const WaveNetArguments& a, Team team)
      : a(a), w(a.layout), team(team), thread(threadIdx.x), lane(thread % 32), warp(thread / 32), warps(blockDim.x / 32),
        first_stream(int(blockIdx.x) / team.size * w.columns), columns(min(w.columns, a.B - first_stream)) {
    board = dynamic_shared();  // first, so that it stands at the same place in every member
    scratch = board + (a.boards ? 0 : w.board);
    resident = scratch + wavenet_scratch(w, blockDim.x, a.front_kernel);
    if (a.boards) board = a.boards + std::int64_t(blockIdx.x) * w.board;
  }

  // ---- what lies where ----
  __device__ X* past(int l) const { return (X*)(board + w.past) + l * w.columns * w.past_ld; }  // (columns, taps, x)
  __device__ X* x(int l) const { return (X*)(board + w.x) + (l % 2) * w.columns * w.x_ld; }
  __device__ X* z() const { return (X*)(board + w.z); }
  __device__ float* logits() const { return (float*)(board + w.out); }
  __device__ float* x_float() const { return (float*)(board + w.x_float); }  // (own tiles, lane, 4)
  __device__ float* partial(int buffer) const { return (float*)scratch + buffer * warps * 128; }
  __device__ char* stage() const { return scratch + warps * 1024 + warp * 512; }
  __device__ int* slots() const { return (int*)(scratch + warps * 1536); }        // (layers, columns): of the newest sample
  __device__ float* history() const { return (float*)(slots() + w.layers * w.columns); }  // (columns, front_kernel)
  __device__ char* state(int m) const { return a.states[first_stream + m]; }
  __device__ int n_samples(int m) const { return a.n_samples[first_stream + m]; }
  __device__ const X* weights(std::int64_t at, std::int64_t bytes) const {
    return (const X*)(at + bytes <= a.resident ? resident + at : a.weights + team.rank * w.slab + at);
  }

  // ---- products ----

  // n_own tiles of this member, their inputs in up to three pieces; finish(tile, lane's four sums) in one warp per tile.
  // Few tiles: several warps share one, each summing over a part of its columns. most: tiles of the busiest member.
  template <class Tile, class Finish>
  __device__ void product(int n_own, int most, Tile tile_of, Finish finish) {
    [[maybe_unused]] constexpr int kUnroll = sizeof(X) == 4 ? 2 : 4;  // so many tiles are fetched at once
    const int split = max(1, warps / max(most, 1)), tiles = warps / split;
    for (int first = 0; first < n_own; first += tiles) {
      float* sums = partial(round++ % 2);
      const int mine = first + warp / split, part = warp % split;
      if (mine < n_own && warp < tiles * split) {
        Inputs<X> in[3];
        int total = 0;
        const X* tile = tile_of(mine, in, total);
        const int begin = total * part / split, end = total * (part + 1) / split;
        TileSums<X> sum;
        int at = 0;
#pragma unroll
        for (int i = 0; i < 3; ++i) {
          const int from = max(begin, at), to = min(end, at + in[i].tiles);
#pragma unroll(kUnroll)
          for (int k = from; k < to; ++k) sum.step(tile + k * kTileValues, in[i].in + (k - at) * 16, in[i].ld, columns);
          at += in[i].tiles;
        }
        sum.finish();
        store<float, 4>(sums + warp * 128 + lane * 4, Pack<float, 4>{{sum.c[0], sum.c[1], sum.c[2], sum.c[3]}});
      }
      __syncthreads();
      if (warp < tiles && first + warp < n_own) {
        float c[4] = {};
        for (int p = 0; p < split; ++p) {
          const Pack<float, 4> v = load<float, 4>(sums + (warp * split + p) * 128 + lane * 4);
#pragma unroll
          for (int i = 0; i < 4; ++i) c[i] += v.v[i];
        }
        finish(first + warp, c);
      }
    }
  }

  // `rows` values per stream from the warp's stage to everybody's board. to: of the first stream, at the tile's first row
  template <class E>
  __device__ void share(E* to, int ld, int rows) {
    __syncwarp();
    const int pieces = rows * int(sizeof(E)) / 16, all = columns * pieces * team.size;
    for (int i = lane; i < all; i += 32) {
      const int member = i % team.size, m = i / team.size / pieces, piece = i / team.size % pieces;
      const uint4 v = *reinterpret_cast<const uint4*>(stage() + m * 16 * sizeof(E) + piece * 16);
      *reinterpret_cast<uint4*>((char*)team.at(to + m * ld, member) + piece * 16) = v;
    }
    __syncwarp();
  }

  // Sums of a tile to the stage: of 16 rows, through f(row in tile, stream, sum)
  template <class E, class F>
  __device__ void to_stage(const float (&c)[4], F f) {
    const int g = lane / 4, q = lane % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = g + i / 2 * 8, m = 2 * q + i % 2;
      if (m < columns) ((E*)stage())[m * 16 + row] = E(f(row, m, c[i]));
    }
  }

  // ---- a sample ----

  __device__ void layer(int l, int t) {
    const int gates = w.own(w.gate_tiles, team.rank), residuals = l ? w.own(w.x_tiles, team.rank, w.gate_tiles) : 0;
    const int columns_in = w.gate_columns(l);
    const std::int64_t at = l ? w.layer1 + std::int64_t(l - 1) * w.layer : w.layer0, tile = kTileValues * sizeof(X);
    const std::int64_t at_residuals = at + tile * w.most(w.gate_tiles) * columns_in;
    const X *x_before = x(l ? l - 1 : 0), *z_before = z() + (l ? l - 1 : 0) * w.z_tiles * 16;
    const int z_tiles = l ? w.z_tiles : 0;
    product(gates + residuals, w.most(w.gate_tiles + (l ? w.x_tiles : 0)),
        [&](int i, Inputs<X>* in, int& total) {
          in[2] = {z_before, w.z_ld, z_tiles};
          if (i < gates) {
            in[0] = {past(l), w.past_ld, w.taps * w.x_tiles}, in[1] = {x_before, w.x_ld, w.x_tiles};
            total = columns_in;
            return weights(at + i * columns_in * tile, columns_in * tile);
          }
          in[0] = in[1] = {z_before, 0, 0};
          total = z_tiles;
          return weights(at_residuals + (i - gates) * z_tiles * tile, z_tiles * tile);
        },
        [&](int i, const float (&c)[4]) {
          if (i < gates) gate(l, i * team.size + team.rank, t, c);
          else residual(l, i - gates, c);
        });
  }

  // z of 8 channels: lane (g, q) has the tanh and the sigmoid row g of two streams
  __device__ void gate(int l, int tile, int t, const float (&c)[4]) {
    const int g = lane / 4, q = lane % 4;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int m = 2 * q + e;
      if (m >= columns || t >= n_samples(m)) continue;  // nothing is known of the conditioning behind the end
      const float* cond =
          a.cond + (std::int64_t(t - a.start) * a.B + first_stream + m) * w.cond_rows() + (l * w.gate_tiles + tile) * 16 + g;
      ((X*)stage())[m * 16 + g] = X(tanhf(c[e] + cond[0]) * sigmoid(c[2 + e] + cond[8]));
    }
    share(z() + l * w.z_tiles * 16 + tile * 8, w.z_ld, 8);
  }

  __device__ void residual(int l, int own, const float (&c)[4]) {
    const int tile = own * team.size + (team.rank + team.size - w.gate_tiles % team.size) % team.size;
    float* kept = x_float() + own * 128 + lane * 4;
    Pack<float, 4> v = load<float, 4>(kept);
    const float* bias = a.b_res + (l - 1) * w.x_tiles * 16 + tile * 16;
#pragma unroll
    for (int i = 0; i < 4; ++i) v.v[i] = (v.v[i] + (c[i] + bias[lane / 4 + i / 2 * 8])) * a.rho;
    store<float, 4>(kept, v);
    to_stage<X>(v.v, [](int, int, float s) { return s; });
    share(x(l) + tile * 16, w.x_ld, 16);
  }

  // Rows of the head: relu(W·in + b) for the next product, or the logits as floats.
  template <bool kRelu, class E>
  __device__ void head(std::int64_t at, int tiles, const X* in, int ld, int columns_in, const float* bias, E* to, int to_ld) {
    const std::int64_t tile = kTileValues * sizeof(X);
    product(w.own(tiles, team.rank), w.most(tiles),
        [&](int i, Inputs<X>* pieces, int& total) {
          pieces[0] = {in, ld, columns_in}, pieces[1] = pieces[2] = {in, 0, 0};
          total = columns_in;
          return weights(at + i * columns_in * tile, columns_in * tile);
        },
        [&](int i, const float (&c)[4]) {
          const int row0 = (i * team.size + team.rank) * 16;
          to_stage<E>(c, [&](int row, int, float s) {
            const float y = s + bias[row0 + row];
            return kRelu && y < 0.f ? 0.f : y;
          });
          share(to + row0, to_ld, 16);
        });
  }

  // x_0, by every member for itself: it costs less than an exchange.
  __device__ void front() {
    const int R = w.x_tiles * 16;
    for (int i = thread; i < R * columns; i += blockDim.x) {
      const int m = i / R, r = i % R;
      float v = a.b_front[r];
      for (int j = 0; j < a.front_kernel; ++j) {
        const float y = history()[m * a.front_kernel + j];
        if (a.n_classes) v += a.front[(std::int64_t(j) * a.n_classes + max(0, min(a.n_classes - 1, int(y)))) * R + r];
        else v = fmaf(y, a.front[j * R + r], v);
      }
      if (a.front_activation == kRelu) v = v < 0.f ? 0.f : v;
      if (a.front_activation == kTanh) v = tanhf(v);
      x(0)[m * w.x_ld + r] = X(v);
      const int j = w.gate_tiles + r / 16;  // the tile's number in a layer's phase
      if (j % team.size == team.rank) {
        const int own = j / team.size - w.own(w.gate_tiles, team.rank);
        x_float()[own * 128 + (r % 8 * 4 + m / 2) * 4 + r % 16 / 8 * 2 + m % 2] = v;
      }
    }
  }

  // The taps that layer l will need for the next sample. newest: x_l of this sample lies on the board, not yet in its ring.
  __device__ void recall(int l, bool newest) {
    const int dilation = a.dilations[l], size = w.taps * dilation, per_tap = w.x_tiles * 16 * int(sizeof(X)) / 16;
    for (int i = thread; i < w.taps * columns * per_tap; i += blockDim.x) {
      const int piece = i % per_tap, m = i / per_tap % columns, j = i / per_tap / columns, back = (w.taps - j) * dilation;
      char* to = (char*)(past(l) + m * w.past_ld + j * w.x_tiles * 16) + piece * 16;
      if (newest && back == 1) {
        *(uint4*)to = *(const uint4*)((const char*)(x(l) + m * w.x_ld) + piece * 16);
        continue;
      }
      int slot = slots()[l * w.columns + m] + 1 - back;
      if (slot < 0) slot += size;
      copy16(to, state(m) + a.rings[l] + (std::int64_t(slot) * per_tap + piece) * 16, !a.boards);
    }
  }

  // After layer l's phase: its input goes into the ring, by one member, and the next sample's taps come.
  __device__ void remember(int l, int t) {
    if (!w.taps) return;
    if (l % team.size == team.rank) {
      const int per_tap = w.x_tiles * 16 * int(sizeof(X)) / 16;
      for (int i = thread; i < columns * per_tap; i += blockDim.x) {
        const int piece = i % per_tap, m = i / per_tap;
        if (t >= n_samples(m)) continue;
        char* to = state(m) + a.rings[l] + (std::int64_t(slots()[l * w.columns + m]) * per_tap + piece) * 16;
        *(uint4*)to = *(const uint4*)((const char*)(x(l) + m * w.x_ld) + piece * 16);
      }
    }
    recall(l, true);
  }

  // Draws, by every member for itself; the first one writes.
  __device__ void draw(int t) {
    for (int m = warp; m < columns; m += warps) {
      if (t >= n_samples(m)) continue;
      const WaveNetStream& s = *(const WaveNetStream*)state(m);
      const int stream = first_stream + m;
      const float* y = logits() + m * w.out_ld;
      Noise noise{nullptr, s.seed, std::uint64_t(s.n_done) + (t - a.start), s.stream};
      if (a.noise) noise.given = a.noise[stream] + std::int64_t(t) * draws_of(a.head);
      const float drawn = a.head.head == kSoftmax ? float(draw_class(y, a.head.n_out, s.temperature, noise.at(a.head, 0)))
                                                  : draw_sample(a.head, y, s.temperature, noise);
      if (lane == 0) {
        float* h = history() + m * a.front_kernel;
        for (int j = a.front_kernel - 1; j > 0; --j) h[j] = h[j - 1];
        h[0] = a.forced ? a.forced[stream][t] : drawn;
        if (team.rank == 0) a.out[stream][t] = drawn;
      }
      if (a.parameters && team.rank == 0)
        for (int i = lane; i < a.head.n_out; i += 32) a.parameters[stream][std::int64_t(t) * a.head.n_out + i] = y[i];
    }
  }

  __device__ void advance_slots() {
    for (int i = thread; i < w.layers * columns; i += blockDim.x) {
      const int l = i / columns, m = i % columns;
      int& slot = slots()[l * w.columns + m];
      if (w.taps && ++slot == w.taps * a.dilations[l]) slot = 0;
    }
  }

  __device__ void begin() {
    for (std::int64_t i = thread * 16; i < w.board; i += blockDim.x * 16) *(uint4*)(board + i) = make_uint4(0, 0, 0, 0);
    const char* from = a.weights + team.rank * w.slab;
    for (std::int64_t i = std::int64_t(thread) * 16; i < a.resident; i += blockDim.x * 16) copy16(resident + i, from + i, true);
    for (int i = thread; i < w.layers * columns; i += blockDim.x) {
      const int l = i / columns, m = i % columns, size = w.taps * a.dilations[l];
      // of the newest sample, the one before this call's first
      slots()[l * w.columns + m] = size ? int((((const WaveNetStream*)state(m))->n_done + size - 1) % size) : 0;
    }
    for (int i = thread; i < columns * a.front_kernel; i += blockDim.x)
      history()[i] = ((const float*)(state(i / a.front_kernel) + a.history))[i % a.front_kernel];
    __syncthreads();
    for (int l = 0; l < w.layers; ++l) recall(l, false);
    end_copies();
    team.sync();  // no member may write into another's board before that is cleared
  }

  __device__ void end(int steps) {
    for (int m = 0; m < columns; ++m) {
      if (team.rank || n_samples(m) <= a.start) continue;
      for (int i = thread; i < a.front_kernel; i += blockDim.x)
        ((float*)(state(m) + a.history))[i] = history()[m * a.front_kernel + i];
      if (thread == 0) ((WaveNetStream*)state(m))->n_done += min(n_samples(m) - a.start, steps);
    }
  }

  __device__ void run() {
    int longest = 0;
    for (int m = 0; m < columns; ++m) longest = max(longest, n_samples(m));
    const int steps = min(a.count, longest - a.start);
    if (steps <= 0) return;  // the whole team leaves
    begin();
    for (int t = a.start; t < a.start + steps; ++t) {
      front();
      advance_slots();
      copies_done<0>();
      __syncthreads();
      for (int l = 0; l < w.layers; ++l) {
        layer(l, t);
        if (l) remember(l - 1, t);
        team.sync();
      }
      head<true>(w.head_skip, w.skip_tiles, z(), w.z_ld, w.layers * w.z_tiles, a.b_skip, (X*)(board + w.skip), w.skip_ld);
      remember(w.layers - 1, t);
      end_copies();
      team.sync();
      head<true>(w.head_hidden, w.hidden_tiles, (const X*)(board + w.skip), w.skip_ld, w.skip_tiles, a.b_hidden,
              (X*)(board + w.hidden), w.hidden_ld);
      team.sync();
      head<false>(w.head_out, w.out_tiles, (const X*)(board + w.hidden), w.hidden_ld, w.hidden_tiles, a.b_out, logits(),
                  w.out_ld);
      team.sync();
      draw(t);
      __syncthreads();
    }
    copies_done<0>();
    team.sync();  // others may still draw from the state, or read this member's board
    end(steps);
  }
};

template <class X>
constexpr int kMostThreads = sizeof(X) == 4 ? 256 : 512;  // float sums take more registers

template <class X>
__global__ void __launch_bounds__(kMostThreads<X>, 1) wavenet_generate_kernel(const __grid_constant__ WaveNetArguments a) {
  Generator<X>(a, Team::mine()).run();
}

const Warmup warm([] {
  touch(wavenet_generate_kernel<float>, wavenet_generate_kernel<__half>, wavenet_generate_kernel<__nv_bfloat16>);
});

template <class F>
auto with_kernel(std::int64_t dtype, F&& f) {
  dispatch_dtype(dtype, [&](auto zero) { f(wavenet_generate_kernel<decltype(zero)>); });
}

int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "wavenet_generate");
  check(cudaDeviceGetAttribute(&value, which, device), "wavenet_generate");
  return value;
}

// How a call is laid out: streams per team, whether the boards lie in shared memory, and what of the weights does.
struct Placement {
  int columns = 1;
  bool board_shared = false;
  std::int64_t resident = 0, shared = 0;
};

Placement place(const WaveNetSizes& s, int columns) {
  const std::int64_t limit = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  Placement p;
  for (p.columns = columns; p.columns > 1; p.columns = (p.columns + 1) / 2) {
    const WaveNetLayout w = wavenet_layout(s, p.columns);
    if (wavenet_scratch(w, int(s.threads), int(s.front_kernel)) + w.board <= limit) break;
  }
  const WaveNetLayout w = wavenet_layout(s, p.columns);
  const std::int64_t scratch = wavenet_scratch(w, int(s.threads), int(s.front_kernel));
  p.board_shared = scratch + w.board <= limit;
  const std::int64_t used = scratch + (p.board_shared ? w.board : 0);
  if (used > limit) throw std::length_error("wavenet_generate: too many layers for this device");
  p.resident = std::min(w.slab, (limit - used) / 128 * 128);
  p.shared = used + p.resident;
  return p;
}

const WaveNetSizes& sizes_at(std::int64_t address) { return *reinterpret_cast<const WaveNetSizes*>(address); }

}  // namespace
}  // namespace fastvoc

using namespace fastvoc;

// Of the n team sizes at `candidates`, the first whose shared memory holds all weights and the boards of 8 streams; else
// the largest that this device can run; 1 where it has no clusters.
FASTVOC_API std::int64_t fastvoc_wavenet_team(std::int64_t sizes, std::int64_t candidates, std::int64_t n) {
  std::int64_t team = 1;
  const int code = guarded([&] {
    WaveNetSizes s = sizes_at(sizes);
    if (attribute(cudaDevAttrComputeCapabilityMajor) < 9) return;
    for (int i = 0; i < n; ++i) {
      s.team = reinterpret_cast<const std::int64_t*>(candidates)[i];
      const Placement p = place(s, 8);
      if (!p.board_shared) continue;  // members must reach one another's
      int clusters = 0;
      with_kernel(s.dtype, [&](auto kernel) {
        cudaLaunchAttribute attributes[1];
        attributes[0].id = cudaLaunchAttributeClusterDimension;
        attributes[0].val.clusterDim = {unsigned(s.team), 1, 1};
        cudaLaunchConfig_t config{};
        config.gridDim = dim3(unsigned(s.team)), config.blockDim = dim3(unsigned(s.threads));
        config.dynamicSmemBytes = p.shared, config.attrs = attributes, config.numAttrs = 1;
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(p.shared)), "wavenet_generate");
        if (s.team > 8) check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "wavenet_generate");
        if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) != cudaSuccess) clusters = 0, cudaGetLastError();
      });
      if (!clusters) continue;
      team = s.team;
      if (p.columns == 8 && p.resident == wavenet_layout(s, 8).slab) return;
    }
  });
  return code ? -1 : team;
}

FASTVOC_API std::int64_t fastvoc_wavenet_slab(std::int64_t sizes) { return wavenet_layout(sizes_at(sizes), 1).slab; }
// Where the weights of layer 0, layer 1, the head's three products lie in a slab, and how far a layer is from the next
FASTVOC_API std::int64_t fastvoc_wavenet_offset(std::int64_t sizes, std::int64_t which) {
  const WaveNetLayout w = wavenet_layout(sizes_at(sizes), 1);
  const std::int64_t offsets[] = {w.layer0, w.layer1, w.head_skip, w.head_hidden, w.head_out, w.layer};
  return offsets[which];
}

// Bytes of workspace that a call with B streams needs for boards: 0 where they lie in shared memory.
FASTVOC_API std::int64_t fastvoc_wavenet_boards(std::int64_t sizes, std::int64_t B, std::int64_t most_columns) {
  std::int64_t bytes = -1;
  guarded([&] {
    const WaveNetSizes& s = sizes_at(sizes);
    const Placement p = place(s, int(most_columns));
    bytes = p.board_shared ? 0 : ceil_div(B, p.columns) * s.team * wavenet_layout(s, p.columns).board;
  });
  return bytes;
}

// Generates samples start … start + count - 1 of B streams; see WaveNetArguments. Pointers to pointers lie on the device.
FASTVOC_API int fastvoc_wavenet_generate(std::int64_t sizes, double rho, const void* weights, const float* front,
                                         const float* b_front, const float* b_res, const float* b_skip,
                                         const float* b_hidden, const float* b_out, const int* dilations,
                                         const std::int64_t* rings, std::int64_t history, char* const* states,
                                         const int* n_samples, const float* cond, const float* const* noise,
                                         const float* const* forced, float* const* out, float* const* parameters,
                                         char* boards, std::int64_t B, std::int64_t start, std::int64_t count,
                                         std::int64_t most_columns, void* stream) {
  return guarded([&] {
    if (B == 0 || count == 0) return;
    const WaveNetSizes& s = sizes_at(sizes);
    const Placement p = place(s, int(most_columns));
    WaveNetArguments a{};
    a.layout = wavenet_layout(s, p.columns);
    a.head = {int(s.head), int(s.n_mix), int(s.out)};
    a.n_classes = int(s.n_classes), a.front_kernel = int(s.front_kernel);
    a.front_activation = int(s.front_activation), a.rho = float(rho), a.weights = static_cast<const char*>(weights);
    a.front = front, a.b_front = b_front, a.b_res = b_res, a.b_skip = b_skip, a.b_hidden = b_hidden, a.b_out = b_out;
    a.dilations = dilations, a.rings = rings, a.history = history, a.states = states, a.n_samples = n_samples;
    a.cond = cond, a.noise = noise, a.forced = forced, a.out = out, a.parameters = parameters;
    a.boards = p.board_shared ? nullptr : boards, a.resident = p.resident;
    a.B = int(B), a.start = int(start), a.count = int(count);
    const Grid grid{dim3(unsigned(ceil_div(B, p.columns) * s.team)), int(s.threads), std::size_t(p.shared), int(s.team)};
    with_kernel(s.dtype, [&](auto kernel) { launch("wavenet_generate", grid, cudaStream_t(stream), kernel, a); });
  });
}
