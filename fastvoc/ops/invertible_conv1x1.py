"""Invertible 1×1 convolution: y = W·x for every group of samples, its inverse x = W⁻¹·y, and log|det W|.

    x, y    (B, C, T), float32 | float16 | bfloat16 | float64
    weight  (C, C), like x

The inverse and the determinant of the C × C matrix are taken in float64; the inverse of the operator is the operator
with W⁻¹.

Kingma and Dhariwal 2018, "Glow: Generative Flow with Invertible 1×1 Convolutions", section 3.2; Prenger et al. 2019,
"WaveGlow", eq. 10-11.
"""

import torch
from torch import Tensor

from fastvoc import _C, _cuda
from fastvoc._memory import empty
from fastvoc._op import Op, Unsupported, autocast, launch, lazy, needs_grad
from fastvoc.errors import ConfigError, DeviceError, DTypeError, ShapeError

MAX_CHANNELS = 32  # of the kernels in csrc; a larger matrix is torch's own trade


def _on_cpu(*tensors: Tensor) -> list[Tensor]:
    for t in tensors:
        if t.dtype is not torch.float32 or t.is_cuda:
            raise Unsupported("float32 on the CPU only")
    if tensors[0].shape[1] > MAX_CHANNELS:
        raise Unsupported(f"at most {MAX_CHANNELS} channels")
    return [t.contiguous() for t in tensors]


def _on_cuda(*tensors: Tensor) -> list[Tensor]:
    if tensors[0].shape[1] > MAX_CHANNELS:
        raise Unsupported(f"at most {MAX_CHANNELS} channels")
    return [t.contiguous() for t in tensors]


def invertible_conv1x1_reference(x: Tensor, weight: Tensor) -> Tensor:
    return torch.matmul(weight, x)


def invertible_conv1x1_cpu(x: Tensor, weight: Tensor) -> Tensor:
    x, weight = _on_cpu(x, weight)
    y = empty(x.shape)
    launch(_C.invertible_conv1x1_cpu, weight, x, y, *x.shape)
    return y


def invertible_conv1x1_cuda(x: Tensor, weight: Tensor) -> Tensor:
    library, dtype, (x, weight) = _cuda.library(), _cuda.dtype_code(x), _on_cuda(x, weight)
    y = torch.empty_like(x)
    library.call("invertible_conv1x1", weight, x, y, *x.shape, dtype)
    return y


