"""Gated activation: y = tanh(a)·σ(b).

    a, b  any equal shape, float32 | float16 | bfloat16 | float64
    y     like a

van den Oord et al. 2016, "WaveNet: A Generative Model for Raw Audio", eq. 2.
"""

import torch
from torch import Tensor

from fastvoc import _C, _cuda
from fastvoc._memory import empty
from fastvoc._op import Op, Unsupported, autocast, launch, lazy, needs_grad, same_kind


def _on_cpu(*tensors: Tensor) -> list[Tensor]:
    if any(t.dtype != torch.float32 or t.is_cuda for t in tensors):
        raise Unsupported("float32 on the CPU only")
    return [t.contiguous() for t in tensors]


def gated_activation_reference(a: Tensor, b: Tensor) -> Tensor:
    return torch.tanh(a) * torch.sigmoid(b)


def gated_activation_cpu(a: Tensor, b: Tensor) -> Tensor:
    a, b = _on_cpu(a, b)
    y = empty(a.shape)
    launch(_C.gated_activation_cpu, a, b, y, a.numel())
    return y


def gated_activation_cuda(a: Tensor, b: Tensor) -> Tensor:
    dtype, a, b = _cuda.dtype_code(a), a.contiguous(), b.contiguous()
    y = torch.empty_like(a)
    _cuda.library().call("gated_activation", a, b, y, a.numel(), dtype)
    return y


def gated_activation_backward_reference(dy: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    t, s = torch.tanh(a), torch.sigmoid(b)
    return dy * s * (1 - t * t), dy * t * s * (1 - s)


def gated_activation_backward_cpu(dy: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    dy, a, b = _on_cpu(dy, a, b)
    da, db = empty(a.shape), empty(b.shape)
    launch(_C.gated_activation_backward_cpu, dy, a, b, da, db, a.numel())
    return da, db


def gated_activation_backward_cuda(dy: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    dtype, dy, a, b = _cuda.dtype_code(a), dy.contiguous(), a.contiguous(), b.contiguous()
    da, db = torch.empty_like(a), torch.empty_like(b)
    _cuda.library().call("gated_activation_backward", dy, a, b, da, db, a.numel(), dtype)
    return da, db


CASES = {
    "nv-wavenet layer, 1 s": (1, 64, 16000),
    "waveglow layer, 1 s": (1, 256, 2756),
    "diffwave layer, 1 s": (1, 64, 22050),
    "in cache": (1, 64, 100),
    "ragged": (3, 7, 1013),
    "single": (1, 1, 1),
}


def _contiguous_like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


gated_activation_fwd = Op(
    "gated_activation(Tensor a, Tensor b) -> Tensor",
    reference=gated_activation_reference,
    fake=lambda a, b: _contiguous_like(a),
    cpu=gated_activation_cpu,
    cuda=gated_activation_cuda,
    triton=lazy("fastvoc.kernels.gated_activation", "gated_activation_triton"),
    inputs=lambda *shape, rand: (rand(*shape) * 3, rand(*shape) * 3),
    cases=CASES,
    public=lambda a, b: gated_activation(a, b),  # type: ignore[has-type]  # it stands below
)

gated_activation_bwd = Op(
    "gated_activation_backward(Tensor dy, Tensor a, Tensor b) -> (Tensor, Tensor)",
    reference=gated_activation_backward_reference,
    fake=lambda dy, a, b: (_contiguous_like(a), _contiguous_like(b)),
    cpu=gated_activation_backward_cpu,
    cuda=gated_activation_backward_cuda,
    triton=lazy("fastvoc.kernels.gated_activation", "gated_activation_backward_triton"),
    inputs=lambda *shape, rand: (rand(*shape), rand(*shape) * 3, rand(*shape) * 3),
    cases=CASES,
)


class _GatedActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return gated_activation_fwd(a, b)

    @staticmethod
    def backward(ctx, dy):
        return _GatedActivationBackward.apply(dy, *ctx.saved_tensors)


class _GatedActivationBackward(torch.autograd.Function):
    """A Function of its own, so that the gradient has a gradient."""

    @staticmethod
    def forward(ctx, dy, a, b):
        ctx.save_for_backward(dy, a, b)
        return gated_activation_bwd(dy, a, b)

    @staticmethod
    def backward(ctx, dda, ddb):
        # with t = tanh(a), s = σ(b): da = dy·s·(1 - t²), db = dy·t·s·(1 - s)
        dy, a, b = ctx.saved_tensors
        t, s = torch.tanh(a), torch.sigmoid(b)
        dt, ds = 1 - t * t, s * (1 - s)
        return (
            dda * s * dt + ddb * t * ds,
            dda * dy * s * -2 * t * dt + ddb * dy * dt * ds,
            dda * dy * ds * dt + ddb * dy * t * ds * (1 - 2 * s),
        )


@autocast("widest")
def gated_activation(a: Tensor, b: Tensor) -> Tensor:
    """tanh(a)·σ(b), elementwise, with gradients of any order up to the second.

    a, b: equal shape, dtype and device, floating point. Raises ShapeError, DTypeError, DeviceError.
    """
    same_kind("gated_activation", a=a, b=b)
    return _GatedActivation.apply(a, b) if needs_grad(a, b) else gated_activation_fwd(a, b)
