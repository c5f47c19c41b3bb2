// A stack of gated residual layers, CUDA: one launch a layer, everything between two layers in one kernel. Time-major.
//
//   a = W_in·[taps of u | cond] + b        64 samples of one item and 128 gate rows at a time, sums in registers
//   z = tanh(a[:H])·σ(a[H:])               still in registers: a lane holds the tanh and the sigmoid row
//   r, s = W_out·z + b_out                 z lies in shared memory in between
//   x ← (x + r)·ρ;  skip ← skip + s        and u = x + step of the next layer
//
// Both products run on the tensor cores (mma.cuh; float: fused multiply-adds) over rows of 64 bytes, which arrive in
// shared memory three at a time, asynchronously. A dilated tap is a row pointer: no im2col. Weights are packed in the
// order in which they are read; they come from L2. Bound by the products for 256 channels and more, by L2 below.
//
// Nothing is allocated and nothing waits for the host: a run may be captured in a CUDA graph. Sums run in an order that
// depends on the sizes of the network alone: an item's result is the same in any batch.
#include "cuda/mma.cuh"
#include "cuda/team.cuh"

namespace fastvoc {
namespace {

constexpr int kThreads = 256, kSamples = 64, kRows = 128, kStages = 3;  // 8 warps of 32 samples × 32 rows: 2 × 4
constexpr int kPitch = kRowBytes + 16;
constexpr int kStageBytes = (kSamples + kRows) * kPitch;

struct StackSizes {  // int64: filled by Python, in this order
  std::int64_t layers, kernel, residual, half_gate, skip, cond, causal, step_in_residual, dtype;
};

// Sizes padded to what the products take: channels as inputs to rows of 64 bytes, outputs to passes of 128.
struct StackLayout {
  int R, H, C;                     // channels as inputs
  int gates, outs;                 // passes
  int residual_rows;               // of W_out: the skip rows begin there, at a multiple of 8
  std::int64_t in_bytes, out_bytes;  // of a layer's packed W_in and W_out

  explicit StackLayout(const StackSizes& s) {
    const std::int64_t width = kRowBytes / (s.dtype == 0 ? 4 : 2), e = s.dtype == 0 ? 4 : 2;
    R = int(round_up(s.residual, width)), H = int(round_up(s.half_gate, width)), C = int(round_up(s.cond, width));
    gates = int(ceil_div(ceil_div(s.half_gate, 8) * 16, kRows));
    residual_rows = int(round_up(s.residual, 8));
    outs = int(ceil_div(residual_rows + s.skip, kRows));
    in_bytes = e * gates * kRows * (s.kernel * R + C), out_bytes = e * outs * kRows * H;
  }
  std::int64_t z_bytes(std::int64_t e) const { return std::int64_t(kSamples) * (e * H + 16); }
};

struct LayerArguments {
  const char *u, *x, *cond;        // (B, T, R), (B, T, R), (B, T, C) in the compute type, padded; x may be u, cond null
  char *u_next, *x_next;           // or null
  char* z;                         // (B, T, H) where shared memory has no room for a tile of it, else null
  float *skip, *last_x;            // (B, T, S) or null; (B, T, R unpadded), of a last layer without skips, or null
  const char *w_in, *w_out;
  const float *b_in, *b_out;       // padded to the passes
  const float* step;               // the next layer's (B, R), items step_stride apart; or null
  std::int64_t step_stride, T;
  int tiles, taps, dilation, left, R, H, C, n_residual, n_skip, residual_rows, gates, outs;
  float rho;
  bool first;                      // skip is written, not added to
};

template <class X>
__device__ __forceinline__ void put2(X* to, float a, float b) { store<X, 2>(to, Pack<X, 2>{{X(a), X(b)}}); }

// One pass: sums (warp's 32 × 32) = A·Bᵀ over n chunks of 64 bytes. load_a(chunk, to): copies rows of A to shared memory;
// with a_ready, A stands there already. b: (chunks, kRows, 64 bytes).
template <class X, class LoadA>
__device__ __forceinline__ void product(float (&c)[2][4][4], int chunks, const char* b, char* stages, const char* a_ready,
                                        int a_pitch, LoadA load_a) {
  const int thread = threadIdx.x, warp = thread / 32, row0 = warp / 4 * 32, column0 = warp % 4 * 32;
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) c[m][n][i] = 0.f;
  const auto fetch = [&](int chunk) {
    if (chunk < chunks) {
      char* stage = stages + chunk % kStages * kStageBytes;
      if (!a_ready) load_a(chunk, stage);
#pragma unroll
      for (int i = thread; i < kRows * 4; i += kThreads)
        copy16_or_zero(stage + (kSamples + i / 4) * kPitch + i % 4 * 16, b + (std::int64_t(chunk) * kRows * 4 + i) * 16, true);
    }
    end_copies();
  };
  __syncthreads();  // the stages are free, and z is whole
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) fetch(i);
  for (int chunk = 0; chunk < chunks; ++chunk) {
    copies_done<kStages - 2>();
    __syncthreads();
    fetch(chunk + kStages - 1);
    const char* stage = stages + chunk % kStages * kStageBytes;
    const char* a = a_ready ? a_ready + row0 * a_pitch + chunk * kRowBytes : stage + row0 * kPitch;
    multiply_rows<X>(c, a, a_ready ? a_pitch : kPitch, stage + (kSamples + column0) * kPitch, kPitch);
  }
}

