// Invertible 1×1 convolution, CUDA: y = W·x for every column of (B, C, T), and its gradient.   Kingma, Dhariwal 2018, 3.2
//
//   x, y, dy, dx   (B, C, T) float32 | float16 | bfloat16, contiguous;  W, dW (C, C);  C at most 32
//
// With C = 8 bound by memory: a value read and written for 8 multiplications. A thread holds N neighbouring columns in
// registers and W lies in shared memory. The gradient of W is a sum over all columns: each block sums its tiles' share, and
// the last block to finish adds the shares in their order. The inverse is the same operator with W⁻¹.
#include "cuda/common.cuh"

namespace fastvoc {
namespace {

constexpr int kThreads = 256, kMaxC = 32;

template <class T, int kC, int N>
__global__ void __launch_bounds__(kThreads)
invertible_conv1x1_kernel(const T* w, const T* x, T* y, std::int64_t B, int C, std::int64_t n_columns) {
  SHARED(float, weight, kC * kC);
  for (int i = threadIdx.x; i < C * C; i += kThreads) weight[i] = float(w[i]);
  __syncthreads();
  const std::int64_t groups = ceil_div(n_columns, N), total = B * groups, stride = std::int64_t(gridDim.x) * kThreads;
  for (std::int64_t g = std::int64_t(blockIdx.x) * kThreads + threadIdx.x; g < total; g += stride) {
    const std::int64_t at = g / groups * C * n_columns + g % groups * N;  // N divides n_columns
    float v[kC][N];
#pragma unroll
    for (int c = 0; c < kC; ++c) {
      if (c >= C) break;
      const Pack<T, N> p = load<T, N>(x + at + c * n_columns);
#pragma unroll
      for (int k = 0; k < N; ++k) v[c][k] = float(p.v[k]);
    }
    for (int o = 0; o < C; ++o) {
      float sum[N] = {};
#pragma unroll
      for (int c = 0; c < kC; ++c) {
        if (c >= C) break;
#pragma unroll
        for (int k = 0; k < N; ++k) sum[k] = fmaf(weight[o * C + c], v[c][k], sum[k]);
      }
      Pack<T, N> p;
#pragma unroll
      for (int k = 0; k < N; ++k) p.v[k] = T(sum[k]);
      store<T, N>(y + at + o * n_columns, p);
    }
  }
}

constexpr int kTile = 128, kPitch = kTile + 1;  // columns at a time; odd, so that rows begin in different banks

template <class T>
__global__ void __launch_bounds__(kThreads)
invertible_conv1x1_backward_kernel(const T* w, const T* dy, const T* x, T* dx, T* dw, float* shares, unsigned* counter,
                                   std::int64_t B, int C, std::int64_t n_columns) {
  float* weight = reinterpret_cast<float*>(dynamic_shared());  // then tiles of dy and x
  float *dy_tile = weight + C * C, *x_tile = dy_tile + C * kPitch;
  const int thread = threadIdx.x, pairs = C * C;
  for (int i = thread; i < pairs; i += kThreads) weight[i] = float(w[i]);
  // Few pairs: `parts` threads share one, each taking every parts-th column. Many: a thread has several
  const int parts = pairs < kThreads ? kThreads / pairs : 1;
  constexpr int kOwn = kMaxC * kMaxC / kThreads;
  float sums[kOwn] = {};
  const std::int64_t tiles = ceil_div(n_columns, kTile);
  for (std::int64_t tile = blockIdx.x; tile < B * tiles; tile += gridDim.x) {
    const std::int64_t first = tile % tiles * kTile, base = tile / tiles * C * n_columns + first;
    const int columns = int(n_columns - first < kTile ? n_columns - first : kTile);
    __syncthreads();
    for (int i = thread; i < C * kTile; i += kThreads) {
      const int c = i / kTile, t = i % kTile;
      const bool inside = t < columns;
      dy_tile[c * kPitch + t] = inside ? float(dy[base + c * n_columns + t]) : 0.f;
      x_tile[c * kPitch + t] = inside ? float(x[base + c * n_columns + t]) : 0.f;
    }
    __syncthreads();
    for (int i = thread; i < C * kTile; i += kThreads) {
      const int c = i / kTile, t = i % kTile;
      float sum = 0;
      for (int o = 0; o < C; ++o) sum = fmaf(weight[o * C + c], dy_tile[o * kPitch + t], sum);
      if (t < columns) dx[base + c * n_columns + t] = T(sum);
    }
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      const int pair = parts > 1 ? thread / parts : thread + k * kThreads;
      if (pair >= pairs || (parts > 1 && k > 0)) break;
      const float *a = dy_tile + pair / C * kPitch, *b = x_tile + pair % C * kPitch;
      for (int t = parts > 1 ? thread % parts : 0; t < kTile; t += parts) sums[k] = fmaf(a[t], b[t], sums[k]);
    }
  }
  __syncthreads();
  float* share = shares + std::int64_t(blockIdx.x) * pairs;
  if (parts > 1) {
    dy_tile[thread] = sums[0];  // C·kPitch ≥ kThreads only for C ≥ 2; the launcher asks for enough
    __syncthreads();
    if (thread < pairs) {
      float sum = 0;
      for (int p = 0; p < parts; ++p) sum += dy_tile[thread * parts + p];
      share[thread] = sum;
    }
  } else {
#pragma unroll
    for (int k = 0; k < kOwn; ++k)
      if (thread + k * kThreads < pairs) share[thread + k * kThreads] = sums[k];
  }
  SHARED(unsigned, before, 1);
  __syncthreads();  // all of the block's share is written before it is counted in
  if (thread == 0) before[0] = count_in(counter);
  __syncthreads();
  if (before[0] != gridDim.x - 1) return;
  for (int i = thread; i < pairs; i += kThreads) {
    double sum = 0;
    for (unsigned block = 0; block < gridDim.x; ++block) sum += shares[std::int64_t(block) * pairs + i];
    dw[i] = T(float(sum));
  }
}

constexpr std::int64_t kMaxShares = 512;

template <class T>
void touch_all() {
  constexpr int N = 16 / sizeof(T);
  touch(invertible_conv1x1_kernel<T, 8, N>, invertible_conv1x1_kernel<T, 8, 1>, invertible_conv1x1_kernel<T, 32, 1>,
        invertible_conv1x1_backward_kernel<T>);
}
const Warmup warm([] { touch_all<float>(), touch_all<__half>(), touch_all<__nv_bfloat16>(); });

void check_channels(std::int64_t C) {
  if (C < 1 || C > kMaxC) throw std::invalid_argument("invertible_conv1x1: at most 32 channels, got " + std::to_string(C));
}

}  // namespace
}  // namespace fastvoc

