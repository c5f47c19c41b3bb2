// The table of this instruction set's kernels (core/isa.h).
#include "core/isa.h"

#include "cpu/products.h"

namespace fastvoc::FASTVOC_ISA {

double affine_coupling(const float*, const float*, const float*, float*, std::int64_t);
void affine_coupling_inverse(const float*, const float*, const float*, float*, std::int64_t);
void affine_coupling_backward(const float*, float, const float*, const float*, float*, float*, std::int64_t);
void gated_activation(const float*, const float*, float*, std::int64_t);
void gated_activation_backward(const float*, const float*, const float*, float*, float*, std::int64_t);
void gated_residual_backward(const GatedResidualBackward&, GatedResidualBackward::Phase, int, std::int64_t, std::int64_t);
void gated_residual_bf16_pack(const GatedResidualBf16&, bool);
void gated_residual_bf16(const GatedResidualBf16&, GatedResidualBf16::Phase, int, std::int64_t, std::int64_t);
void invertible_conv1x1(const float*, const float*, float*, int, std::int64_t, std::int64_t, std::int64_t);
void invertible_conv1x1_backward(const float*, const float*, const float*, float*, double*, int, std::int64_t, std::int64_t,
                                 std::int64_t);
void upsample_fir(const float*, const float*, float*, std::int64_t, std::int64_t, std::int64_t, std::int64_t, int, int, int,
                  int, int, float, float, int);
void upsample_mix(const float*, const float*, const float*, float*, std::int64_t, std::int64_t, std::int64_t, std::int64_t,
                  int, int, int, int, int, int);
std::int64_t wavenet_workspace(const WaveNet&, int, int);
void wavenet_generate(const WaveNet&, const WaveNetJob&, int, int, Barrier&);
std::int64_t gated_residual_stack_workspace(const GatedResidualStack&, const GatedResidualJob&, int);
void gated_residual_stack(const GatedResidualStack&, const GatedResidualJob&, int, int, Barrier&, Shares&);

namespace {

void elementary(int function, const float* x, float* y, std::int64_t n) {
  for (std::int64_t i = 0; i + kLanes <= n; i += kLanes) {
    const vfloat v = load(x + i);
    store(y + i, function == 0 ? exp(v) : function == 1 ? tanh(v) : sigmoid(v));
  }
}

#define FASTVOC_NAME(x) #x
#define FASTVOC_NAME_OF(x) FASTVOC_NAME(x)

}  // namespace

extern const CpuKernels kKernels;
const CpuKernels kKernels = {
    FASTVOC_NAME_OF(FASTVOC_ISA), affine_coupling, affine_coupling_inverse, affine_coupling_backward,
    gated_activation, gated_activation_backward, gated_residual_backward, gated_residual_bf16_pack,
    gated_residual_bf16, invertible_conv1x1, invertible_conv1x1_backward,
    upsample_fir, upsample_mix, wavenet_workspace, wavenet_generate, {kLanes, kPanel, kInputsBf16, kMinimalBf16}, gated_residual_stack_workspace, gated_residual_stack,
    elementary,
};

}  // namespace fastvoc::FASTVOC_ISA
