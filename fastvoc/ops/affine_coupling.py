"""Affine coupling: y = x·exp(log_s) + t, with Σ log_s per item; and its inverse x = (y - t)·exp(-log_s).

    x, log_s, t  (B, C, T), one dtype, float32 | float16 | bfloat16 | float64; C the half of the channels that is changed
    y            (B, C, T)
    sum_log_s    (B,), the log-determinant of the Jacobian

Dinh et al. 2017, "Density estimation using Real NVP", eq. 7-8; in WaveGlow (Prenger et al. 2019, eq. 7-9) log_s and t
come from a WaveNet-like network of the other half of the channels.
"""

import torch
from torch import Tensor

from fastvoc import _C, _cuda
from fastvoc._memory import empty
from fastvoc._op import Op, Unsupported, autocast, launch, lazy, needs_grad, same_kind
from fastvoc.errors import ShapeError


def _on_cpu(*tensors: Tensor) -> tuple[list, list[Tensor]]:
    """Address and stride of every item of each: an item is in one piece, the items may lie apart, as the halves of a
    tensor's channels do. Then the tensors themselves, which must outlive the call.
    """
    numbers: list = []
    kept = []
    for t in tensors:
        if t.dtype is not torch.float32 or t.is_cuda:
            raise Unsupported("float32 on the CPU only")
        if not t.is_contiguous() and not t[:1].is_contiguous():
            t = t.contiguous()
        kept.append(t)
        numbers += t.data_ptr(), t.stride(0)
    return numbers, kept


def _items(*tensors: Tensor) -> list:
    """Each tensor and its stride from item to item, for the CUDA kernels; a copy where an item is not in one piece."""
    kept = [t if t.is_contiguous() or t[:1].is_contiguous() else t.contiguous() for t in tensors]
    return [argument for t in kept for argument in (_cuda.Strided(t), t.stride(0))]


