"""Gated activation in Triton. The contract is fastvoc/ops/gated_activation.py.

Memory-bound: two reads and a write (three and two for the gradient) and a score of flops a sample; one flat pass.
"""

import triton
import triton.language as tl
from fastvoc.kernels.configurations import ELEMENTWISE
from fastvoc.kernels.gates import gate, gate_gradient
from fastvoc.kernels.launch import Tuned, accept, on_device_of, tuning_key
from torch import Tensor, empty_like


@triton.jit
def gated_activation_kernel(a_ptr, b_ptr, y_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # 64-bit: B·C·T passes 2³¹
    mask = at < n
    a = tl.load(a_ptr + at, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, gate(a, b), mask=mask)


@triton.jit
def gated_activation_backward_kernel(dy_ptr, a_ptr, b_ptr, da_ptr, db_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    dy = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
    a = tl.load(a_ptr + at, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + at, mask=mask, other=0.0).to(tl.float32)
    da, db, _ = gate_gradient(dy, a, b)
    tl.store(da_ptr + at, da, mask=mask)
    tl.store(db_ptr + at, db, mask=mask)


forward = Tuned(gated_activation_kernel, ELEMENTWISE)
backward = Tuned(gated_activation_backward_kernel, ELEMENTWISE)


def _run(kernel: Tuned, x: Tensor, *args) -> None:
    n = x.numel()
    if n:
        with on_device_of(x):
            kernel(tuning_key(n), lambda c: (triton.cdiv(n, c["BLOCK"]),), *args, n)


def gated_activation_triton(a: Tensor, b: Tensor) -> Tensor:
    a, b = accept(a, b)
    y = empty_like(a)
    _run(forward, a, a, b, y)
    return y


def gated_activation_backward_triton(dy: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    dy, a, b = accept(dy, a, b)
    da, db = empty_like(a), empty_like(b)
    _run(backward, a, dy, a, b, da, db)
    return da, db
