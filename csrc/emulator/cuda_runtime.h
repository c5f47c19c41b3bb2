// Runs csrc/cuda/*.cu on the host: this header stands in for CUDA's own, and g++ -std=c++20 compiles the same files.
//
// Modelled: grids, blocks and threads (fibers.h; block and thread orders shuffled by a seed), __syncthreads, __syncwarp,
// shuffles and votes, static (SHARED) and dynamic shared memory (poisoned with NaN patterns, each array an allocation of
// its own, so that AddressSanitizer knows its ends), atomics, cooperative grids, clusters with their barrier and
// distributed shared memory, asynchronous copies (as copies), half and bfloat16, and in mma.cuh the matrix instructions.
// A barrier that some threads never reach, or a flag that nobody sets, ends the launch with an error that says who waits.
//
// Not modelled: how asynchronous copies are ordered, forward progress of threads that diverge within a warp, a weak memory
// model (what one thread wrote is seen by all at once; ThreadSanitizer still demands a barrier or an acquire), bank
// conflicts, how the tensor cores round and sum, approximate functions, registers, timing. Passing is necessary, not
// sufficient. Misaligned vector accesses are UndefinedBehaviorSanitizer's to find.
#pragma once
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fibers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct uint4 { unsigned x, y, z, w; } __attribute__((aligned(16)));
struct float4 { float x, y, z, w; } __attribute__((aligned(16)));
struct float2 { float x, y; } __attribute__((aligned(8)));
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace emulator {

struct Memory {  // poisoned; ends exactly where it ends
  std::unique_ptr<char, decltype(&std::free)> data{nullptr, &std::free};
  explicit Memory(std::size_t bytes) {
    void* p = nullptr;
    if (posix_memalign(&p, 128, bytes)) throw std::bad_alloc();
    std::memset(p, 0xff, bytes);  // a NaN in every float format
    data.reset(static_cast<char*>(p));
  }
};

struct Block {
  dim3 index;
  Barrier barrier;
  std::vector<Barrier> warps;
  std::vector<std::uint64_t> exchange;  // 8 words per thread, for shuffles and matrix fragments
  std::unique_ptr<Memory> dynamic;
  std::map<const void*, std::unique_ptr<Memory>> arrays;  // SHARED, by the place in the source
  Block(dim3 at, int threads, std::size_t shared) : index(at), barrier{"__syncthreads", threads}, exchange(threads * 8) {
    for (int i = 0; i < threads; i += 32) warps.push_back({"a warp's meeting", std::min(32, threads - i)});
    dynamic = std::make_unique<Memory>(shared);
  }
};

struct Launch {  // the launch under way: some blocks of it are alive together
  dim3 grid, block;
  int cluster = 1, threads = 0;
  bool cooperative = false;
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<Barrier> clusters;
  std::vector<unsigned> cluster_phase;  // per thread, between arrive and wait
};
inline Launch launch;

inline Block& block() { return *launch.blocks[Scheduler::get().current() / launch.threads]; }
inline int thread() { return Scheduler::get().current() % launch.threads; }
inline dim3 thread_index() {
  const unsigned i = thread(), x = launch.block.x, y = launch.block.y;
  return {i % x, i / x % y, i / (x * y)};
}
inline void sync_warp() { Scheduler::get().meet(block().warps[thread() / 32]); }
inline std::uint64_t* slot(int lane) { return &block().exchange[(thread() / 32 * 32 + lane) * 8]; }

// Every lane shows `mine` to its warp; use(lane) -> another lane's, until the function returns.
template <class T, class F>
auto among_warp(const T& mine, F use) {
  static_assert(sizeof(T) <= 64);
  std::memcpy(slot(thread() % 32), &mine, sizeof(T));
  sync_warp();
  auto result = use([](int lane) {
    T other;
    std::memcpy(&other, slot(lane), sizeof(T));
    return other;
  });
  sync_warp();
  return result;
}

template <class T>
T* shared_array(const void* place, std::size_t n) {
  const Overlooked overlooked;
  auto& memory = block().arrays[place];
  if (!memory) memory = std::make_unique<Memory>(n * sizeof(T));
  return reinterpret_cast<T*>(memory->data.get());
}

}  // namespace emulator

