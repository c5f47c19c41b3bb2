// The CPU kernels, one table per instruction set, and which of them this process uses.
#pragma once
#include <cstdint>

#include "core/gated_residual.h"
#include "core/gated_residual_bf16.h"
#include "core/gated_residual_stack.h"

namespace fastvoc {

struct WaveNet;
struct WaveNetJob;
class Barrier;
class Shares;

struct CpuKernels {
  const char* name;
  double (*affine_coupling)(const float* x, const float* log_s, const float* t, float* y, std::int64_t n);  // -> Σ log_s
  void (*affine_coupling_inverse)(const float* y, const float* log_s, const float* t, float* x, std::int64_t n);
  void (*affine_coupling_backward)(const float* dy, float dsum, const float* x, const float* log_s, float* dx,
                                   float* dlog_s, std::int64_t n);
  void (*gated_activation)(const float* a, const float* b, float* y, std::int64_t n);
  void (*gated_activation_backward)(const float* dy, const float* a, const float* b, float* da, float* db, std::int64_t n);
  void (*gated_residual_backward)(const GatedResidualBackward& job, GatedResidualBackward::Phase phase, int thread,
                                  std::int64_t first, std::int64_t last);
  void (*gated_residual_bf16_pack)(const GatedResidualBf16& job, bool gradient);
  void (*gated_residual_bf16)(const GatedResidualBf16& job, GatedResidualBf16::Phase phase, int thread, std::int64_t first,
                              std::int64_t last);
  void (*invertible_conv1x1)(const float* w, const float* x, float* y, int C, std::int64_t T, std::int64_t first,
                             std::int64_t last);
  void (*invertible_conv1x1_backward)(const float* w, const float* dy, const float* x, float* dx, double* dw, int C,
                                      std::int64_t T, std::int64_t first, std::int64_t last);
  void (*upsample_fir)(const float* in, const float* weight, float* out, std::int64_t n_frames, std::int64_t first_in,
                       std::int64_t first_out, std::int64_t n_out, int C, int scale, int n_taps, int freq_taps, int first,
                       float bias, float slope, int edge);
  void (*upsample_mix)(const float* in, const float* weight, const float* bias, float* out, std::int64_t n_frames,
                       std::int64_t first_in, std::int64_t first_out, std::int64_t n_out, int C, int C_out, int scale,
                       int n_taps, int first, int edge);
  std::int64_t (*wavenet_workspace)(const WaveNet& net, int n_streams, int n_threads);
  void (*wavenet_generate)(const WaveNet& net, const WaveNetJob& job, int thread, int n_threads, Barrier& barrier);
  StackLayout stack_layout;
  std::int64_t (*gated_residual_stack_workspace)(const GatedResidualStack& stack, const GatedResidualJob& job, int n_threads);
  void (*gated_residual_stack)(const GatedResidualStack& stack, const GatedResidualJob& job, int thread, int n_threads,
                               Barrier& barrier, Shares& shares);
  void (*elementary)(int function, const float* x, float* y, std::int64_t n);  // exp, tanh, sigmoid: for the tests of simd.h
};

struct Isa {
  const CpuKernels* kernels;
  bool supported;      // by this machine and its operating system
  bool emulated;       // runs anywhere, slowly; for tests, never chosen unasked
  const char* reason;  // why not, where it is not supported
};

// Every set that was built, weakest first. Machine and system are asked once.
int isa_count();
const Isa& isa(int index);

}  // namespace fastvoc
