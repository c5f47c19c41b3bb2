"""A whole stack of gated residual layers in one call, for inference: a plan packs the weights once and runs many times.

    x_0 = x;   x_{l+1}, s_l = gated_residual(x_l, …, cond = W_cond[l]·c, step[l]);   y = Σ_l s_l

    x (B, T, R)   c (B, T, C)   step (B, L, R)   ->   y (B, T, S); for a stack without skips (S = 0) the last x (B, T, R)

With cond_per_layer every layer has a conditioning of its own: c is (L, B, T, C), or any sequence of L tensors (B, T, C),
such as one that makes them when asked. Conditioning may also come at a lower rate (Interpolated), or be projected once for
many runs (Projected).

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
from fastvoc._cpus import check_threads
from fastvoc._memory import empty
from fastvoc._op import PlanOp, Unsupported, lazy
from fastvoc._torch_threads import callers_torch_threads
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


@dataclass
class Interpolated:
    """Conditioning of which each sample is a sum of few frames: c(t) = Σ_j taps[t, j]·frames[first[t] + j], all bands alike.

    W_cond·c(t) is then Σ_j taps[t, j]·(W_cond·frames)[first[t] + j]: a plan multiplies the frames alone.
    """

    frames: Tensor  # (B, F, C)
    first: Tensor  # (T,) int32
    taps: Tensor  # (T, n_taps)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, T, C): of what it stands for"""
        return self.frames.shape[0], len(self.first), self.frames.shape[2]

    def expanded(self) -> Tensor:
        """(B, T, C)"""
        seen = self.first.long()[:, None] + torch.arange(self.taps.shape[1], device=self.first.device)
        return torch.einsum("tj,btjc->btc", self.taps, self.frames[:, seen])


@dataclass
class Projected:
    """W_cond·c at the stack's own rate, for runs of one plan with the same conditioning: what its `project` returns.

    Of how many layers is a matter of memory: a run's result is the same, bit for bit.
    """

    packed: object  # of the plan: the weights, and with them the order of the columns
    layers: Tensor  # (n, B, T, columns) of the first n layers
    cond: Tensor | Sequence[Tensor]  # as `run` takes it, for the other layers
    shape: tuple[int, ...]  # of cond


