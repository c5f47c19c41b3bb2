"""The training step in plain PyTorch: the same models with the layers that their users write, channels first, by conv1d.

The conditioning is projected at the sample rate, as in the public implementations. What else a model does is common to both,
the operators of the flows excepted, which are their plain formulas here.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

import fastvoc
from fastvoc.layers import GatedResidualStack
from fastvoc.layers.residual_conv1d_glu import ResidualConv1dGLU
from fastvoc.models import WaveGlow, WaveNet


def plain_layer(x, w_in, b_in, w_out, b_out, cond, step, dilation: int, causal: bool, rho: float, step_in_residual: bool):
    """x (B, R, T), cond (B, 2H, T) or None, step (B, R) or None -> x' (B, R, T), skip (B, S, T)"""
    R, reach = x.shape[1], (w_in.shape[2] - 1) * dilation
    u = x if step is None else x + step[:, :, None]
    if causal:
        a = F.conv1d(F.pad(u, (reach, 0)), w_in, b_in, dilation=dilation)
    else:
        a = F.conv1d(u, w_in, b_in, dilation=dilation, padding=reach // 2)
    tanh, sigmoid = (a if cond is None else a + cond).chunk(2, 1)
    out = F.conv1d(torch.tanh(tanh) * torch.sigmoid(sigmoid), w_out, b_out)
    return ((u if step_in_residual else x) + out[:, :R]) * rho, out[:, R:]


def plain_stack(self: GatedResidualStack, x: Tensor, cond: Tensor | None = None, step: Tensor | None = None) -> Tensor:
    """GatedResidualStack.forward, of a stack whose layers share their conditioning."""
    x, y = x.transpose(1, 2), 0.0
    cond = None if cond is None else cond.transpose(1, 2).contiguous()
    for l, layer in enumerate(self.layers):
        c = None if cond is None else F.conv1d(cond, layer.cond.weight)
        weights = layer.conv.weight, layer.conv.bias, layer.out.weight, layer.out.bias
        e = None if step is None else step[:, l]
        x, s = plain_layer(x, *weights, c, e, self.dilations[l], self.causal, self.rho, self.step_in_residual)
        y = y + s
    return (y if self.skip_channels else x).transpose(1, 2)


def plain_glu(self: ResidualConv1dGLU, x: Tensor, cond: Tensor | None) -> tuple[Tensor, Tensor]:
    """ResidualConv1dGLU.time_major without dropout."""
    w_out = torch.cat([self.conv1x1_out.weight, self.conv1x1_skip.weight])
    b_out = torch.cat([self.conv1x1_out.bias, self.conv1x1_skip.bias])
    c = None if cond is None else cond.transpose(1, 2)
    options = self.dilation, self.causal, self.residual_scale, False
    y, s = plain_layer(x.transpose(1, 2), self.conv.weight, self.conv.bias, w_out, b_out, c, None, *options)
    return y.transpose(1, 2), s.transpose(1, 2)


def plain_conditioning(self: WaveNet, c: Tensor, T: int) -> list[Tensor]:
    """WaveNet._conditioning of a model with an upsampler."""
    samples = self.upsample_net(c)
    shares = [F.conv1d(samples, layer.conv1x1c.weight, layer.conv1x1c.bias) for layer in self.conv_layers]
    return [share.transpose(1, 2) for share in shares]


def plain_upsampled(self: WaveGlow, mel: Tensor) -> Tensor:
    """WaveGlow._upsampled, as in NVIDIA's."""
    return self.upsample(mel)


@contextmanager
def plain_layers() -> Iterator[None]:
    """No operator of ours within this block: layers as above, other operators by their references."""
    with ExitStack() as stack:
        stack.enter_context(fastvoc.backend("reference"))
        stack.enter_context(patch.object(GatedResidualStack, "forward", plain_stack))
        stack.enter_context(patch.object(ResidualConv1dGLU, "time_major", plain_glu))
        stack.enter_context(patch.object(WaveNet, "_conditioning", plain_conditioning))
        stack.enter_context(patch.object(WaveGlow, "_upsampled", plain_upsampled))
        for family in "parallel_wavegan", "parallel_wavenet":
            stack.enter_context(patch(f"fastvoc.models.{family}.stretched", lambda *_: None))
        yield
