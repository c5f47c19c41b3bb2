"""The canonical stack as a module: what WaveGlow, DiffWave, Parallel WaveGAN and Parallel WaveNet have inside.

`forward` is differentiable, layer by layer; `infer` runs the same weights as one plan (ops/gated_residual_stack.py).
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastvoc._op import forced_backend
from fastvoc.errors import ConfigError, ShapeError
from fastvoc.layers.upsample import Stretched, projected
from fastvoc.ops.gated_residual import gated_residual
from fastvoc.ops.gated_residual_stack import Interpolated, Projected, StackWeights, gated_residual_stack


def exact_pointwise(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """A 1×1 convolution, (B, T, C) -> (B, T, C'), in its weights' dtype, under autocast too.

    For a network's last products: rounded to eight bits, quiet bands of sound drown in noise, and a loss sees little else.
    """
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.to(conv.weight.dtype), conv.weight[:, :, 0], conv.bias)


class GatedResidualLayer(nn.Module):
    """conv (2H, R, k), cond (2H, C, 1) without bias, out (R + S, H, 1): residual rows first. Gate rows: tanh first."""

    def __init__(self, residual: int, half_gate: int, skip: int, cond: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(residual, 2 * half_gate, kernel)
        self.cond = nn.Conv1d(cond, 2 * half_gate, 1, bias=False) if cond else None
        self.out = nn.Conv1d(half_gate, residual + skip, 1)


class GatedResidualStack(nn.Module):
    """x (B, T, R), cond (B, T, C), step (B, L, R) -> Σ skips (B, T, S); for skip_channels = 0 the last x (B, T, R).

    cond may also be Stretched (layers/upsample.py): the projections are then made at the frames' rate. With cond_per_layer,
    cond is (L, B, T, C), or a sequence of L tensors (B, T, C). The residual rows of the last layer's
    `out` go nowhere; they are there so that all layers are alike.

    recompute = True: a training step keeps of every layer its input alone and computes the gate's inputs and the
    projected conditioning again in the backward pass: a third of the memory for a third more work. Same gradients.
    """

    def __init__(
        self,
        residual_channels: int,
        gate_channels: int,
        skip_channels: int,
        cond_channels: int,
        kernel_size: int,
        dilations: Iterable[int],
        causal: bool = False,
        rho: float = 1.0,
        step_in_residual: bool = False,
        cond_per_layer: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.recompute = False
        self.dilations = tuple(int(d) for d in dilations)
        if not self.dilations or min(self.dilations) < 1:
            raise ConfigError(f"dilations: got {list(self.dilations)}, expected positive integers, at least one")
        if gate_channels < 2 or gate_channels % 2:
            raise ConfigError(f"gate_channels must be even (tanh half, sigmoid half), got {gate_channels}")
        if kernel_size < 1 or (not causal and kernel_size % 2 == 0):
            raise ConfigError(f"kernel_size: got {kernel_size}; a non-causal stack needs an odd one, a causal one any ≥ 1")
        if residual_channels < 1 or skip_channels < 0 or cond_channels < 0:
            raise ConfigError(
                f"channels must not be negative: residual {residual_channels}, skip {skip_channels}, conditioning {cond_channels}"
            )
        self.residual_channels, self.skip_channels, self.cond_channels = residual_channels, skip_channels, cond_channels
        self.causal, self.rho, self.step_in_residual = causal, rho, step_in_residual
        self.cond_per_layer, self.dropout = cond_per_layer, dropout
        self.layers = nn.ModuleList(
            GatedResidualLayer(residual_channels, gate_channels // 2, skip_channels, cond_channels, kernel_size)
            for _ in self.dilations
        )
        self._plans: dict = {}

    def forward(
        self, x: Tensor, cond: Tensor | Stretched | Sequence[Tensor] | None = None, step: Tensor | None = None
    ) -> Tensor:
        self._check(x, cond, step)
        layer = partial(checkpoint, self._layer, use_reentrant=False) if self.recompute else self._layer
        shares = self._projected_together(cond)
        # A sum of dozens of terms: under autocast they come in half precision
        wide = torch.is_autocast_enabled(x.device.type)
        y: Any = 0.0
        for l in range(len(self.layers)):
            c: Any = cond[l] if self.cond_per_layer and cond is not None else cond
            x, s = layer(l, x, c, None if step is None else step[:, l], None if shares is None else shares[l])
            y = y + (s.float() if wide else s)
        return y if self.skip_channels else x

    def _projected_together(self, cond: Any) -> Sequence[Tensor] | None:
        """Every layer's W_cond·c by one product, whose gradients are one product each, too. None where single ones are as fast
        (wide gates), or where they are to be forgotten.
        """
        layers: Any = self.layers
        wide = self.cond_channels >= 2 * layers[0].conv.out_channels
        if not wide or not isinstance(cond, Tensor) or self.cond_per_layer or self.recompute:
            return None
        return F.linear(cond, torch.cat([layer.cond.weight[:, :, 0] for layer in layers])).chunk(len(layers), 2)

    def _layer(
        self, l: int, x: Tensor, cond: Any, step: Tensor | None, share: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        layer: Any = self.layers[l]
        if share is None and layer.cond is not None:
            share = projected(cond, layer.cond.weight[:, :, 0])
        dropped = F.dropout(x, self.dropout) if self.dropout and self.training else x
        x_out, skip = gated_residual(
            dropped,
            layer.conv.weight,
            layer.conv.bias,
            layer.out.weight[:, :, 0],
            layer.out.bias,
            share,
            step,
            dilation=self.dilations[l],
            causal=self.causal,
            rho=self.rho,
            step_in_residual=self.step_in_residual,
        )
        if dropped is not x:  # dropout is in front of the convolution only: the residual path goes around it
            x_out = x_out + (x - dropped) * self.rho
        return x_out, skip

    def _check(self, x: Tensor, cond, step: Tensor | None) -> None:
        B, T = x.shape[:2]
        if (cond is None) != (self.cond_channels == 0):
            has = "has no conditioning" if self.cond_channels == 0 else "is conditioned: cond is missing"
            raise ShapeError(f"this stack {has}")
        if cond is not None and (isinstance(cond, Tensor | Projected) or not self.cond_per_layer):
            each = B, T, self.cond_channels
            expected = (len(self.dilations), *each) if self.cond_per_layer else each
            shaped = isinstance(cond, Tensor | Interpolated | Projected | Stretched)
            if not shaped or tuple(cond.shape) != expected:
                got = tuple(cond.shape) if shaped else f"a {type(cond).__name__}"
                raise ShapeError(f"cond is {got}, expected {expected}")
        elif cond is not None and len(cond) != len(self.dilations):
            raise ShapeError(f"cond has {len(cond)} tensors, expected one for each of {len(self.dilations)} layers")
        expected = B, len(self.dilations), self.residual_channels
        if step is not None and tuple(step.shape) != expected:
            raise ShapeError(f"step is {tuple(step.shape)}, expected (B, layers, residual_channels) = {expected}")

    @torch.no_grad()
    def weights(self, head: nn.Conv1d | None = None) -> StackWeights:
        """The canonical weights, stacked over the layers, in the parameters' dtype.

        head: a 1×1 convolution of the sum of the skips, which is folded into the skip rows: its output replaces theirs.
        """
        stack = lambda get: torch.stack([get(layer).detach() for layer in self.layers]).contiguous()
        w_in, w_out, b_out = (
            stack(get) for get in (lambda l: l.conv.weight, lambda l: l.out.weight[:, :, 0], lambda l: l.out.bias)
        )
        if head is not None:
            w_out, b_out = self._folded(head, w_out, b_out)
        return StackWeights(
            w_in=w_in,
            b_in=stack(lambda layer: layer.conv.bias),
            w_cond=stack(lambda layer: layer.cond.weight[:, :, 0]) if self.cond_channels else w_in.new_zeros(*w_in.shape[:2], 0),
            w_out=w_out,
            b_out=b_out,
            dilations=self.dilations,
            causal=self.causal,
            rho=self.rho,
            step_in_residual=self.step_in_residual,
            cond_per_layer=self.cond_per_layer,
        )

    def _folded(self, head: nn.Conv1d, w_out: Tensor, b_out: Tensor) -> tuple[Tensor, Tensor]:
        if not self.skip_channels:
            raise ConfigError("a stack without skips has nothing to fold a head into")
        # In float64, since what is rounded here is rounded in every sample
        w, R = head.weight[:, :, 0].double(), self.residual_channels
        skip_w, skip_b = w @ w_out[:, R:].double(), b_out[:, R:].double() @ w.t()
        if head.bias is not None:
            skip_b[-1] += head.bias
        w_out = torch.cat([w_out[:, :R], skip_w.to(w_out)], 1)
        return w_out, torch.cat([b_out[:, :R], skip_b.to(b_out)], 1)

    def plan(self, precision: str = "fp32", threads: int | None = None, head: nn.Conv1d | None = None) -> Any:
        """The packed weights for this device, precision and forced backend; made anew when a parameter has changed."""
        key = forced_backend(), precision, threads, head is not None
        parameters = [*self.parameters(), *(head.parameters() if head is not None else ())]
        # An inference tensor cannot change in place, and counts no versions
        stamp = tuple((p.data_ptr(), 0 if p.is_inference() else p._version, p.dtype) for p in parameters)
        if self._plans.get("stamp") != stamp:
            self._plans = {"stamp": stamp}
        if key not in self._plans:
            device = next(self.parameters()).device
            self._plans[key] = gated_residual_stack.plan(device, self.weights(head), precision=precision, threads=threads)
        return self._plans[key]

    def infer(
        self,
        x: Tensor,
        cond: Tensor | Interpolated | Projected | Sequence[Tensor] | None = None,
        step: Tensor | None = None,
        *,
        precision: str = "fp32",
        threads: int | None = None,
        head: nn.Conv1d | None = None,
    ) -> Tensor:
        """`forward` without gradients, on the fastest backend. Arguments and result as forward's.

        cond  may also be Interpolated, or what `project` returned
        head  a 1×1 convolution behind the sum of the skips; with it the result is its output
        """
        self._check(x, cond, step)
        plan = self.plan(precision, threads, head)
        if isinstance(cond, Interpolated) and not hasattr(plan, "project"):
            cond = cond.expanded()
        return plan.run(x, cond, step)

    def project(
        self, cond: Tensor | Sequence[Tensor], max_bytes: int, *, precision: str = "fp32", threads: int | None = None
    ) -> Tensor | Projected | Sequence[Tensor]:
        """cond for many calls of `infer`, of the same precision: where the backend can, what does not depend on x is
        computed here, for as many layers as max_bytes hold.
        """
        plan = self.plan(precision, threads)
        return plan.project(cond, max_bytes) if hasattr(plan, "project") else cond

    @property
    def reach(self) -> int:
        """Samples before and after (causal: before) that the result at one sample depends on."""
        first: Any = self.layers[0]
        taps = first.conv.kernel_size[0] - 1
        return sum(self.dilations) * taps // (1 if self.causal else 2)

    def __getstate__(self):
        return {**self.__dict__, "_plans": {}}  # packed weights are made anew where the copy is used
