// Gated activation, CUDA: y = tanh(a)·σ(b), and its gradient.   van den Oord et al. 2016, eq. 2
//
//   a, b, y, dy, da, db   n values of float32 | float16 | bfloat16. All arithmetic is float32.
//
// Bound by memory: two values read and one written for some twenty operations. So 128-bit accesses wherever the pointers
// allow (a view may begin anywhere), a grid-stride loop, and the tail by single values.
#include "cuda/common.cuh"

namespace fastvoc {
namespace {

constexpr int kThreads = 256;

template <class T, int N>
__global__ void __launch_bounds__(kThreads) gated_activation_kernel(const T* a, const T* b, T* y, std::int64_t n) {
  const std::int64_t stride = std::int64_t(gridDim.x) * kThreads * N;
  for (std::int64_t i = (std::int64_t(blockIdx.x) * kThreads + threadIdx.x) * N; i < n; i += stride) {
    if (i + N <= n) {
      Pack<T, N> u = load<T, N>(a + i);
      const Pack<T, N> v = load<T, N>(b + i);
#pragma unroll
      for (int k = 0; k < N; ++k) u.v[k] = T(tanhf(float(u.v[k])) * sigmoid(float(v.v[k])));
      store<T, N>(y + i, u);
    } else {
      for (std::int64_t k = i; k < n; ++k) y[k] = T(tanhf(float(a[k])) * sigmoid(float(b[k])));
    }
  }
}

__device__ __forceinline__ void gate_gradient(float dy, float a, float b, float& da, float& db) {
  const float t = tanhf(a), s = sigmoid(b);
  da = dy * s * (1.f - t * t);
  db = dy * t * s * (1.f - s);
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads)
gated_activation_backward_kernel(const T* dy, const T* a, const T* b, T* da, T* db, std::int64_t n) {
  const std::int64_t stride = std::int64_t(gridDim.x) * kThreads * N;
  for (std::int64_t i = (std::int64_t(blockIdx.x) * kThreads + threadIdx.x) * N; i < n; i += stride) {
    if (i + N <= n) {
      const Pack<T, N> g = load<T, N>(dy + i);
      Pack<T, N> u = load<T, N>(a + i), v = load<T, N>(b + i);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        float du, dv;
        gate_gradient(float(g.v[k]), float(u.v[k]), float(v.v[k]), du, dv);
        u.v[k] = T(du), v.v[k] = T(dv);
      }
      store<T, N>(da + i, u);
      store<T, N>(db + i, v);
    } else {
      for (std::int64_t k = i; k < n; ++k) {
        float du, dv;
        gate_gradient(float(dy[k]), float(a[k]), float(b[k]), du, dv);
        da[k] = T(du), db[k] = T(dv);
      }
    }
  }
}

const Warmup warm([] {
  touch(gated_activation_kernel<float, 4>, gated_activation_kernel<float, 1>, gated_activation_kernel<__half, 8>,
        gated_activation_kernel<__half, 1>, gated_activation_kernel<__nv_bfloat16, 8>,
        gated_activation_kernel<__nv_bfloat16, 1>);
  touch(gated_activation_backward_kernel<float, 4>, gated_activation_backward_kernel<float, 1>,
        gated_activation_backward_kernel<__half, 8>, gated_activation_backward_kernel<__half, 1>,
        gated_activation_backward_kernel<__nv_bfloat16, 8>, gated_activation_backward_kernel<__nv_bfloat16, 1>);
});

template <class F>
void elementwise(std::int64_t dtype, std::int64_t n, bool aligned, F&& f) {
  if (n == 0) return;
  dispatch_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    dispatch_bool(aligned, [&](auto wide) {
      constexpr int N = decltype(wide)::value ? 16 / sizeof(T) : 1;
      f(zero, std::integral_constant<int, N>{}, Grid{dim3(blocks_for(ceil_div(n, kThreads * N))), kThreads});
    });
  });
}

}  // namespace
}  // namespace fastvoc

using namespace fastvoc;

FASTVOC_API int fastvoc_gated_activation(const void* a, const void* b, void* y, std::int64_t n, std::int64_t dtype, void* stream) {
  return guarded([&] {
    elementwise(dtype, n, aligned16(a) && aligned16(b) && aligned16(y), [&](auto zero, auto width, const Grid& grid) {
      using T = decltype(zero);
      launch("gated_activation", grid, cudaStream_t(stream), gated_activation_kernel<T, decltype(width)::value>,
             (const T*)a, (const T*)b, (T*)y, n);
    });
  });
}

FASTVOC_API int fastvoc_gated_activation_backward(const void* dy, const void* a, const void* b, void* da, void* db,
                                                  std::int64_t n, std::int64_t dtype, void* stream) {
  return guarded([&] {
    const bool aligned = aligned16(dy) && aligned16(a) && aligned16(b) && aligned16(da) && aligned16(db);
    elementwise(dtype, n, aligned, [&](auto zero, auto width, const Grid& grid) {
      using T = decltype(zero);
      launch("gated_activation_backward", grid, cudaStream_t(stream),
             gated_activation_backward_kernel<T, decltype(width)::value>, (const T*)dy, (const T*)a, (const T*)b, (T*)da,
             (T*)db, n);
    });
  });
}
