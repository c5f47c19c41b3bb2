"""ParallelWaveGAN's residual block and a stack of them, with its constructors and parameter names; channels first.

    a = conv(dropout(x)) + conv1x1_aux(c)        z = tanh(a[:G/2]) · σ(a[G/2:])
    x' = (conv1x1_out(z) + x) · √½               skip = conv1x1_skip(z)

Both compute with the gated_residual operator (fastvoc/ops/gated_residual.py).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvoc.errors import ConfigError, ShapeError
from fastvoc.ops.gated_residual import gated_residual


class WaveNetResidualBlock(nn.Module):
    """x (B, residual_channels, T), c (B, aux_channels, T) or None -> x' as x, skip (B, skip_channels, T)."""

    def __init__(
        self,
        kernel_size: int = 3,
        residual_channels: int = 64,
        gate_channels: int = 128,
        skip_channels: int = 64,
        aux_channels: int = 80,
        dropout: float = 0.0,
        dilation: int = 1,
        bias: bool = True,
        use_causal_conv: bool = False,
    ) -> None:
        super().__init__()
        if not use_causal_conv and kernel_size % 2 == 0:
            raise ConfigError(f"kernel_size must be odd where use_causal_conv is off, got {kernel_size}")
        if gate_channels < 2 or gate_channels % 2:
            raise ConfigError(f"gate_channels must be even (tanh half, sigmoid half), got {gate_channels}")
        self.dropout, self.dilation, self.use_causal_conv = dropout, dilation, use_causal_conv
        self.conv = nn.Conv1d(residual_channels, gate_channels, kernel_size, dilation=dilation, bias=bias)
        self.conv1x1_aux = nn.Conv1d(aux_channels, gate_channels, 1, bias=False) if aux_channels > 0 else None
        self.conv1x1_out = nn.Conv1d(gate_channels // 2, residual_channels, 1, bias=bias)
        self.conv1x1_skip = nn.Conv1d(gate_channels // 2, skip_channels, 1, bias=bias)
        convs: Any = self.children()
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if c is not None and self.conv1x1_aux is None:
            raise ShapeError("this block has no conditioning (aux_channels is not positive), but c was given")
        out: Any = self.conv1x1_out
        skip: Any = self.conv1x1_skip
        w_out = torch.cat([out.weight[:, :, 0], skip.weight[:, :, 0]])
        b_in = self.conv.weight.new_zeros(len(self.conv.weight)) if self.conv.bias is None else self.conv.bias
        b_out = w_out.new_zeros(len(w_out)) if out.bias is None else torch.cat([out.bias, skip.bias])
        dropped = F.dropout(x, self.dropout) if self.dropout and self.training else x
        y, s = gated_residual(
            dropped.transpose(1, 2),
            self.conv.weight,
            b_in,
            w_out,
            b_out,
            None if c is None else F.linear(c.transpose(1, 2), self.conv1x1_aux.weight[:, :, 0]),
            dilation=self.dilation,
            causal=self.use_causal_conv,
            rho=math.sqrt(0.5),
        )
        y = y.transpose(1, 2)
        if dropped is not x:  # the residual path goes around the dropout
            y = y + (x - dropped) * math.sqrt(0.5)
        return y, s.transpose(1, 2)


class WaveNetStack(nn.Module):
    """conv_layers of the above, dilations 1, 2, 4 … in every one of `stacks` cycles: x, c -> Σ skip / √layers."""

    def __init__(self, layers: int = 30, stacks: int = 3, **block: Any) -> None:
        super().__init__()
        if stacks < 1 or layers < 1 or layers % stacks:
            raise ConfigError(f"layers must be a multiple of stacks, got layers={layers}, stacks={stacks}")
        self.conv_layers = nn.ModuleList(
            WaveNetResidualBlock(dilation=2 ** (layer % (layers // stacks)), **block) for layer in range(layers)
        )

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        skips: Any = 0.0
        for block in self.conv_layers:
            x, skip = block(x, c)
            skips = skips + skip
        return skips * math.sqrt(1 / len(self.conv_layers))
