"""Affine coupling in Triton. The contract is fastvoc/ops/affine_coupling.py.

Memory-bound: three reads and a write a sample. Σ log_s comes out of the same pass: every block writes its sum, and the
blocks' sums are added afterwards in a fixed order, so that the log-determinant is the same in every run.
"""

import torch
import triton
import triton.language as tl
from fastvoc.kernels.configurations import ELEMENTWISE
from fastvoc.kernels.launch import Tuned, accept, on_device_of, tuning_key
from torch import Tensor

SUM_BLOCK = 1024  # samples of one partial sum; no matter of tuning, so that the sum's order is not either


@triton.jit
def block_of(n, BLOCK: tl.constexpr):
    """-> the item, and the places inside it (64-bit) of this program's block"""
    n_blocks = tl.cdiv(n, BLOCK)
    item = (tl.program_id(0) // n_blocks).to(tl.int64)
    return item, (tl.program_id(0) % n_blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def affine_coupling_kernel(
    x_ptr, log_s_ptr, t_ptr, y_ptr, sums_ptr, n, x_stride, log_s_stride, t_stride, BLOCK: tl.constexpr
):
    item, at = block_of(n, BLOCK)
    mask = at < n
    x = tl.load(x_ptr + item * x_stride + at, mask=mask, other=0.0).to(tl.float32)
    log_s = tl.load(log_s_ptr + item * log_s_stride + at, mask=mask, other=0.0).to(tl.float32)
    t = tl.load(t_ptr + item * t_stride + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + item * n + at, x * tl.exp(log_s) + t, mask=mask)
    tl.store(sums_ptr + tl.program_id(0).to(tl.int64), tl.sum(log_s, axis=0))


@triton.jit
def affine_coupling_inverse_kernel(
    y_ptr, log_s_ptr, t_ptr, x_ptr, n, y_stride, log_s_stride, t_stride, BLOCK: tl.constexpr
):
    item, at = block_of(n, BLOCK)
    mask = at < n
    y = tl.load(y_ptr + item * y_stride + at, mask=mask, other=0.0).to(tl.float32)
    log_s = tl.load(log_s_ptr + item * log_s_stride + at, mask=mask, other=0.0).to(tl.float32)
    t = tl.load(t_ptr + item * t_stride + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(x_ptr + item * n + at, (y - t) * tl.exp(-log_s), mask=mask)


@triton.jit
def affine_coupling_backward_kernel(
    dy_ptr, dsum_ptr, x_ptr, log_s_ptr, dx_ptr, dlog_s_ptr, n, dy_stride, x_stride, log_s_stride, BLOCK: tl.constexpr
):
    item, at = block_of(n, BLOCK)
    mask = at < n
    dy = tl.load(dy_ptr + item * dy_stride + at, mask=mask, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + item * x_stride + at, mask=mask, other=0.0).to(tl.float32)
    log_s = tl.load(log_s_ptr + item * log_s_stride + at, mask=mask, other=0.0).to(tl.float32)
    dx = dy * tl.exp(log_s)
    tl.store(dx_ptr + item * n + at, dx, mask=mask)
    tl.store(dlog_s_ptr + item * n + at, dx * x + tl.load(dsum_ptr + item).to(tl.float32), mask=mask)


forward = Tuned(affine_coupling_kernel, {size: [{"num_warps": 4, "num_stages": 1}] for size in (2, 4)})
inverse = Tuned(affine_coupling_inverse_kernel, ELEMENTWISE)
backward = Tuned(affine_coupling_backward_kernel, ELEMENTWISE)


def _accept_items(*tensors: Tensor) -> list[Tensor]:
    """Every item in one piece; the items may lie apart, as the halves of a tensor's channels do."""
    return accept(*(x if x[:1].is_contiguous() else x.contiguous() for x in tensors), contiguous=False)


def affine_coupling_triton(x: Tensor, log_s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    x, log_s, t = _accept_items(x, log_s, t)
    (B, C, T), y = x.shape, torch.empty(x.shape, dtype=x.dtype, device=x.device)
    sums = torch.empty(B, triton.cdiv(C * T, SUM_BLOCK), dtype=torch.float32, device=x.device)
    if x.numel():
        with on_device_of(x):
            strides = x.stride(0), log_s.stride(0), t.stride(0)
            forward((), lambda c: (sums.numel(),), x, log_s, t, y, sums, C * T, *strides, BLOCK=SUM_BLOCK)
    return y, sums.sum(1).to(x.dtype)


def affine_coupling_inverse_triton(y: Tensor, log_s: Tensor, t: Tensor) -> Tensor:
    y, log_s, t = _accept_items(y, log_s, t)
    (B, C, T), x = y.shape, torch.empty(y.shape, dtype=y.dtype, device=y.device)
    if y.numel():
        with on_device_of(y):
            strides = y.stride(0), log_s.stride(0), t.stride(0)
            blocks = lambda c: (B * triton.cdiv(C * T, c["BLOCK"]),)
            inverse(tuning_key(y.numel()), blocks, y, log_s, t, x, C * T, *strides)
    return x


def affine_coupling_backward_triton(dy: Tensor, dsum: Tensor, x: Tensor, log_s: Tensor) -> tuple[Tensor, Tensor]:
    dy, x, log_s = _accept_items(dy, x, log_s)
    (dsum,) = accept(dsum)
    B, C, T = x.shape
    dx, dlog_s = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    if x.numel():
        with on_device_of(x):
            strides = dy.stride(0), x.stride(0), log_s.stride(0)
            blocks = lambda c: (B * triton.cdiv(C * T, c["BLOCK"]),)
            backward(tuning_key(x.numel()), blocks, dy, dsum, x, log_s, dx, dlog_s, C * T, *strides)
    return dx, dlog_s