using namespace fastvoc;

FASTVOC_API int fastvoc_invertible_conv1x1(const void* weight, const void* x, void* y, std::int64_t B, std::int64_t C,
                                           std::int64_t n_columns, std::int64_t dtype, void* stream) {
  return guarded([&] {
    check_channels(C);
    if (B == 0 || n_columns == 0) return;
    dispatch_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      constexpr int N = 16 / sizeof(T);
      const auto run = [&](auto kernel, int width) {
        const Grid grid{dim3(blocks_for(ceil_div(B * ceil_div(n_columns, width), kThreads))), kThreads};
        launch("invertible_conv1x1", grid, cudaStream_t(stream), kernel, (const T*)weight, (const T*)x, (T*)y, B, int(C), n_columns);
      };
      if (C > 8) run(invertible_conv1x1_kernel<T, 32, 1>, 1);
      else if (n_columns % N || !aligned16(x) || !aligned16(y)) run(invertible_conv1x1_kernel<T, 8, 1>, 1);
      else run(invertible_conv1x1_kernel<T, 8, N>, N);
    });
  });
}

// Floats that the gradient needs to work in; beside them a counter that is 0.
FASTVOC_API std::int64_t fastvoc_invertible_conv1x1_shares(std::int64_t C) { return kMaxShares * C * C; }

FASTVOC_API int fastvoc_invertible_conv1x1_backward(const void* weight, const void* dy, const void* x, void* dx,
                                                    void* dweight, float* shares, unsigned* counter, std::int64_t B,
                                                    std::int64_t C, std::int64_t n_columns, std::int64_t dtype, void* stream) {
  return guarded([&] {
    check_channels(C);
    if (B == 0 || n_columns == 0) return;
    dispatch_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      const std::int64_t tiles = B * ceil_div(n_columns, kTile);
      const std::size_t floats = C * C + std::size_t(round_up(2 * C * kPitch, kThreads));
      launch("invertible_conv1x1_backward", {dim3(unsigned(tiles < kMaxShares ? tiles : kMaxShares)), kThreads, floats * 4},
             cudaStream_t(stream), invertible_conv1x1_backward_kernel<T>, (const T*)weight, (const T*)dy, (const T*)x, (T*)dx,
             (T*)dweight, shares, counter, B, int(C), n_columns);
    });
  });
}