namespace emulator {
template <class F> struct Number : F { operator unsigned() const { return F::operator()(); } };
template <class F> Number(F) -> Number<F>;
template <class X, class Y, class Z> struct Place { Number<X> x; Number<Y> y; Number<Z> z; };
template <class F> auto place(F of) {
  const auto x = [=] { return of().x; };
  const auto y = [=] { return of().y; };
  const auto z = [=] { return of().z; };
  return Place<decltype(x), decltype(y), decltype(z)>{{x}, {y}, {z}};
}
}  // namespace emulator
inline const auto threadIdx = emulator::place([] { return emulator::thread_index(); });
inline const auto blockIdx = emulator::place([] { return emulator::block().index; });
inline const auto blockDim = emulator::place([] { return emulator::launch.block; });
inline const auto gridDim = emulator::place([] { return emulator::launch.grid; });
// A static shared array. On the device: __shared__ T name[n]
#define SHARED(T, name, n)            \
  static const char name##_place = 0; \
  T* const name = emulator::shared_array<T>(&name##_place, n)

inline char* dynamic_shared() { return emulator::block().dynamic->data.get(); }
inline void __syncthreads() { emulator::Scheduler::get().meet(emulator::block().barrier); }
inline void __syncwarp(unsigned = ~0u) { emulator::sync_warp(); }
template <class T> T __shfl_sync(unsigned, T v, int lane) {
  return emulator::among_warp(v, [&](auto of) { return of(lane % 32); });
}
template <class T> T __shfl_xor_sync(unsigned, T v, int mask) {
  return emulator::among_warp(v, [&](auto of) { return of((emulator::thread() % 32) ^ mask); });
}
template <class T> T __shfl_up_sync(unsigned, T v, int delta) {
  const int lane = emulator::thread() % 32;
  return emulator::among_warp(v, [&](auto of) { return lane < delta ? v : of(lane - delta); });
}
template <class T> T __shfl_down_sync(unsigned, T v, int delta) {
  const int lane = emulator::thread() % 32;
  return emulator::among_warp(v, [&](auto of) { return lane + delta > 31 ? v : of(lane + delta); });
}
inline unsigned __ballot_sync(unsigned, int predicate) {
  return emulator::among_warp(predicate, [&](auto of) {
    unsigned bits = 0;
    for (int i = 0; i < 32; ++i) bits |= unsigned(of(i) != 0) << i;
    return bits;
  });
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == ~0u; }
using std::max;
using std::min;
inline int __ffs(unsigned x) { return __builtin_ffs(int(x)); }

inline float atomicAdd(float* p, float v) { return std::atomic_ref<float>(*p).fetch_add(v, std::memory_order_relaxed); }
inline double atomicAdd(double* p, double v) { return std::atomic_ref<double>(*p).fetch_add(v, std::memory_order_relaxed); }
inline int atomicAdd(int* p, int v) { return std::atomic_ref<int>(*p).fetch_add(v, std::memory_order_relaxed); }
inline unsigned atomicAdd(unsigned* p, unsigned v) { return std::atomic_ref<unsigned>(*p).fetch_add(v, std::memory_order_relaxed); }

// Clusters: the blocks of a cluster are alive together, and their shared memory is one another's.
inline unsigned __clusterRelativeBlockRank() { return emulator::block().index.x % emulator::launch.cluster; }
inline unsigned __clusterSizeInBlocks() { return emulator::launch.cluster; }
inline emulator::Barrier& cluster_barrier() {
  return emulator::launch.clusters[emulator::Scheduler::get().current() / (emulator::launch.threads * emulator::launch.cluster)];
}
inline void __cluster_barrier_arrive() {
  emulator::launch.cluster_phase[emulator::Scheduler::get().current()] = cluster_barrier().phase;
  emulator::Scheduler::get().arrive(cluster_barrier());
}
inline void __cluster_barrier_wait() {
  emulator::Scheduler::get().wait(cluster_barrier(), emulator::launch.cluster_phase[emulator::Scheduler::get().current()]);
}
// The same place in the dynamic shared memory of another block of the cluster.
template <class T> T* __cluster_map_shared_rank(T* mine, unsigned rank) {
  const int here = emulator::Scheduler::get().current() / emulator::launch.threads;
  const int there = here / emulator::launch.cluster * emulator::launch.cluster + int(rank);
  const std::ptrdiff_t at = (const char*)mine - emulator::launch.blocks[here]->dynamic->data.get();
  return reinterpret_cast<T*>(emulator::launch.blocks[there]->dynamic->data.get() + at);
}

// ---- the runtime: as much of it as the launchers use ------------------------------------------------------------------

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9, cudaErrorLaunchFailure = 719 };
typedef void* cudaStream_t;
struct cudaFuncAttributes { int maxThreadsPerBlock = 1024; };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaFuncAttributeNonPortableClusterSizeAllowed };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin, cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor
};
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension, cudaLaunchAttributeCooperative };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct { struct { unsigned x, y, z; } clusterDim; int cooperative; } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

