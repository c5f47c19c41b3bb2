"""WaveGlow's WN, the network of its couplings, with the constructor and the parameter names of NVIDIA's glow.WN."""
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from fastvoc.errors import ConfigError, ShapeError
from fastvoc.ops.gated_residual import gated_residual


class WN(nn.Module):
    """forward((audio (B, n_in_channels, T), spect (B, n_mel_channels, T))) -> (B, 2·n_in_channels, T).

    Non-causal, dilations 1, 2, 4 … 2^(n_layers - 1). Weight norm on all but `end`, which starts as zeros; a state_dict with
    weight_g and weight_v loads as it is. The layers are ops/gated_residual.py's: res_skip's rows are in its order already,
    the last layer has no residual rows, and the bias of the conditioning moves into the convolution's.
    """

    def __init__(self, n_in_channels: int, n_mel_channels: int, n_layers: int, n_channels: int, kernel_size: int) -> None:
        super().__init__()
        for name, value in {"n_in_channels": n_in_channels, "n_mel_channels": n_mel_channels, "n_layers": n_layers}.items():
            if value < 1:
                raise ConfigError(f"WN: {name} must be at least 1, got {value}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ConfigError(f"WN: kernel_size must be odd, got {kernel_size}")
        if n_channels < 2 or n_channels % 2:
            raise ConfigError(f"WN: n_channels must be even, got {n_channels}")
        self.n_layers, self.n_channels = n_layers, n_channels
        self.start = weight_norm(nn.Conv1d(n_in_channels, n_channels, 1))
        self.cond_layer = weight_norm(nn.Conv1d(n_mel_channels, 2 * n_channels * n_layers, 1))
        self.in_layers = nn.ModuleList(
            weight_norm(nn.Conv1d(n_channels, 2 * n_channels, kernel_size, dilation=2**i)) for i in range(n_layers)
        )
        rows = [2 * n_channels] * (n_layers - 1) + [n_channels]
        self.res_skip_layers = nn.ModuleList(weight_norm(nn.Conv1d(n_channels, n, 1)) for n in rows)
        self.end = nn.Conv1d(n_channels, 2 * n_in_channels, 1)
        nn.init.zeros_(self.end.weight)
        nn.init.zeros_(self.end.bias)  # type: ignore[arg-type]  # torch: it may be None

    def forward(self, forward_input: tuple[Tensor, Tensor]) -> Tensor:
        audio, spect = forward_input
        n_in, n_mel = self.start.in_channels, self.cond_layer.in_channels
        B, T = audio.shape[0], audio.shape[-1]
        if tuple(audio.shape) != (B, n_in, T) or tuple(spect.shape) != (B, n_mel, T):
            raise ShapeError(
                f"WN: audio is {tuple(audio.shape)} and spect {tuple(spect.shape)}, expected (B, {n_in}, T) and (B, {n_mel}, T)"
            )
        x = _pointwise(audio.transpose(1, 2), self.start)
        cond = _pointwise(spect.transpose(1, 2), self.cond_layer).chunk(self.n_layers, 2)
        output: Any = 0.0
        layers: Any = zip(self.in_layers, self.res_skip_layers)
        for i, (layer, res_skip) in enumerate(layers):
            weight, bias = res_skip.weight[:, :, 0], res_skip.bias
            if weight.shape[0] == self.n_channels:
                weight, bias = F.pad(weight, (0, 0, self.n_channels, 0)), F.pad(bias, (self.n_channels, 0))
            x, skip = gated_residual(x, layer.weight, layer.bias, weight, bias, cond[i], dilation=2**i)
            output = output + skip
        return _pointwise(output, self.end).transpose(1, 2)


def _pointwise(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """A 1×1 convolution of a time-major signal."""
    return F.linear(x, conv.weight[:, :, 0], conv.bias)
