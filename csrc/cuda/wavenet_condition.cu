// What WaveNet's layers add to their gates, for a chunk of samples: the projected conditioning and the biases.
//
//   cond[t, b, row] = bias_b[row] + Σ_c W[row, c]·mel_b[t, c]                  rows in the order of the gate tiles (wavenet.cuh)
//
// A product of its own ahead of the generation, for a bounded number of samples: all multiprocessors share it, and the
// generation's chain gets shorter. Sums run over c in order, in float: the chunks do not matter.
#include "cuda/common.cuh"

namespace fastvoc {
namespace {

constexpr int kThreads = 256, kRows = 64, kColumns = 64, kDepth = 16;  // a thread has 4 × 4 sums

struct ConditionArguments {
  const float* weights;            // (rows, C)
  const float* const* mel;         // per stream (n_samples, C); given: (n_samples, layers, 2·half_gate)
  char* const* states;
  std::int64_t bias;               // bytes in a state: (rows,) float
  const int* n_samples;
  float* cond;                     // (count, B, rows)
  std::int64_t rows, C, B, start, count;
  int gate_tiles, half_gate;
};

__global__ void __launch_bounds__(kThreads) wavenet_condition_kernel(const __grid_constant__ ConditionArguments a) {
  SHARED(float, w_tile, kDepth * (kRows + 4));
  SHARED(float, mel_tile, kDepth * (kColumns + 4));
  const std::int64_t row_blocks = ceil_div(a.rows, kRows);
  const std::int64_t row0 = blockIdx.x % row_blocks * kRows, column0 = blockIdx.x / row_blocks * kColumns;
  const int thread = threadIdx.x, y = thread / 16, x = thread % 16;
  float sums[4][4] = {};
  for (std::int64_t c0 = 0; c0 < a.C; c0 += kDepth) {
    __syncthreads();
    for (int i = thread; i < kRows * kDepth; i += kThreads) {
      const int c = i % kDepth, r = i / kDepth;
      w_tile[c * (kRows + 4) + r] = row0 + r < a.rows && c0 + c < a.C ? a.weights[(row0 + r) * a.C + c0 + c] : 0.f;
      const std::int64_t column = column0 + r, t = a.start + column / a.B, b = column % a.B;
      const bool inside = column < a.count * a.B && t < a.n_samples[b] && c0 + c < a.C;
      mel_tile[c * (kColumns + 4) + r] = inside ? a.mel[b][t * a.C + c0 + c] : 0.f;
    }
    __syncthreads();
#pragma unroll
    for (int c = 0; c < kDepth; ++c) {
      const Pack<float, 4> u = load<float, 4>(w_tile + c * (kRows + 4) + y * 4), v = load<float, 4>(mel_tile + c * (kColumns + 4) + x * 4);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] = fmaf(u.v[i], v.v[j], sums[i][j]);
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const std::int64_t column = column0 + x * 4 + j;
    if (column >= a.count * a.B) continue;
    const float* bias = reinterpret_cast<const float*>(a.states[column % a.B] + a.bias);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (row0 + y * 4 + i < a.rows) a.cond[column * a.rows + row0 + y * 4 + i] = sums[i][j] + bias[row0 + y * 4 + i];
  }
}

// Conditioning that is there already, in canonical order: only brought into ours.
__global__ void __launch_bounds__(kThreads) wavenet_condition_given_kernel(const __grid_constant__ ConditionArguments a) {
  const std::int64_t n = a.count * a.B * a.rows, stride = std::int64_t(gridDim.x) * kThreads;
  const unsigned rows = unsigned(a.rows), B = unsigned(a.B), per_layer = unsigned(a.gate_tiles) * 16, layers = rows / per_layer;
  for (std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += stride) {
    const std::uint64_t column = std::uint64_t(i) / rows;
    const unsigned row = unsigned(i - std::int64_t(column * rows)), step = unsigned(column) / B, b = unsigned(column) - step * B;
    const std::int64_t t = a.start + step;
    if (t >= a.n_samples[b]) continue;
    const unsigned l = row / per_layer, at = row - l * per_layer, half = at / 8 % 2;
    const int h = int(at / 16 * 8 + at % 8);
    float v = reinterpret_cast<const float*>(a.states[b] + a.bias)[row];
    if (h < a.half_gate) v += a.mel[b][((t * layers + l) * 2 + half) * a.half_gate + h];
    a.cond[i] = v;
  }
}

const Warmup warm([] { touch(wavenet_condition_kernel, wavenet_condition_given_kernel); });

}  // namespace
}  // namespace fastvoc

using namespace fastvoc;

// given: mel holds per-layer conditioning. C = 0: biases alone.
FASTVOC_API int fastvoc_wavenet_condition(const float* weights, const float* const* mel, char* const* states, std::int64_t bias,
                                          const int* n_samples, float* cond, std::int64_t rows, std::int64_t C,
                                          std::int64_t half_gate, std::int64_t gate_tiles, std::int64_t given, std::int64_t B,
                                          std::int64_t start, std::int64_t count, void* stream) {
  return guarded([&] {
    if (B == 0 || count == 0) return;
    const ConditionArguments a{weights, mel, states, bias, n_samples, cond, rows, C, B, start, count, int(gate_tiles), int(half_gate)};
    if (given)
      launch("wavenet_condition", {dim3(blocks_for(ceil_div(count * B * rows, kThreads))), kThreads}, cudaStream_t(stream),
             wavenet_condition_given_kernel, a);
    else
      launch("wavenet_condition", {dim3(unsigned(ceil_div(rows, kRows) * ceil_div(count * B, kColumns))), kThreads},
             cudaStream_t(stream), wavenet_condition_kernel, a);
  });
}