class ReferencePlan:
    """The stack in plain torch, in the dtype and on the device of its weights."""

    backend = "reference"

    def __init__(self, weights: StackWeights, precision: str = "fp32", threads: int | None = None):
        if precision != "fp32":
            raise Unsupported("the reference computes in the dtype of its weights")
        self.weights, self.precision = weights, precision

    @torch.no_grad()
    @callers_torch_threads()
    def run(
        self, x: Tensor, cond: Tensor | Interpolated | Sequence[Tensor] | None = None, step: Tensor | None = None
    ) -> Tensor:
        w = self.weights
        y: Any = 0.0
        conds: Any = cond.expanded() if isinstance(cond, Interpolated) else cond
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
        if threads is not None:
            check_threads(threads)
        tensors = w.w_in, w.b_in, w.w_cond, w.w_out, w.b_out
        if any(t.dtype != torch.float32 or not t.is_cpu for t in tensors):
            raise Unsupported("float32 weights on the CPU only")
        self.weights, self.precision, self.threads = w, precision, threads
        self._packed: dict[str, _C.GatedResidualStackPlan] = {}
        self._pack(fastvoc.cpu_isa())

    def _packed_here(self):
        isa = fastvoc.cpu_isa()
        return self._packed.get(isa) or self._pack(isa)

    def _pack(self, isa: str):
        w = self.weights
        arrays: Any = [t.detach().contiguous().numpy() for t in (w.w_in, w.b_in, w.w_cond, w.w_out, w.b_out)]
        options: Any = list(w.dilations), w.causal, w.rho, w.step_in_residual, PRECISIONS.index(self.precision), isa
        self._packed[isa] = _C.GatedResidualStackPlan(*arrays, *options)
        return self._packed[isa]

    def project(self, cond: Tensor | Sequence[Tensor], max_bytes: int | None = None) -> Projected:
        """The conditioning's part of the work, for many runs: of the first layers, as many as max_bytes hold."""
        w, (L, _, C) = self.weights, self.weights.w_cond.shape
        packed = self._packed_here()
        conds: Any = cond
        B, T = (conds[0] if w.cond_per_layer else conds).shape[:2]
        n = L if max_bytes is None else min(L, max_bytes // max(B * T * packed.gate_width * 4, 1))
        layers = empty((n, B, T, packed.gate_width))
        threads = self.threads or fastvoc.get_num_threads()
        workspace = empty((packed.workspace_bytes(B, T, threads),), torch.uint8)

        def project(first: int, last: int, name: str, cond: Tensor):
            cond = _checked(name, cond, B, T, C)
            if cond.numel() and first < last:
                packed.project(first, last, B, T, cond.data_ptr(), layers.data_ptr(), workspace.data_ptr(), threads)

        if w.cond_per_layer:
            for l in range(n):
                project(l, l + 1, f"cond[{l}]", conds[l])
        else:
            project(0, n, "cond", conds)
        return Projected(packed, layers, cond, (L, B, T, C) if w.cond_per_layer else (B, T, C))

    def run(
        self,
        x: Tensor,
        cond: Tensor | Interpolated | Projected | Sequence[Tensor] | None = None,
        step: Tensor | None = None,
    ) -> Tensor:
        w, (L, _, R, _) = self.weights, self.weights.w_in.shape
        if x.dim() != 3 or x.shape[2] != R:
            raise ShapeError(f"gated_residual_stack: x is {tuple(x.shape)}, expected (B, T, R) with R = {R}")
        B, T, C = *x.shape[:2], w.w_cond.shape[2]
        x, step = _checked("x", x, B, T, R), None if step is None else _checked("step", step, B, L, R)
        out = empty((B, T, w.n_skip or R))
        taps_of: tuple[Tensor | None, Tensor | None, int] = None, None, 0
        projected, apart = None, isinstance(cond, Projected)
        if isinstance(cond, Interpolated):
            first_frames, taps = _checked_taps(cond, B, T, C)
            taps_of, projected, cond = (first_frames, taps, taps.shape[1]), self.project(cond.frames), None
        elif isinstance(cond, Projected):
            if cond.packed not in self._packed.values() or cond.layers.shape[1:3] != (B, T):
                raise ConfigError(f"gated_residual_stack: cond was projected by another plan, or not for (B, T) = {(B, T)}")
            projected, cond = cond, cond.cond if len(cond.layers) < L else None
        packed: Any = self._packed_here() if projected is None else projected.packed
        n_projected, n_frames = (0, 0) if projected is None else projected.layers.shape[::2][:2]
        threads = self.threads or fastvoc.get_num_threads()
        workspace = empty((packed.workspace_bytes(B, T, threads),), torch.uint8)
        layers = None if projected is None else projected.layers
        projection = n_projected, n_frames, _address(layers), _address(taps_of[0]), _address(taps_of[1]), taps_of[2], apart

        def run(first: int, last: int, name: str, cond: Any):
            cond = None if cond is None else _checked(name, cond, B, T, C)
            if out.numel():
                packed.run(first, last, B, T, *map(_address, (x, cond, step, out, workspace)), threads, *projection)

        if w.cond_per_layer and cond is not None:
            run(0, n_projected, "cond", None)
            for l in range(n_projected, L):
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


def _address(t: Tensor | None) -> int:
    return 0 if t is None or not t.numel() else t.data_ptr()


def _checked_taps(cond: Interpolated, B: int, T: int, C: int) -> tuple[Tensor, Tensor]:
    first, taps, n_frames = cond.first, cond.taps, cond.frames.shape[1]
    if cond.frames.shape != (B, n_frames, C) or taps.dim() != 2 or len(taps) != T or first.shape != (T,):
        raise ShapeError(
            f"gated_residual_stack: frames are {tuple(cond.frames.shape)}, first {tuple(first.shape)}, taps {tuple(taps.shape)}, "
            f"expected ({B}, F, {C}), ({T},), ({T}, n_taps)"
        )
    if first.dtype != torch.int32 or taps.dtype != torch.float32:
        raise DTypeError(f"gated_residual_stack: first is {first.dtype}, taps {taps.dtype}, expected int32 and float32")
    if T and not 0 <= int(first.min()) <= int(first.max()) <= n_frames - taps.shape[1]:
        raise ShapeError(
            f"gated_residual_stack: taps reach from frame {int(first.min())} to {int(first.max()) + taps.shape[1] - 1}, "
            f"but there are {n_frames}"
        )
    return first.contiguous(), taps.contiguous()


gated_residual_stack = PlanOp(
    "gated_residual_stack",
    cuda=CudaPlan,
    cpu=CpuPlan,
    triton=lazy("fastvoc.kernels.gated_residual_stack", "TritonPlan"),
    reference=ReferencePlan,
)