def affine_coupling_reference(x: Tensor, log_s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return x * torch.exp(log_s) + t, log_s.sum((1, 2))


def affine_coupling_cpu(x: Tensor, log_s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    inputs, _kept = _on_cpu(x, log_s, t)
    B, C, T = x.shape
    y, sums = empty(x.shape), empty((B,))
    launch(_C.affine_coupling_cpu, *inputs, y, sums, B, C * T)
    return y, sums


def affine_coupling_cuda(x: Tensor, log_s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    library, dtype, (B, C, T) = _cuda.library(), _cuda.dtype_code(x), x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return y, x.new_zeros(B)
    sums = x.new_empty(B, dtype=torch.float32)
    parts = x.new_empty(B * library.number("affine_coupling_parts", C * T), dtype=torch.float64)
    counters = x.new_zeros(B, dtype=torch.int32)
    library.call("affine_coupling", *_items(x, log_s, t), y, sums, parts, counters, B, C * T, dtype)
    return y, sums.to(x.dtype)


def affine_coupling_inverse_reference(y: Tensor, log_s: Tensor, t: Tensor) -> Tensor:
    return (y - t) * torch.exp(-log_s)


def affine_coupling_inverse_cpu(y: Tensor, log_s: Tensor, t: Tensor) -> Tensor:
    inputs, _kept = _on_cpu(y, log_s, t)
    B, C, T = y.shape
    x = empty(y.shape)
    launch(_C.affine_coupling_inverse_cpu, *inputs, x, B, C * T)
    return x


def affine_coupling_inverse_cuda(y: Tensor, log_s: Tensor, t: Tensor) -> Tensor:
    library, dtype, (B, C, T) = _cuda.library(), _cuda.dtype_code(y), y.shape
    x = torch.empty(y.shape, dtype=y.dtype, device=y.device)
    library.call("affine_coupling_inverse", *_items(y, log_s, t), x, B, C * T, dtype)
    return x


def affine_coupling_backward_reference(dy: Tensor, dsum: Tensor, x: Tensor, log_s: Tensor) -> tuple[Tensor, Tensor]:
    """-> dx, dlog_s; the gradient of t is dy."""
    dx = dy * torch.exp(log_s)
    return dx, dx * x + dsum[:, None, None]


def affine_coupling_backward_cpu(dy: Tensor, dsum: Tensor, x: Tensor, log_s: Tensor) -> tuple[Tensor, Tensor]:
    (dy_at, dy_stride, *inputs), _kept = _on_cpu(dy, x, log_s)
    B, C, T = x.shape
    dsum, dx, dlog_s = dsum.float().contiguous(), empty(x.shape), empty(x.shape)
    launch(_C.affine_coupling_backward_cpu, dy_at, dy_stride, dsum, *inputs, dx, dlog_s, B, C * T)
    return dx, dlog_s


def affine_coupling_backward_cuda(dy: Tensor, dsum: Tensor, x: Tensor, log_s: Tensor) -> tuple[Tensor, Tensor]:
    library, dtype, (B, C, T) = _cuda.library(), _cuda.dtype_code(x), x.shape
    dx, dlog_s = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    dsum = dsum.float().contiguous()
    library.call("affine_coupling_backward", *_items(dy), dsum, *_items(x, log_s), dx, dlog_s, B, C * T, dtype)
    return dx, dlog_s


# B, channels that are changed, groups of samples (8 samples each in WaveGlow)
CASES = {
    "waveglow flow, 1 s": (1, 4, 2756),
    "waveglow flow, 1 min": (1, 4, 165375),
    "waveglow training batch": (24, 4, 2000),
    "waveglow, 24 × 10 s": (24, 4, 27562),
    "in cache": (1, 2, 250),
    "ragged": (3, 3, 1013),
    "single": (1, 1, 1),
}


def _contiguous_like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _inputs(*shape, rand):
    return rand(*shape), rand(*shape) * 0.5, rand(*shape)


affine_coupling_fwd = Op(
    "affine_coupling(Tensor x, Tensor log_s, Tensor t) -> (Tensor, Tensor)",
    reference=affine_coupling_reference,
    fake=lambda x, log_s, t: (_contiguous_like(x), x.new_empty(x.shape[0])),
    cpu=affine_coupling_cpu,
    cuda=affine_coupling_cuda,
    triton=lazy("fastvoc.kernels.affine_coupling", "affine_coupling_triton"),
    inputs=_inputs,
    cases=CASES,
    public=lambda *args: affine_coupling(*args),  # type: ignore[has-type]  # it stands below
)

affine_coupling_inv = Op(
    "affine_coupling_inverse(Tensor y, Tensor log_s, Tensor t) -> Tensor",
    reference=affine_coupling_inverse_reference,
    fake=lambda y, log_s, t: _contiguous_like(y),
    cpu=affine_coupling_inverse_cpu,
    cuda=affine_coupling_inverse_cuda,
    triton=lazy("fastvoc.kernels.affine_coupling", "affine_coupling_inverse_triton"),
    inputs=_inputs,
    cases=CASES,
    public=lambda *args: affine_coupling_inverse(*args),  # type: ignore[has-type]  # it stands below
)

affine_coupling_bwd = Op(
    "affine_coupling_backward(Tensor dy, Tensor dsum, Tensor x, Tensor log_s) -> (Tensor, Tensor)",
    reference=affine_coupling_backward_reference,
    fake=lambda dy, dsum, x, log_s: (_contiguous_like(x), _contiguous_like(x)),
    cpu=affine_coupling_backward_cpu,
    cuda=affine_coupling_backward_cuda,
    triton=lazy("fastvoc.kernels.affine_coupling", "affine_coupling_backward_triton"),
    inputs=lambda *shape, rand: (rand(*shape), rand(shape[0]), rand(*shape), rand(*shape) * 0.5),
    cases=CASES,
)


class _AffineCoupling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, log_s, t):
        ctx.save_for_backward(x, log_s)
        return affine_coupling_fwd(x, log_s, t)

    @staticmethod
    def backward(ctx, dy, dsum):
        dx, dlog_s = _AffineCouplingBackward.apply(dy, dsum, *ctx.saved_tensors)
        return dx, dlog_s, dy


class _AffineCouplingBackward(torch.autograd.Function):
    """A Function of its own, so that the gradient has a gradient."""

    @staticmethod
    def forward(ctx, dy, dsum, x, log_s):
        ctx.save_for_backward(dy, x, log_s)
        return affine_coupling_bwd(dy, dsum, x, log_s)

    @staticmethod
    def backward(ctx, ddx, ddlog_s):
        # dx = dy·s, dlog_s = dx·x + dsum
        dy, x, log_s = ctx.saved_tensors
        s = torch.exp(log_s)
        ddy = (ddx + ddlog_s * x) * s
        return ddy, ddlog_s.sum((1, 2)), ddlog_s * dy * s, ddy * dy


@autocast("float32")
def affine_coupling(x: Tensor, log_s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """x·exp(log_s) + t (B, C, T) and Σ log_s (B,), with gradients up to the second.

    Raises ShapeError, DTypeError, DeviceError.
    """
    _check("affine_coupling", x=x, log_s=log_s, t=t)
    return _AffineCoupling.apply(x, log_s, t) if needs_grad(x, log_s, t) else affine_coupling_fwd(x, log_s, t)


@autocast("float32")
def affine_coupling_inverse(y: Tensor, log_s: Tensor, t: Tensor) -> Tensor:
    """(y - t)·exp(-log_s), all (B, C, T). A gradient, where one is asked for, is autograd's of this formula.

    Raises ShapeError, DTypeError, DeviceError.
    """
    _check("affine_coupling_inverse", y=y, log_s=log_s, t=t)
    return (affine_coupling_inverse_reference if needs_grad(y, log_s, t) else affine_coupling_inv)(y, log_s, t)


def _check(op: str, **tensors: Tensor) -> None:
    same_kind(op, **tensors)
    name, first = next(iter(tensors.items()))
    if first.dim() != 3:
        raise ShapeError(f"{op}: {name} is {tuple(first.shape)}, expected (B, C, T)")
