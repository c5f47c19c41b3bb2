// What every CUDA kernel file needs: launching, errors, dtype dispatch, vector packs, shared memory.
//
// Everything here also compiles against csrc/emulator/, where the kernels run without a GPU.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef __CUDACC__
#define SHARED(T, name, n) __shared__ T name[n]
#define FASTVOC_HD __host__ __device__
#define OUT_OF_LINE __noinline__  // rare and large: its registers are not the caller's
__device__ __forceinline__ char* dynamic_shared() {
  extern __shared__ __align__(128) char fastvoc_dynamic_shared[];
  return fastvoc_dynamic_shared;
}
#else
#define FASTVOC_HD
#define OUT_OF_LINE
#endif
#define FASTVOC_API extern "C" __attribute__((visibility("default")))

namespace fastvoc {

// ---- the border: C functions that return 0 or an error code, its text kept for fastvoc_cuda_error() ------------------

struct Failure : std::runtime_error {
  int code;
  Failure(int code, const std::string& what) : std::runtime_error(what), code(code) {}
};

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw Failure(status, std::string(what) + ": " + cudaGetErrorString(status));
}

int remember(int code, const char* text);  // library.cu

template <class F>
int guarded(F&& f) {
  try {
    f();
    return 0;
  } catch (const Failure& e) {
    return remember(e.code, e.what());
  } catch (const std::exception& e) {
    return remember(-1, e.what());
  }
}

// ---- launching -------------------------------------------------------------------------------------------------------

struct Grid {
  dim3 blocks;
  int threads;
  std::size_t shared = 0;
  int cluster = 1;
  bool cooperative = false;
};

template <class... P, class... A>
void launch(const char* op, const Grid& grid, cudaStream_t stream, void (*kernel)(P...), A&&... arguments) {
  if (grid.shared > (48 << 10))
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(grid.shared)), op);
  if (grid.cluster > 8) check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), op);
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks, config.blockDim = dim3(grid.threads);
  config.dynamicSmemBytes = grid.shared, config.stream = stream, config.attrs = attributes;
  if (grid.cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs++].val.clusterDim = {unsigned(grid.cluster), 1, 1};
  }
  if (grid.cooperative) {
    attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
    attributes[config.numAttrs++].val.cooperative = 1;
  }
  check(cudaLaunchKernelEx(&config, kernel, std::forward<A>(arguments)...), op);
  check(cudaGetLastError(), op);
}

// Kernels that fastvoc.warmup() loads before a graph is captured: CUDA loads a kernel when it is first used.
std::vector<void (*)()>& warmups();  // library.cu
struct Warmup {
  explicit Warmup(void (*touch)()) { warmups().push_back(touch); }
};
template <class... F>
void touch(F*... kernels) {
  cudaFuncAttributes attributes;
  (check(cudaFuncGetAttributes(&attributes, kernels), "warmup"), ...);
}

// ---- types -----------------------------------------------------------------------------------------------------------

enum class DType { f32, f16, bf16 };  // the order is a contract with fastvoc/_cuda.py

// dispatch_dtype(dtype, [&](auto zero) { using T = decltype(zero); ... });
template <class F>
void dispatch_dtype(std::int64_t dtype, F&& f) {
  switch (DType(dtype)) {
    case DType::f32: return f(float{});
    case DType::f16: return f(__half{});
    case DType::bf16: return f(__nv_bfloat16{});
  }
  throw std::invalid_argument("unknown dtype code " + std::to_string(dtype));
}

// dispatch_bool(flag, [&](auto flag) { constexpr bool kFlag = decltype(flag)::value; ... });
template <class F>
void dispatch_bool(bool b, F&& f) {
  b ? f(std::true_type{}) : f(std::false_type{});
}

template <class T, int N>
struct alignas(N * sizeof(T)) Pack {
  T v[N];
};
template <class T, int N>
__device__ __forceinline__ Pack<T, N> load(const T* p) { return *reinterpret_cast<const Pack<T, N>*>(p); }
template <class T, int N>
__device__ __forceinline__ void store(T* p, const Pack<T, N>& v) { *reinterpret_cast<Pack<T, N>*>(p) = v; }

inline bool aligned16(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

FASTVOC_HD inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
FASTVOC_HD inline std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }

// Enough blocks for a grid-stride loop over n pieces, whatever n is.
inline unsigned blocks_for(std::int64_t n) { return unsigned(n < 1 ? 1 : n > 65536 ? 65536 : n); }

// tanh and σ that neither overflow nor cancel; a few ulp.
__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

// ---- reductions ------------------------------------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ T warp_sum(T v) {
  for (int m = 16; m; m >>= 1) v += __shfl_xor_sync(~0u, v, m);
  return v;
}

// The sum over the block, in thread 0; all threads must come. kThreads: a multiple of 32.
template <int kThreads, class T>
__device__ __forceinline__ T block_sum(T v) {
  SHARED(T, partial, kThreads / 32);
  v = warp_sum(v);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
  __syncthreads();
  T total = 0;
  if (threadIdx.x == 0)
    for (int i = 0; i < kThreads / 32; ++i) total += partial[i];
  __syncthreads();  // partial may be used again
  return total;
}

// ---- other blocks' writes --------------------------------------------------------------------------------------------

// Counts this thread in; everything it wrote before is seen by whoever reads a count that includes it. -> count before
__device__ __forceinline__ unsigned count_in(unsigned* counter) {
#ifdef __CUDACC__
  __threadfence();
  const unsigned before = atomicAdd(counter, 1u);
  __threadfence();
  return before;
#else
  return std::atomic_ref<unsigned>(*counter).fetch_add(1, std::memory_order_acq_rel);
#endif
}

}  // namespace fastvoc
