// Kernels that test the emulator: what it must run, and faults that it must find.
#include "cuda/common.cuh"

namespace fastvoc {
namespace {

__global__ void test_block_sum_kernel(const float* x, float* y, std::int64_t n) {
  SHARED(float, partial, 4);
  const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const float sum = warp_sum(i < n ? x[i] : 0.f);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();  // the one that matters
  if (threadIdx.x == 0) y[blockIdx.x] = partial[0] + partial[1] + partial[2] + partial[3];
}

// All blocks alive: each adds its part and raises a flag; the first waits for all flags.
__global__ void test_cooperative_kernel(const float* x, float* total, int* flags, std::int64_t n) {
  float sum = 0;
  for (std::int64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += std::int64_t(gridDim.x) * blockDim.x) sum += x[i];
  SHARED(float, part, 1);
  sum = block_sum<64>(sum);
  if (threadIdx.x == 0) {
    part[0] = sum;
    atomicAdd(total, part[0]);
#ifndef __CUDACC__
    std::atomic_ref<int>(flags[blockIdx.x]).store(1, std::memory_order_release);
    for (unsigned b = 0; b < gridDim.x; ++b)
      while (!std::atomic_ref<int>(flags[b]).load(std::memory_order_acquire)) emulator::Scheduler::get().yield();
#endif
  }
}

__global__ void test_cluster_kernel(float* y) {
  float* mine = reinterpret_cast<float*>(dynamic_shared());
  const unsigned rank = __clusterRelativeBlockRank(), next = (rank + 1) % __clusterSizeInBlocks();
  mine[threadIdx.x] = rank * 100.f + threadIdx.x;
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
  const float value = __cluster_map_shared_rank(mine, next)[threadIdx.x];
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
  y[blockIdx.x * 32 + threadIdx.x] = value;
}

__global__ void test_poison_kernel(float* y) {
  SHARED(float, never_written, 32);
  y[threadIdx.x] = never_written[threadIdx.x];
}

__global__ void test_divergent_kernel(float* y) {
  if (threadIdx.x < 32) __syncthreads();
  y[threadIdx.x] = 0;
}

__global__ void test_waits_for_nobody_kernel(int* flag) {
#ifndef __CUDACC__
  while (!std::atomic_ref<int>(*flag).load(std::memory_order_acquire)) emulator::Scheduler::get().yield();
#endif
}

}  // namespace
}  // namespace fastvoc

using namespace fastvoc;

FASTVOC_API int fastvoc_test_block_sum(const float* x, float* y, std::int64_t n, void* stream) {
  return guarded([&] { launch("test_block_sum", {dim3(ceil_div(n, 128)), 128}, stream, test_block_sum_kernel, x, y, n); });
}
FASTVOC_API int fastvoc_test_cooperative(const float* x, float* total, int* flags, std::int64_t n, void* stream) {
  return guarded([&] { launch("test_cooperative", {dim3(8), 64, 0, 1, true}, stream, test_cooperative_kernel, x, total, flags, n); });
}
FASTVOC_API int fastvoc_test_cluster(float* y, void* stream) {
  return guarded([&] { launch("test_cluster", {dim3(4), 32, 128, 4}, stream, test_cluster_kernel, y); });
}
FASTVOC_API int fastvoc_test_poison(float* y, void* stream) {
  return guarded([&] { launch("test_poison", {dim3(1), 32}, stream, test_poison_kernel, y); });
}
FASTVOC_API int fastvoc_test_divergent(float* y, void* stream) {
  return guarded([&] { launch("test_divergent", {dim3(1), 64}, stream, test_divergent_kernel, y); });
}
FASTVOC_API int fastvoc_test_waits_for_nobody(int* flag, void* stream) {
  return guarded([&] { launch("test_waits_for_nobody", {dim3(1), 32}, stream, test_waits_for_nobody_kernel, flag); });
}
FASTVOC_API int fastvoc_test_too_much(float* y, void* stream) {
  return guarded([&] { launch("test_too_much", {dim3(1), 32, 1 << 20}, stream, test_poison_kernel, y); });
}
