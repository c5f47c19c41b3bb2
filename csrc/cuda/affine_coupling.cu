// Affine coupling, CUDA: y = x·exp(log_s) + t with Σ log_s per item; its inverse; its gradient.   Dinh et al. 2017, eq. 7-8
//
//   x, log_s, t, y, …   B items of n values each (n = C·T), float32 | float16 | bfloat16; an item is in one piece, items may
//                       lie `stride` values apart (halves of a tensor's channels do)
//   sums                (B,) float32
//
// Bound by memory: three values read and one written for an exponential. The log-determinant falls out of the same pass:
// each block leaves its part, and the last block of an item to finish adds the parts in their order, so that the sum does
// not depend on which that is.
#include "cuda/common.cuh"

namespace fastvoc {
namespace {

constexpr int kThreads = 256, kRounds = 4;  // a thread takes kRounds packs, so that a block has work worth starting it

template <class T>
struct Items {  // one operand: item b begins at p + b·stride
  T* p;
  std::int64_t stride;
  __device__ T* at(std::int64_t b) const { return p + b * stride; }
};

// f(values of each operand …) for all i of a block's piece of one item, N at a time where N divides the rest
template <int N, class F>
__device__ __forceinline__ void over_piece(std::int64_t n, unsigned piece, F f) {
  const std::int64_t first = std::int64_t(piece) * kThreads * N * kRounds;
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    const std::int64_t i = first + (std::int64_t(r) * kThreads + threadIdx.x) * N;
    if (i + N <= n) f(i, std::integral_constant<int, N>{});
    else
      for (std::int64_t k = i; k < n; ++k) f(k, std::integral_constant<int, 1>{});
  }
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads)
affine_coupling_kernel(Items<const T> x, Items<const T> log_s, Items<const T> t, T* y, float* sums, double* parts,
                       unsigned* counters, std::int64_t n, unsigned pieces) {
  const std::int64_t b = blockIdx.x / pieces;
  const unsigned piece = blockIdx.x % pieces;
  const T *xb = x.at(b), *sb = log_s.at(b), *tb = t.at(b);
  float sum = 0;
  over_piece<N>(n, piece, [&](std::int64_t i, auto width) {
    constexpr int M = decltype(width)::value;
    Pack<T, M> v = load<T, M>(xb + i);
    const Pack<T, M> s = load<T, M>(sb + i), shift = load<T, M>(tb + i);
#pragma unroll
    for (int k = 0; k < M; ++k) {
      sum += float(s.v[k]);
      v.v[k] = T(fmaf(float(v.v[k]), expf(float(s.v[k])), float(shift.v[k])));
    }
    store<T, M>(y + b * n + i, v);
  });
  const double part = block_sum<kThreads>(double(sum));
  if (threadIdx.x) return;
  parts[blockIdx.x] = part;
  if (count_in(counters + b) != pieces - 1) return;
  double total = 0;
  for (unsigned p = 0; p < pieces; ++p) total += parts[b * pieces + p];
  sums[b] = float(total);
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads)
affine_coupling_inverse_kernel(Items<const T> y, Items<const T> log_s, Items<const T> t, T* x, std::int64_t n, unsigned pieces) {
  const std::int64_t b = blockIdx.x / pieces;
  const T *yb = y.at(b), *sb = log_s.at(b), *tb = t.at(b);
  over_piece<N>(n, blockIdx.x % pieces, [&](std::int64_t i, auto width) {
    constexpr int M = decltype(width)::value;
    Pack<T, M> v = load<T, M>(yb + i);
    const Pack<T, M> s = load<T, M>(sb + i), shift = load<T, M>(tb + i);
#pragma unroll
    for (int k = 0; k < M; ++k) v.v[k] = T((float(v.v[k]) - float(shift.v[k])) * expf(-float(s.v[k])));
    store<T, M>(x + b * n + i, v);
  });
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads)
affine_coupling_backward_kernel(Items<const T> dy, const float* dsum, Items<const T> x, Items<const T> log_s, T* dx,
                                T* dlog_s, std::int64_t n, unsigned pieces) {
  const std::int64_t b = blockIdx.x / pieces;
  const T *gb = dy.at(b), *xb = x.at(b), *sb = log_s.at(b);
  const float ds = dsum[b];
  over_piece<N>(n, blockIdx.x % pieces, [&](std::int64_t i, auto width) {
    constexpr int M = decltype(width)::value;
    Pack<T, M> g = load<T, M>(gb + i), s = load<T, M>(sb + i);
    const Pack<T, M> v = load<T, M>(xb + i);
#pragma unroll
    for (int k = 0; k < M; ++k) {
      const float d = float(g.v[k]) * expf(float(s.v[k]));
      g.v[k] = T(d), s.v[k] = T(fmaf(d, float(v.v[k]), ds));
    }
    store<T, M>(dx + b * n + i, g);
    store<T, M>(dlog_s + b * n + i, s);
  });
}

template <class T, int N>
void touch_all() {
  touch(affine_coupling_kernel<T, N>, affine_coupling_inverse_kernel<T, N>, affine_coupling_backward_kernel<T, N>);
}
const Warmup warm([] {
  touch_all<float, 4>(), touch_all<float, 1>(), touch_all<__half, 8>(), touch_all<__half, 1>();
  touch_all<__nv_bfloat16, 8>(), touch_all<__nv_bfloat16, 1>();
});

// Whether item b of an operand is aligned for all b.
bool wide(const void* p, std::int64_t stride, std::int64_t element) {
  return aligned16(p) && stride * element % 16 == 0;
}

template <class F>
void per_item(std::int64_t dtype, std::int64_t B, std::int64_t n, bool aligned, F&& f) {
  if (B == 0 || n == 0) return;
  dispatch_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    dispatch_bool(aligned, [&](auto is_wide) {
      constexpr int N = decltype(is_wide)::value ? 16 / sizeof(T) : 1;
      const std::int64_t pieces = ceil_div(n, kThreads * N * kRounds);
      if (B * pieces >= std::int64_t(1) << 31) throw std::length_error("affine_coupling: more than 2^31 blocks");
      f(zero, std::integral_constant<int, N>{}, Grid{dim3(unsigned(B * pieces)), kThreads}, unsigned(pieces));
    });
  });
}

