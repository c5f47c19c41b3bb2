"""The gated residual stack on the GPU: the plan for csrc/cuda/gated_residual_stack.cu.

The contract: ops/gated_residual_stack.py.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastvoc import _cuda
from fastvoc._op import Unsupported
from fastvoc.errors import ConfigError, DeviceError, DTypeError, ShapeError

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ROW_BYTES, PASS = 64, 128  # of csrc/cuda/gated_residual_stack.cu: what a product takes at a time


def _up(n: int, to: int) -> int:
    return -(-n // to) * to


class CudaPlan:
    """Packed weights on one GPU. Immutable: a run's memory is its workspace, from torch's allocator."""

    backend = "cuda"

    def __init__(self, weights, precision: str = "fp32", threads: int | None = None):
        if precision not in PRECISIONS:
            raise ConfigError(f"precision: got {precision!r}, expected one of {list(PRECISIONS)}")
        self.library, self.weights, self.precision = _cuda.library(), weights, precision
        w, self.dtype = weights, PRECISIONS[precision]
        if w.w_in.dtype != torch.float32:
            raise Unsupported("float32 weights only; they are rounded to the precision here")
        (L, G, R, k), S, C = w.w_in.shape, w.n_skip, w.w_cond.shape[2]
        self.device = w.w_in.device
        self.sizes = torch.tensor([L, k, R, G // 2, S, C, w.causal, w.step_in_residual, _cuda.DTYPE_CODE[self.dtype]])
        self._dilations = np.array(w.dilations, np.int32)
        width = ROW_BYTES // self.dtype.itemsize  # channels that a product reads at a time
        self._weights = torch.cat([self._packed(l, width) for l in range(L)])
        H8, R8 = _up(G // 2, 8), _up(R, 8)
        b_in = F.pad(w.b_in.float().view(L, 2, G // 2), (0, H8 - G // 2)).view(L, 2, H8 // 8, 8).transpose(1, 2).flatten(1)
        b_out = torch.cat([F.pad(w.b_out[:, :R], (0, R8 - R)), w.b_out[:, R:]], 1).float()
        full = lambda b: F.pad(b, (0, _up(b.shape[1], PASS) - b.shape[1]))
        self._biases = torch.cat([full(b_in), full(b_out)], 1).contiguous()

    def _packed(self, l: int, width: int) -> Tensor:
        """W_in and W_out of a layer, in passes of 128 rows, each in chunks of 64 bytes a row."""
        w = self.weights
        _, G, R, k = w.w_in.shape
        H, C = G // 2, w.w_cond.shape[2]
        Rp, Hp, Cp = _up(R, width), _up(H, width), _up(C, width)
        taps = F.pad(w.w_in[l].float(), (0, 0, 0, Rp - R)).transpose(1, 2).flatten(1)  # (2H, k·Rp)
        rows = torch.cat([taps, F.pad(w.w_cond[l].float(), (0, Cp - C))], 1)
        halves = F.pad(rows.view(2, H, -1), (0, 0, 0, _up(H, 8) - H))
        gates = halves.unflatten(1, (-1, 8)).transpose(0, 1).flatten(0, 2)  # 8 rows of tanh, their 8 of sigmoid, …
        out = F.pad(w.w_out[l].float(), (0, Hp - H))
        out = torch.cat([F.pad(out[:R], (0, 0, 0, _up(R, 8) - R)), out[R:]])

        def in_order(m: Tensor) -> Tensor:
            m = F.pad(m, (0, 0, 0, _up(len(m), PASS) - len(m))).to(self.dtype)
            return m.view(-1, PASS, m.shape[1] // width, width).transpose(1, 2).flatten()

        return torch.cat([in_order(gates), in_order(out)])

    @torch.no_grad()
    def run(self, x: Tensor, cond: Tensor | Sequence[Tensor] | None = None, step: Tensor | None = None) -> Tensor:
        """Asynchronous on the current stream; may be captured in a CUDA graph."""
        w, (L, _, R, _) = self.weights, self.weights.w_in.shape
        if x.dim() != 3 or x.shape[2] != R:
            raise ShapeError(f"gated_residual_stack: x is {tuple(x.shape)}, expected (B, T, R) with R = {R}")
        B, T, C = *x.shape[:2], w.w_cond.shape[2]
        x, step = self._checked("x", x, B, T, R), None if step is None else self._checked("step", step, B, L, R)
        out = torch.empty(B, T, w.n_skip or R, device=self.device)
        with _cuda.device_of(x):
            has_step = step is not None
            n_bytes = self.library.number("gated_residual_stack_workspace", self.sizes.data_ptr(), B, T, int(has_step))
        workspace = torch.empty(n_bytes, dtype=torch.uint8, device=self.device)

        def run(first: int, last: int, name: str, cond: Any):
            cond = None if cond is None or not C else self._checked(name, cond, B, T, C)
            self.library.call(
                "gated_residual_stack", self.sizes.data_ptr(), self._dilations.ctypes.data, float(w.rho), self._weights,
                self._biases, x, cond, step, out, workspace, B, T, first, last,
            )  # fmt: skip

        if w.cond_per_layer and cond is not None:
            for l in range(L):
                run(l, l + 1, f"cond[{l}]", cond[l])
        else:
            run(0, L, "cond", cond)
        return out

    def _checked(self, name: str, t: Tensor, *shape: int) -> Tensor:
        """t, contiguous."""
        if tuple(t.shape) != shape:
            raise ShapeError(f"gated_residual_stack: {name} is {tuple(t.shape)}, expected {shape}")
        if t.dtype != torch.float32:
            raise DTypeError(f"gated_residual_stack: {name} is {t.dtype}; the weights are float32", hint="Use .float().")
        if t.device != self.device:
            raise DeviceError(f"gated_residual_stack: {name} is on {t.device}, the weights are on {self.device}")
        return t.detach().contiguous()
