"""Causal convolution: y(t) = b + Σ_j W[j]·x(t - (k-1-j)·d), zeros before the signal.

    x (B, C_in, T), weight (C_out, C_in / groups, k), bias (C_out,)  ->  y (B, C_out, T)

In one piece (`forward`), or in chunks of any sizes with explicit state (`begin`, `step`).

van den Oord et al. 2016, "WaveNet: A Generative Model for Raw Audio", section 2.1.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvoc.errors import ConfigError, DeviceError, DTypeError, ShapeError


class CausalConv1d(nn.Module):
    """nn.Conv1d that sees no future; its parameter names and initialisation.  (B, C_in, T) -> (B, C_out, T)"""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        sizes = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "kernel_size": kernel_size,
            "dilation": dilation,
            "groups": groups,
        }
        for name, value in sizes.items():
            if value < 1:
                raise ConfigError(f"CausalConv1d: {name} must be at least 1, got {value}")
        if in_channels % groups or out_channels % groups:
            raise ConfigError(
                f"CausalConv1d: groups must divide both channel counts, got groups={groups}, "
                f"in_channels={in_channels}, out_channels={out_channels}"
            )
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.dilation, self.groups = dilation, groups
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight.shape[1] * self.kernel_size)
            nn.init.uniform_(self.bias, -bound, bound)

    @property
    def padding(self) -> int:
        """Past samples that an output sees."""
        return (self.kernel_size - 1) * self.dilation

    def forward(self, x: Tensor) -> Tensor:
        self._check("x", x)
        return self._convolve(F.pad(x, (self.padding, 0)))

    def begin(self, batch_size: int) -> Tensor:
        """The state before the first sample: silence. A tensor that may be cloned, saved and moved."""
        if batch_size < 0:
            raise ShapeError(f"CausalConv1d: the batch size must be at least 0, got {batch_size}")
        return self.weight.new_zeros(batch_size, self.in_channels, self.padding, requires_grad=False)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The next n >= 0 samples x (B, C_in, n) and the state before them -> y (B, C_out, n), the state after them."""
        self._check("x", x)
        self._check("state", state)
        if state.shape[0] != x.shape[0] or state.shape[2] != self.padding:
            expected = x.shape[0], self.in_channels, self.padding
            raise ShapeError(
                f"CausalConv1d: state is {tuple(state.shape)}, expected {expected}.",
                hint="Make it with begin(batch_size).",
            )
        joined = torch.cat([state, x], 2)
        # A copy: a view would keep the whole chunk alive for the sake of its last samples
        return self._convolve(joined), joined[:, :, x.shape[2] :].clone()

    def _convolve(self, padded: Tensor) -> Tensor:
        if padded.shape[2] == self.padding:  # no sample at all: torch would refuse a signal shorter than the kernel
            return padded.new_empty(padded.shape[0], self.out_channels, 0)
        return F.conv1d(padded, self.weight, self.bias, dilation=self.dilation, groups=self.groups)

    def _check(self, name: str, x: Tensor) -> None:
        if x.dim() != 3 or x.shape[1] != self.in_channels:
            raise ShapeError(f"CausalConv1d: {name} is {tuple(x.shape)}, expected (B, {self.in_channels}, T).")
        if x.device != self.weight.device:
            raise DeviceError(
                f"CausalConv1d: {name} is on {x.device}, the weights on {self.weight.device}.",
                hint="Move one with .to(device).",
            )
        if x.dtype != self.weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise DTypeError(
                f"CausalConv1d: {name} is {x.dtype}, the weights are {self.weight.dtype}.",
                hint=f"Convert one with .to({self.weight.dtype}).",
            )

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, dilation={self.dilation}, "
            f"groups={self.groups}, bias={self.bias is not None}"
        )
