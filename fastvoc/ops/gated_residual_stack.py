"""A whole stack of gated residual layers in one call, for inference: a plan packs the weights once and runs many times.

    x_0 = x;   x_{l+1}, s_l = gated_residual(x_l, …, cond = W_cond[l]·c, step[l]);   y = Σ_l s_l

    x (B, T, R)   c (B, T, C)   step (B, L, R)   ->   y (B, T, S); for a stack without skips (S = 0) the last x (B, T, R)

With cond_per_layer every layer has a conditioning of its own: c is (L, B, T, C), or any sequence of L tensors (B, T, C),
such as one that makes them when asked.

The layer is defined in ops/gated_residual.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvoc._op import PlanOp, Unsupported
from fastvoc.ops.gated_residual import gated_residual_reference


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
        w, y = self.weights, 0.0
        for l, dilation in enumerate(w.dilations):
            c = None if cond is None else F.linear(cond[l] if w.cond_per_layer else cond, w.w_cond[l])
            e = None if step is None else step[:, l]
            layer = w.w_in[l], w.b_in[l], w.w_out[l], w.b_out[l]
            x, s, _ = gated_residual_reference(x, *layer, c, e, dilation, w.causal, w.rho, w.step_in_residual)
            y = y + s
        return y if w.n_skip else x


gated_residual_stack = PlanOp("gated_residual_stack", reference=ReferencePlan)