namespace emulator {
inline std::string failure;  // what the last launch died of
inline int attributes[] = {2, 96 << 10, 9, 0};  // the emulated device, by cudaDeviceAttr; tests change it
}

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t e) {
  if (e == cudaErrorLaunchFailure) return emulator::failure.c_str();
  return e == cudaSuccess ? "no error" : e == cudaErrorInvalidValue ? "invalid argument" : "invalid configuration";
}
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  return *value = emulator::attributes[attribute], cudaSuccess;
}
template <class F> cudaError_t cudaFuncSetAttribute(F*, cudaFuncAttribute, int) { return cudaSuccess; }
template <class F> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, F*) { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* p, int value, std::size_t n, cudaStream_t) { return std::memset(p, value, n), cudaSuccess; }
template <class F>
cudaError_t cudaOccupancyMaxActiveClusters(int* n, F*, const cudaLaunchConfig_t*) { return *n = 4, cudaSuccess; }

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A&&... arguments) {
  using namespace emulator;
  Launch& l = launch;
  l.grid = config->gridDim, l.block = config->blockDim, l.cluster = 1, l.cooperative = false;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    if (config->attrs[i].id == cudaLaunchAttributeClusterDimension) l.cluster = config->attrs[i].val.clusterDim.x;
    else l.cooperative = config->attrs[i].val.cooperative;
  }
  l.threads = l.block.x * l.block.y * l.block.z;
  const std::int64_t blocks = std::int64_t(l.grid.x) * l.grid.y * l.grid.z;
  if (!blocks || !l.threads || l.threads > 1024 || l.grid.y > 65535 || l.grid.z > 65535 || l.grid.x % l.cluster ||
      config->dynamicSmemBytes > std::size_t(attributes[cudaDevAttrMaxSharedMemoryPerBlockOptin]))
    return cudaErrorInvalidConfiguration;
  Scheduler& scheduler = Scheduler::get();
  const int together = l.cooperative ? int(blocks) : l.cluster;
  std::tuple<P...> parameters(std::forward<A>(arguments)...);
  try {
    for (int set : scheduler.order(int(blocks / together))) {
      l.blocks.clear(), l.clusters.clear();
      for (int i = 0; i < together; ++i) {
        const unsigned b = unsigned(set) * together + i;
        l.blocks.push_back(std::make_unique<Block>(
            dim3(b % l.grid.x, b / l.grid.x % l.grid.y, b / (l.grid.x * l.grid.y)), l.threads, config->dynamicSmemBytes));
      }
      for (int i = 0; i < together; i += l.cluster) l.clusters.push_back({"the cluster barrier", l.threads * l.cluster});
      l.cluster_phase.assign(std::size_t(together) * l.threads, 0);
      scheduler.run(together * l.threads, [&](int) { std::apply(kernel, parameters); });
    }
  } catch (const std::exception& e) {
    failure = e.what();
    return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}