std::int64_t size_of(std::int64_t dtype) { return dtype == 0 ? 4 : 2; }

}  // namespace
}  // namespace fastvoc

using namespace fastvoc;

// How many parts an item's sum may have: the caller gives B·this many doubles, and B counters that are 0.
FASTVOC_API std::int64_t fastvoc_affine_coupling_parts(std::int64_t n) { return ceil_div(n, kThreads * kRounds); }

FASTVOC_API int fastvoc_affine_coupling(const void* x, std::int64_t x_stride, const void* log_s, std::int64_t s_stride,
                                        const void* t, std::int64_t t_stride, void* y, float* sums, double* parts,
                                        unsigned* counters, std::int64_t B, std::int64_t n, std::int64_t dtype, void* stream) {
  return guarded([&] {
    const std::int64_t e = size_of(dtype);
    const bool aligned = wide(x, x_stride, e) && wide(log_s, s_stride, e) && wide(t, t_stride, e) && wide(y, n, e);
    per_item(dtype, B, n, aligned, [&](auto zero, auto width, const Grid& grid, unsigned pieces) {
      using T = decltype(zero);
      launch("affine_coupling", grid, cudaStream_t(stream), affine_coupling_kernel<T, decltype(width)::value>,
             Items<const T>{(const T*)x, x_stride}, Items<const T>{(const T*)log_s, s_stride},
             Items<const T>{(const T*)t, t_stride}, (T*)y, sums, parts, counters, n, pieces);
    });
  });
}

FASTVOC_API int fastvoc_affine_coupling_inverse(const void* y, std::int64_t y_stride, const void* log_s,
                                                std::int64_t s_stride, const void* t, std::int64_t t_stride, void* x,
                                                std::int64_t B, std::int64_t n, std::int64_t dtype, void* stream) {
  return guarded([&] {
    const std::int64_t e = size_of(dtype);
    const bool aligned = wide(y, y_stride, e) && wide(log_s, s_stride, e) && wide(t, t_stride, e) && wide(x, n, e);
    per_item(dtype, B, n, aligned, [&](auto zero, auto width, const Grid& grid, unsigned pieces) {
      using T = decltype(zero);
      launch("affine_coupling_inverse", grid, cudaStream_t(stream),
             affine_coupling_inverse_kernel<T, decltype(width)::value>, Items<const T>{(const T*)y, y_stride},
             Items<const T>{(const T*)log_s, s_stride}, Items<const T>{(const T*)t, t_stride}, (T*)x, n, pieces);
    });
  });
}

FASTVOC_API int fastvoc_affine_coupling_backward(const void* dy, std::int64_t dy_stride, const float* dsum, const void* x,
                                                 std::int64_t x_stride, const void* log_s, std::int64_t s_stride, void* dx,
                                                 void* dlog_s, std::int64_t B, std::int64_t n, std::int64_t dtype,
                                                 void* stream) {
  return guarded([&] {
    const std::int64_t e = size_of(dtype);
    const bool aligned = wide(dy, dy_stride, e) && wide(x, x_stride, e) && wide(log_s, s_stride, e) && wide(dx, n, e) &&
                         wide(dlog_s, n, e);
    per_item(dtype, B, n, aligned, [&](auto zero, auto width, const Grid& grid, unsigned pieces) {
      using T = decltype(zero);
      launch("affine_coupling_backward", grid, cudaStream_t(stream),
             affine_coupling_backward_kernel<T, decltype(width)::value>, Items<const T>{(const T*)dy, dy_stride}, dsum,
             Items<const T>{(const T*)x, x_stride}, Items<const T>{(const T*)log_s, s_stride}, (T*)dx, (T*)dlog_s, n, pieces);
    });
  });
}
