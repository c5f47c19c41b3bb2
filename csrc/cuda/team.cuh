// A team of blocks that works on one thing together: a cluster with distributed shared memory (sm_90 and later), or one
// block by itself. And copies into shared memory that a thread need not wait for.
#pragma once
#include "cuda/common.cuh"

namespace fastvoc {

struct Team {
  int rank, size;

  __device__ __forceinline__ static Team mine() {
#if !defined(__CUDACC__) || __CUDA_ARCH__ >= 900
    return {int(__clusterRelativeBlockRank()), int(__clusterSizeInBlocks())};
#else
    return {0, 1};
#endif
  }

  // All threads of all blocks have come, and see what they wrote before: shared memory, one another's, and global memory.
  __device__ __forceinline__ void sync() const {
#if !defined(__CUDACC__) || __CUDA_ARCH__ >= 900
    if (size > 1) {
      __cluster_barrier_arrive();
      __cluster_barrier_wait();
      return;
    }
#endif
    __syncthreads();
  }

  // The same place of dynamic shared memory in another block.
  template <class T>
  __device__ __forceinline__ T* at(T* mine, int other) const {
#if !defined(__CUDACC__) || __CUDA_ARCH__ >= 900
    if (size > 1) return static_cast<T*>(__cluster_map_shared_rank(mine, unsigned(other)));
#endif
    return mine;
  }
};

// 16 bytes from global memory; they are there after copies_done(). in_shared: whether `to` lies in shared memory.
__device__ __forceinline__ void copy16(void* to, const void* from, bool in_shared) {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 800
  if (in_shared) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(unsigned(__cvta_generic_to_shared(to))), "l"(from) : "memory");
    return;
  }
#endif
  *static_cast<uint4*>(to) = *static_cast<const uint4*>(from);
}

// 16 bytes into shared memory, or zeros where `inside` is false; `from` is then not read.
__device__ __forceinline__ void copy16_or_zero(void* to, const void* from, bool inside) {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(unsigned(__cvta_generic_to_shared(to))), "l"(from),
               "r"(inside ? 16 : 0) : "memory");
#else
  *static_cast<uint4*>(to) = inside ? *static_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
#endif
}

// Ends a group of copies; copies_done<n>() waits until at most the n latest groups are under way.
__device__ __forceinline__ void end_copies() {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int kPending = 0>
__device__ __forceinline__ void copies_done() {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

}  // namespace fastvoc