def invertible_conv1x1_backward_reference(dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """-> dx, dweight (without the determinant's share)"""
    return torch.matmul(weight.t(), dy), torch.matmul(dy.transpose(0, 1).flatten(1), x.transpose(0, 1).flatten(1).t())


def invertible_conv1x1_backward_cpu(dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    dy, x, weight = _on_cpu(dy, x, weight)
    dx, dweight = empty(x.shape), empty(weight.shape)
    launch(_C.invertible_conv1x1_backward_cpu, weight, dy, x, dx, dweight, *x.shape)
    return dx, dweight


def invertible_conv1x1_backward_cuda(dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    library, dtype, (dy, x, weight) = _cuda.library(), _cuda.dtype_code(x), _on_cuda(dy, x, weight)
    dx, dweight = torch.empty_like(x), torch.zeros_like(weight)
    shares = x.new_empty(library.number("invertible_conv1x1_shares", x.shape[1]), dtype=torch.float32)
    counter = x.new_zeros(1, dtype=torch.int32)
    library.call("invertible_conv1x1_backward", weight, dy, x, dx, dweight, shares, counter, *x.shape, dtype)
    return dx, dweight


# B, channels, groups of samples (8 samples each in WaveGlow)
CASES = {
    "waveglow flow, 1 s": (1, 8, 2756),
    "waveglow late flow, 1 s": (1, 4, 2756),
    "waveglow flow, 1 min": (1, 8, 165375),
    "waveglow training batch": (24, 8, 2000),
    "waveglow, 24 × 10 s": (24, 8, 27562),
    "in cache": (1, 6, 250),
    "ragged": (3, 7, 1013),
    "wide": (1, 32, 257),
    "single": (1, 1, 1),
}


def _contiguous_like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


invertible_conv1x1_fwd = Op(
    "invertible_conv1x1(Tensor x, Tensor weight) -> Tensor",
    reference=invertible_conv1x1_reference,
    fake=lambda x, weight: _contiguous_like(x),
    cpu=invertible_conv1x1_cpu,
    cuda=invertible_conv1x1_cuda,
    triton=lazy("fastvoc.kernels.invertible_conv1x1", "invertible_conv1x1_triton"),
    inputs=lambda B, C, T, rand: (rand(B, C, T), rand(C, C) / C**0.5),
    cases=CASES,
    public=lambda x, weight: invertible_conv1x1(x, weight)[0],  # type: ignore[has-type]  # it stands below
)

invertible_conv1x1_bwd = Op(
    "invertible_conv1x1_backward(Tensor dy, Tensor x, Tensor weight) -> (Tensor, Tensor)",
    reference=invertible_conv1x1_backward_reference,
    fake=lambda dy, x, weight: (_contiguous_like(x), _contiguous_like(weight)),
    cpu=invertible_conv1x1_backward_cpu,
    cuda=invertible_conv1x1_backward_cuda,
    triton=lazy("fastvoc.kernels.invertible_conv1x1", "invertible_conv1x1_backward_triton"),
    inputs=lambda B, C, T, rand: (rand(B, C, T), rand(B, C, T), rand(C, C) / C**0.5),
    cases=CASES,
)


class _InvertibleConv1x1(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return invertible_conv1x1_fwd(x, weight)

    @staticmethod
    def backward(ctx, dy):
        return _InvertibleConv1x1Backward.apply(dy, *ctx.saved_tensors)


class _InvertibleConv1x1Backward(torch.autograd.Function):
    """A Function of its own, so that the gradient has a gradient."""

    @staticmethod
    def forward(ctx, dy, x, weight):
        ctx.save_for_backward(dy, x, weight)
        return invertible_conv1x1_bwd(dy, x, weight)

    @staticmethod
    def backward(ctx, ddx, ddweight):
        # dx = Wᵀ·dy, dW = Σ dy·xᵀ
        dy, x, weight = ctx.saved_tensors
        ddy = torch.matmul(weight, ddx) + torch.matmul(ddweight, x)
        return ddy, torch.matmul(ddweight.t(), dy), torch.einsum("bit,bjt->ij", dy, ddx)


@autocast("float32")
def invertible_conv1x1(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """W·x (B, C, T) and log|det W| (a scalar), with gradients up to the second.

    The log-determinant of the whole map is B·T times the second. Raises ShapeError, DTypeError, DeviceError.
    """
    _check("invertible_conv1x1", "x", x, weight)
    return _apply(x, weight), log_abs_det(weight)


@autocast("float32")
def invertible_conv1x1_inverse(y: Tensor, weight: Tensor) -> Tensor:
    """W⁻¹·y (B, C, T), with gradients. Raises ConfigError where W is singular; ShapeError, DTypeError, DeviceError.

    The inverse is computed in every call: keep `inverse(weight)` and call `invertible_conv1x1` with it where W stays.
    """
    _check("invertible_conv1x1_inverse", "y", y, weight)
    return _apply(y, inverse(weight))


def _apply(x: Tensor, weight: Tensor) -> Tensor:
    return _InvertibleConv1x1.apply(x, weight) if needs_grad(x, weight) else invertible_conv1x1_fwd(x, weight)


def log_abs_det(weight: Tensor) -> Tensor:
    """log|det W| of (C, C), computed in float64, in the weight's dtype; -∞ for a singular one."""
    return torch.linalg.slogdet(weight.double())[1].to(weight.dtype)


def inverse(weight: Tensor) -> Tensor:
    """W⁻¹ of (C, C), computed in float64, in the weight's dtype. Raises ConfigError where W cannot be inverted in it."""
    exact = weight.double()
    inverted, failed = torch.linalg.inv_ex(exact)
    condition = exact.norm() * inverted.norm()
    limit = 1 / torch.finfo(torch.float64 if weight.dtype == torch.float64 else torch.float32).eps
    if failed or not condition < limit:  # NaN is not less either
        shown = "infinite" if failed or not condition.isfinite() else f"{float(condition):.3g}"
        raise ConfigError(
            f"invertible_conv1x1: the {weight.shape[0]} × {weight.shape[0]} matrix is singular: its condition number is "
            f"{shown}, at most {limit:.1g} can be inverted.",
            hint="An invertible 1×1 convolution starts as an orthogonal matrix; training has broken it down.",
        )
    return inverted.to(weight.dtype)


def _check(op: str, name: str, x: Tensor, weight: Tensor) -> None:
    if not x.is_floating_point():
        raise DTypeError(f"{op}: {name} is {x.dtype}, expected a floating point tensor.", hint="Convert it with .float().")
    if weight.dtype != x.dtype:
        raise DTypeError(f"{op}: {name} is {x.dtype} but weight is {weight.dtype}.", hint=f"Convert one with .to({x.dtype}).")
    if weight.device != x.device:
        raise DeviceError(f"{op}: {name} is on {x.device} but weight is on {weight.device}.", hint="Move one with .to(device).")
    if x.dim() != 3 or weight.dim() != 2 or weight.shape[0] != weight.shape[1] or x.shape[1] != weight.shape[0]:
        raise ShapeError(f"{op}: {name} is {tuple(x.shape)} and weight {tuple(weight.shape)}; expected (B, C, T) and (C, C)")