template <class X>
__global__ void __launch_bounds__(kThreads, 1) gated_residual_layer_kernel(const __grid_constant__ LayerArguments a) {
  constexpr int kWidth = kRowBytes / int(sizeof(X)), kE = int(sizeof(X));
  const std::int64_t item = blockIdx.x / a.tiles, t0 = std::int64_t(blockIdx.x % a.tiles) * kSamples, row0 = item * a.T;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, g = lane / 4, q = lane % 4;
  char *stages = dynamic_shared(), *z_tile = stages + kStages * kStageBytes;
  const int z_pitch = a.H * kE + 16;
  float c[2][4][4];

  // Both of a lane's neighbouring columns of every tile, per sample inside the signal: f(sample in tile, column in pass, sums)
  const auto for_pairs = [&](auto f) {
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp / 4 * 32 + m * 16 + half * 8 + g;
        if (t0 + row < a.T) f(row, m, half);
      }
  };

  const int per_tap = a.R / kWidth, chunks = a.taps * per_tap + (a.cond ? a.C / kWidth : 0);
  const int packed_chunks = a.taps * per_tap + a.C / kWidth;
  for (int pass = 0; pass < a.gates; ++pass) {
    product<X>(c, chunks, a.w_in + std::int64_t(pass) * packed_chunks * kRows * kRowBytes, stages, nullptr, 0,
        [&](int chunk, char* stage) {
          const int row = thread / 4, piece = thread % 4;  // 64 rows of 4 pieces: one a thread
          const bool is_cond = chunk >= a.taps * per_tap;
          const int tap = is_cond ? 0 : chunk / per_tap;
          const int channel = (is_cond ? chunk - a.taps * per_tap : chunk - tap * per_tap) * kWidth;
          const std::int64_t t = t0 + row + (is_cond ? 0 : std::int64_t(tap) * a.dilation - a.left);
          const bool inside = t >= 0 && t < a.T;
          const char* from = is_cond ? a.cond : a.u;
          const std::int64_t at = ((row0 + (inside ? t : 0)) * (is_cond ? a.C : a.R) + channel) * kE + piece * 16;
          copy16_or_zero(stage + row * kPitch + piece * 16, from + at, inside);
        });
    // Column tiles 0 and 1, and 2 and 3, are tanh and sigmoid of the same channels
    const float* bias = a.b_in + pass * kRows + warp % 4 * 32;
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const int h = pass * (kRows / 2) + warp % 4 * 16 + pair * 8 + 2 * q;
      if (h >= a.H) continue;  // rows that only fill the pass
      const float *tanh_bias = bias + pair * 16 + 2 * q, *sigmoid_bias = tanh_bias + 8;
      for_pairs([&](int row, int m, int half) {
        float z[2];
#pragma unroll
        for (int e = 0; e < 2; ++e)
          z[e] = tanhf(c[m][2 * pair][2 * half + e] + tanh_bias[e]) * sigmoid(c[m][2 * pair + 1][2 * half + e] + sigmoid_bias[e]);
        char* to = a.z ? a.z + ((row0 + t0 + row) * a.H + h) * kE : z_tile + row * z_pitch + h * kE;
        put2(reinterpret_cast<X*>(to), z[0], z[1]);
      });
    }
  }
  // Channels that only fill up z: of the passes there are enough for all, and their weights and biases are 0, so z is 0

  for (int pass = 0; pass < a.outs; ++pass) {
    product<X>(c, a.H / kWidth, a.w_out + std::int64_t(pass) * a.H * kE * kRows, stages, a.z ? nullptr : z_tile, z_pitch,
        [&](int chunk, char* stage) {
          const int row = thread / 4, piece = thread % 4;
          const bool inside = t0 + row < a.T;
          const std::int64_t at = ((row0 + t0 + (inside ? row : 0)) * a.H + chunk * kWidth) * kE + piece * 16;
          copy16_or_zero(stage + row * kPitch + piece * 16, a.z + at, inside);
        });
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int column = pass * kRows + warp % 4 * 32 + n * 8 + 2 * q;
      const float *bias = a.b_out + column;
      if (column < a.residual_rows) {
        if (!a.u_next && !a.last_x) continue;
        for_pairs([&](int row, int m, int half) {
          const std::int64_t sample = row0 + t0 + row, at = sample * a.R + column;
          const Pack<X, 2> x = load<X, 2>(reinterpret_cast<const X*>(a.x) + at);
          float v[2];
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            v[e] = (float(x.v[e]) + c[m][n][2 * half + e] + bias[e]) * a.rho;
            if (a.last_x && column + e < a.n_residual) a.last_x[sample * a.n_residual + column + e] = v[e];
          }
          if (a.x_next) put2(reinterpret_cast<X*>(a.x_next) + at, v[0], v[1]);
          if (!a.u_next) return;
#pragma unroll
          for (int e = 0; e < 2; ++e)
            if (a.step && column + e < a.n_residual) v[e] += a.step[item * a.step_stride + column + e];
          put2(reinterpret_cast<X*>(a.u_next) + at, v[0], v[1]);
        });
      } else if (a.skip) {
        const int s = column - a.residual_rows;
        for_pairs([&](int row, int m, int half) {
          float* to = a.skip + (row0 + t0 + row) * a.n_skip + s;
#pragma unroll
          for (int e = 0; e < 2; ++e)
            if (s + e < a.n_skip) to[e] = (a.first ? 0.f : to[e]) + (c[m][n][2 * half + e] + bias[e]);
        });
      }
    }
  }
}

