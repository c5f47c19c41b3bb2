"""Drop-ins for diffwave.model.ResidualBlock and SpectrogramUpsampler of lmnt-com/diffwave: their constructors, parameter
names and start. The layer itself is ops/gated_residual.py; the rewriting is the reader's.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvoc.errors import ShapeError
from fastvoc.ops.gated_residual import gated_residual


class ResidualBlock(nn.Module):
    """One layer of DiffWave: x (B, C, T), embedded step (B, 512), mel at sample rate (B, n_mels, T) -> x, skip (B, C, T)."""

    def __init__(self, n_mels: int, residual_channels: int, dilation: int, uncond: bool = False) -> None:
        super().__init__()
        C, self.dilation = residual_channels, dilation
        self.dilated_conv = _conv(C, 2 * C, 3, padding=dilation, dilation=dilation)
        self.diffusion_projection = nn.Linear(512, C)
        self.conditioner_projection = None if uncond else _conv(n_mels, 2 * C, 1)
        self.output_projection = _conv(C, 2 * C, 1)

    def forward(self, x: Tensor, diffusion_step: Tensor, conditioner: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if (conditioner is None) != (self.conditioner_projection is None):
            has = "takes no conditioner" if self.conditioner_projection is None else "is conditioned: conditioner is missing"
            raise ShapeError(f"this ResidualBlock {has}")
        w_in, bias, cond = self.dilated_conv.weight, self.dilated_conv.bias, None
        output: Any = self.output_projection
        projection = self.conditioner_projection
        if conditioner is not None and projection is not None:
            cond = F.linear(conditioner.transpose(1, 2), _swapped(projection.weight[:, :, 0]), _swapped(projection.bias))
        step = self.diffusion_projection(diffusion_step)
        x, skip = gated_residual(
            x.transpose(1, 2).contiguous(),
            _swapped(w_in),  # lmnt's first half is the sigmoid, here it is the tanh
            _swapped(bias),
            output.weight[:, :, 0],
            output.bias,
            cond,
            step.expand(len(x), -1),
            dilation=self.dilation,
            rho=math.sqrt(0.5),
        )
        return x.transpose(1, 2), skip.transpose(1, 2)


class SpectrogramUpsampler(nn.Module):
    """lmnt's upsampler: mel (B, n_mels, n_frames) -> (B, n_mels, 256·n_frames). The bands share its weights."""

    def __init__(self, n_mels: int) -> None:
        super().__init__()
        conv = lambda: nn.ConvTranspose2d(1, 1, (3, 32), stride=(1, 16), padding=(1, 8))
        self.conv1, self.conv2 = conv(), conv()

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv1(x.unsqueeze(1)), 0.4)
        return F.leaky_relu(self.conv2(x), 0.4).squeeze(1)


def _conv(*args, **kwargs) -> nn.Conv1d:
    conv = nn.Conv1d(*args, **kwargs)
    nn.init.kaiming_normal_(conv.weight)
    return conv


def _swapped(rows: Any) -> Tensor:
    first, second = rows.chunk(2)
    return torch.cat([second, first])
