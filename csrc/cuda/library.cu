// The library as a whole: its version, its errors, and loading all kernels ahead of time.
#include "cuda/common.cuh"

namespace fastvoc {

static thread_local std::string last_error;

int remember(int code, const char* text) {
  last_error = text;
  return code;
}

std::vector<void (*)()>& warmups() {
  static std::vector<void (*)()> list;
  return list;
}

}  // namespace fastvoc

// The interface of this library; fastvoc/_cuda.py refuses another number.
FASTVOC_API int fastvoc_cuda_interface() { return 1; }

// What the last call of this thread that did not return 0 died of.
FASTVOC_API const char* fastvoc_cuda_error() { return fastvoc::last_error.c_str(); }

// Loads every kernel onto the current device.
FASTVOC_API int fastvoc_cuda_warmup() {
  return fastvoc::guarded([] {
    for (auto touch : fastvoc::warmups()) touch();
  });
}

#ifndef __CUDACC__
// The emulator's schedule: 0 takes blocks and threads in order, any other number shuffles them.
FASTVOC_API void fastvoc_emulator_seed(unsigned seed) { emulator::Scheduler::get().seed(seed); }

// The emulated device: multiprocessors, shared memory a block may have, compute capability.
FASTVOC_API void fastvoc_emulator_device(int processors, int shared_bytes, int major, int minor) {
  const int values[] = {processors, shared_bytes, major, minor};
  std::copy(values, values + 4, emulator::attributes);
}
#endif