// (n_rows, n) float -> (n_rows, width) in the compute type, zeros behind; with `step` added (items of T rows) into `added`.
// A warp a row.
template <class X>
__global__ void __launch_bounds__(kThreads)
pad_kernel(const float* from, X* plain, X* added, const float* step, std::int64_t step_stride, std::int64_t T,
           std::int64_t n_rows, int n, int width) {
  constexpr int kRowsPerBlock = kThreads / 32;
  const int lane = threadIdx.x % 32;
  const std::int64_t stride = std::int64_t(gridDim.x) * kRowsPerBlock;
  for (std::int64_t row = std::int64_t(blockIdx.x) * kRowsPerBlock + threadIdx.x / 32; row < n_rows; row += stride) {
    const float* in = from + row * n;
    const float* e = added ? step + row / T * step_stride : nullptr;
    for (int c = 2 * lane; c < width; c += 64) {
      const float u = c < n ? in[c] : 0.f, v = c + 1 < n ? in[c + 1] : 0.f;
      if (plain) put2(plain + row * width + c, u, v);
      if (added) put2(added + row * width + c, c < n ? u + e[c] : 0.f, c + 1 < n ? v + e[c + 1] : 0.f);
    }
  }
}

template <class X>
void touch_all() {
  touch(gated_residual_layer_kernel<X>, pad_kernel<X>);
}
const Warmup warm([] { touch_all<float>(), touch_all<__half>(), touch_all<__nv_bfloat16>(); });

// What lies where in the workspace: u and x twice, cond, and z where shared memory has no room for a tile.
struct Workspace {
  std::int64_t u[2], x[2], cond, z, bytes = 0;
  bool own_x, z_shared;

  Workspace(const StackSizes& s, std::int64_t B, std::int64_t T, bool has_step) {
    const StackLayout w(s);
    const std::int64_t e = s.dtype == 0 ? 4 : 2, n = B * T * e;
    int device = 0, limit = 0;
    check(cudaGetDevice(&device), "gated_residual_stack");
    check(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "gated_residual_stack");
    z_shared = kStages * kStageBytes + w.z_bytes(e) <= limit;
    own_x = has_step && !s.step_in_residual;
    const auto take = [&](std::int64_t size) {
      const std::int64_t at = bytes;
      bytes += round_up(size, 256);
      return at;
    };
    for (int i = 0; i < 2; ++i) u[i] = take(n * w.R), x[i] = own_x ? take(n * w.R) : u[i];
    cond = take(n * w.C), z = take(z_shared ? 0 : n * w.H);
  }
};

const StackSizes& sizes_at(std::int64_t address) { return *reinterpret_cast<const StackSizes*>(address); }

}  // namespace
}  // namespace fastvoc

