"""A whole stack of gated residual layers in one call, for inference: a plan packs the weights once and runs many times.

    x_0 = x;   x_{l+1}, s_l = gated_residual(x_l, …, cond = W_cond[l]·c, step[l]);   y = Σ_l s_l

    x (B, T, R)   c (B, T, C)   step (B, L, R)   ->   y (B, T, S); for a stack without skips (S = 0) the last x (B, T, R)

With cond_per_layer every layer has a conditioning of its own: c is (L, B, T, C), or any sequence of L tensors (B, T, C),
such as one that makes them when asked.

The layer is defined in ops/gated_residual.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastvoc
from fastvoc import _C
from fastvoc._op import PlanOp, Unsupported, lazy
from fastvoc.errors import ConfigError, DeviceError, DTypeError, ShapeError
from fastvoc.ops.gated_residual import gated_residual_reference
from fastvoc.ops.gated_residual_stack_cuda import CudaPlan


@dataclass
class StackWeights:
    """A gated residual stack in canonical form: gate rows tanh first, scales and weight norm folded. Contiguous tensors.

    L layers, R residual, H half gate, S skip, C conditioning channels, kernel k
    """

    w_in: Tensor  # (L, 2H, R, k)
    b_in: Tensor  # (L, 2H)
    w_cond: Tensor  # (L, 2H, C); C = 0: unconditioned
    w_out: Tensor  # (L, R + S, H); residual rows first
    b_out: Tensor  # (L, R + S)
    dilations: tuple[int, ...]
    causal: bool = False
    rho: float = 1.0
    step_in_residual: bool = False
    cond_per_layer: bool = False

    @property
    def n_skip(self) -> int:
        return self.w_out.shape[1] - self.w_in.shape[2]


class ReferencePlan:
    """The stack in plain torch, in the dtype and on the device of its weights."""

    backend = "reference"

    def __init__(self, weights: StackWeights, precision: str = "fp32", threads: int | None = None):
        if precision != "fp32":
            raise Unsupported("the reference computes in the dtype of its weights")
        self.weights, self.precision = weights, precision

    @torch.no_grad()
    def run(self, x: Tensor, cond: Tensor | Sequence[Tensor] | None = None, step: Tensor | None = None) -> Tensor:
        w = self.weights
        y: Any = 0.0
        conds: Any = cond
        for l, dilation in enumerate(w.dilations):
            c = None if cond is None else F.linear(conds[l] if w.cond_per_layer else conds, w.w_cond[l])
            e = None if step is None else step[:, l]
            layer = w.w_in[l], w.b_in[l], w.w_out[l], w.b_out[l]
            x, s, _ = gated_residual_reference(x, *layer, c, e, dilation, w.causal, w.rho, w.step_in_residual)
            y = y + s
        return y if w.n_skip else x


PRECISIONS = ("fp32", "bf16")


class CpuPlan:
    """Weights packed for csrc/cpu/gated_residual_stack.cpp, one packing per instruction set that ran. Any thread may run it.

    threads: of each run; None: fastvoc.get_num_threads() at the time. Results do not depend on it, bit for bit.
    """

    backend = "cpu"

    def __init__(self, weights: StackWeights, precision: str = "fp32", threads: int | None = None):
        w = weights
        if precision not in PRECISIONS:
            raise ConfigError(f"precision: got {precision!r}, expected one of {list(PRECISIONS)}")
        if threads is not None and threads < 1:
            raise ConfigError(f"threads must be at least 1, got {threads}")
        tensors = w.w_in, w.b_in, w.w_cond, w.w_out, w.b_out
        if any(t.dtype != torch.float32 or not t.is_cpu for t in tensors):
            raise Unsupported("float32 weights on the CPU only")
        self.weights, self.precision, self.threads = w, precision, threads
        self._packed: dict[str, _C.GatedResidualStackPlan] = {}
        self._pack(fastvoc.cpu_isa())

    def _pack(self, isa: str):
        w = self.weights
        arrays: Any = [t.detach().contiguous().numpy() for t in (w.w_in, w.b_in, w.w_cond, w.w_out, w.b_out)]
        options: Any = list(w.dilations), w.causal, w.rho, w.step_in_residual, PRECISIONS.index(self.precision), isa
        self._packed[isa] = _C.GatedResidualStackPlan(*arrays, *options)
        return self._packed[isa]

    def run(self, x: Tensor, cond: Tensor | Sequence[Tensor] | None = None, step: Tensor | None = None) -> Tensor:
        w, (L, _, R, _) = self.weights, self.weights.w_in.shape
        if x.dim() != 3 or x.shape[2] != R:
            raise ShapeError(f"gated_residual_stack: x is {tuple(x.shape)}, expected (B, T, R) with R = {R}")
        B, T, C = *x.shape[:2], w.w_cond.shape[2]
        x, step = _checked("x", x, B, T, R), None if step is None else _checked("step", step, B, L, R)
        out = torch.empty(B, T, w.n_skip or R)
        isa = fastvoc.cpu_isa()
        packed: Any = self._packed.get(isa) or self._pack(isa)
        threads = self.threads or fastvoc.get_num_threads()
        workspace = torch.empty(packed.workspace_bytes(B, T, threads), dtype=torch.uint8)

        def run(first: int, last: int, name: str, cond: Any):
            cond = None if cond is None else _checked(name, cond, B, T, C)
            addresses = [0 if t is None or not t.numel() else t.data_ptr() for t in (x, cond, step, out, workspace)]
            if out.numel():
                packed.run(first, last, B, T, *addresses, threads)

        if w.cond_per_layer and cond is not None:
            for l in range(L):
                run(l, l + 1, f"cond[{l}]", cond[l])
        else:
            run(0, L, "cond", cond)
        return out


def _checked(name: str, t: Tensor, *shape: int) -> Tensor:
    """t, contiguous."""
    if tuple(t.shape) != shape:
        raise ShapeError(f"gated_residual_stack: {name} is {tuple(t.shape)}, expected {shape}")
    if t.dtype != torch.float32:
        raise DTypeError(f"gated_residual_stack: {name} is {t.dtype}; the weights are float32", hint="Use .float().")
    if not t.is_cpu:
        raise DeviceError(f"gated_residual_stack: {name} is on {t.device}, the weights are on the CPU")
    return t.detach().contiguous()


gated_residual_stack = PlanOp(
    "gated_residual_stack",
    cuda=CudaPlan,
    cpu=CpuPlan,
    triton=lazy("fastvoc.kernels.gated_residual_stack", "TritonPlan"),
    reference=ReferencePlan,
)
