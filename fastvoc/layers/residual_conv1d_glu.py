"""ResidualConv1dGLU: r9y9/wavenet_vocoder's residual layer, with its constructor, parameter names and gradients.

    x (B, R, T), c (B, cin_channels, T), g (B, gin_channels, T or 1)  ->  x' (B, R, T), skip (B, S, T)

van den Oord et al. 2016, "WaveNet: A Generative Model for Raw Audio", figure 4. The WaveNet model is made of it; a stack
of its like with ParallelWaveGAN's names is in wavenet_residual_block.py.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvoc.errors import ConfigError, ShapeError
from fastvoc.ops.gated_residual import gated_residual


class ResidualConv1dGLU(nn.Module):
    """padding must be None, as the dilation has it; conditioning_bias and residual_scale are for other public layouts."""

    def __init__(
        self,
        residual_channels: int,
        gate_channels: int,
        kernel_size: int,
        skip_out_channels: int | None = None,
        cin_channels: int = -1,
        gin_channels: int = -1,
        dropout: float = 1 - 0.95,
        padding: None = None,
        dilation: int = 1,
        causal: bool = True,
        bias: bool = True,
        conditioning_bias: bool = False,
        residual_scale: float = math.sqrt(0.5),
    ) -> None:
        super().__init__()
        R, G, S = residual_channels, gate_channels, skip_out_channels or residual_channels
        if padding is not None:
            raise ConfigError(f"padding must be None, got {padding!r}: it follows from kernel_size, dilation and causal")
        if G < 2 or G % 2:
            raise ConfigError(f"gate_channels must be even (tanh half, sigmoid half), got {G}")
        self.dilation, self.dropout, self.causal, self.residual_scale = dilation, dropout, causal, residual_scale
        self.conv = nn.Conv1d(R, G, kernel_size, dilation=dilation, bias=bias)
        self.conv1x1c = nn.Conv1d(cin_channels, G, 1, bias=conditioning_bias) if cin_channels > 0 else None
        self.conv1x1g = nn.Conv1d(gin_channels, G, 1, bias=conditioning_bias) if gin_channels > 0 else None
        self.conv1x1_out = nn.Conv1d(G // 2, R, 1, bias=bias)
        self.conv1x1_skip = nn.Conv1d(G // 2, S, 1, bias=bias)

    def forward(self, x: Tensor, c: Tensor | None = None, g: Tensor | None = None) -> tuple[Tensor, Tensor]:
        cond = None
        for name, conv, features in (("c", self.conv1x1c, c), ("g", self.conv1x1g, g)):
            if (features is None) != (conv is None):
                raise ShapeError(f"{name} is {'missing' if features is None else 'given, but this layer does not take it'}")
            if conv is not None and features is not None:
                if features.dim() != 3 or features.shape[1] != conv.in_channels or features.shape[2] not in (1, x.shape[2]):
                    raise ShapeError(f"{name} is {tuple(features.shape)}, expected (B, {conv.in_channels}, {x.shape[2]})")
                share = F.linear(features.transpose(1, 2), conv.weight[:, :, 0], conv.bias)
                cond = share if cond is None else cond + share
        x = x.transpose(1, 2).contiguous()
        y, s = self.time_major(x, None if cond is None else cond.expand(*x.shape[:2], -1).contiguous())
        return y.transpose(1, 2), s.transpose(1, 2)

    def time_major(self, x: Tensor, cond: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, T, R), cond (B, T, G) projected already -> x' (B, T, R), skip (B, T, S)"""
        out: Any = self.conv1x1_out
        skip: Any = self.conv1x1_skip
        w_out = torch.cat([out.weight[:, :, 0], skip.weight[:, :, 0]])
        bias: Any = self.conv.bias
        has_bias = bias is not None
        dropped = F.dropout(x, self.dropout, self.training)
        x_out, s = gated_residual(
            dropped,
            self.conv.weight,
            bias if has_bias else x.new_zeros(len(self.conv.weight)),
            w_out,
            torch.cat([out.bias, skip.bias]) if has_bias else x.new_zeros(len(w_out)),
            cond,
            dilation=self.dilation,
            causal=self.causal,
            rho=self.residual_scale,
        )
        if dropped is not x:  # dropout is before the convolution only: the residual path goes around it
            x_out = x_out + (x - dropped) * self.residual_scale
        return x_out, s