using namespace fastvoc;

FASTVOC_API std::int64_t fastvoc_gated_residual_stack_workspace(std::int64_t sizes, std::int64_t B, std::int64_t T,
                                                                std::int64_t has_step) {
  std::int64_t bytes = -1;
  guarded([&] { bytes = Workspace(sizes_at(sizes), B, T, has_step).bytes; });
  return bytes;
}

// Layers first … last - 1. x (B, T, R), needed for first = 0; cond (B, T, C), step (B, layers, R) or null; out: the sum of
// the skips (B, T, S), or without skips the last x. dilations lie on the host. The workspace carries x between calls.
FASTVOC_API int fastvoc_gated_residual_stack(std::int64_t sizes, std::int64_t dilations, double rho, const void* weights,
                                             const float* biases, const float* x, const float* cond, const float* step,
                                             float* out, void* workspace, std::int64_t B, std::int64_t T, std::int64_t first,
                                             std::int64_t last, void* stream) {
  return guarded([&] {
    if (B == 0 || T == 0) return;
    const StackSizes& s = sizes_at(sizes);
    const StackLayout w(s);
    const Workspace at(s, B, T, step != nullptr);
    const std::int64_t e = s.dtype == 0 ? 4 : 2, tiles = ceil_div(T, kSamples), step_stride = s.layers * s.residual;
    if (B * tiles >= std::int64_t(1) << 31) throw std::length_error("gated_residual_stack: more than 2^31 tiles");
    char* base = static_cast<char*>(workspace);
    dispatch_dtype(s.dtype, [&](auto zero) {
      using X = decltype(zero);
      const auto pad = [&](const float* from, std::int64_t plain, bool keep, std::int64_t added, const float* with, int n, int width) {
        launch("gated_residual_stack", {dim3(blocks_for(ceil_div(B * T, kThreads / 32))), kThreads}, cudaStream_t(stream),
               pad_kernel<X>, from, keep ? (X*)(base + plain) : nullptr, with ? (X*)(base + added) : nullptr, with, step_stride, T,
               B * T, n, width);
      };
      if (first == 0) pad(x, at.x[0], at.own_x || !step, at.u[0], step, int(s.residual), w.R);
      if (first == 0 && w.residual_rows < w.R)  // channels that no layer writes and every product reads
        for (std::int64_t to : {at.u[1], at.x[1]}) check(cudaMemsetAsync(base + to, 0, B * T * w.R * e, cudaStream_t(stream)), "gated_residual_stack");
      if (cond) pad(cond, at.cond, true, 0, nullptr, int(s.cond), w.C);
      for (std::int64_t l = first; l < last; ++l) {
        const bool is_last = l == s.layers - 1;
        const int now = int(l % 2), next = 1 - now;
        LayerArguments a{};
        a.u = base + at.u[now], a.x = base + at.x[now], a.cond = cond ? base + at.cond : nullptr;
        a.u_next = is_last ? nullptr : base + at.u[next];
        a.x_next = is_last || !at.own_x ? nullptr : base + at.x[next];
        a.z = at.z_shared ? nullptr : base + at.z;
        a.skip = s.skip ? out : nullptr, a.last_x = is_last && !s.skip ? out : nullptr;
        a.w_in = static_cast<const char*>(weights) + l * (w.in_bytes + w.out_bytes), a.w_out = a.w_in + w.in_bytes;
        a.b_in = biases + l * (w.gates + w.outs) * kRows, a.b_out = a.b_in + w.gates * kRows;
        a.step = step && !is_last ? step + (l + 1) * s.residual : nullptr, a.step_stride = step_stride;
        a.T = T, a.tiles = int(tiles), a.taps = int(s.kernel), a.dilation = reinterpret_cast<const int*>(dilations)[l];
        const int reach = (a.taps - 1) * a.dilation;
        a.left = s.causal ? reach : reach / 2;
        a.R = w.R, a.H = w.H, a.C = w.C, a.n_residual = int(s.residual);
        a.n_skip = int(s.skip), a.residual_rows = w.residual_rows, a.gates = w.gates, a.outs = w.outs;
        a.rho = float(rho), a.first = l == 0;
        const std::size_t shared = kStages * kStageBytes + (at.z_shared ? w.z_bytes(e) : 0);
        launch("gated_residual_stack", {dim3(unsigned(B * tiles)), kThreads, shared}, cudaStream_t(stream),
               gated_residual_layer_kernel<X>, a);
      }
    });
  });
}
