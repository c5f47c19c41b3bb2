"""Mel frames to samples: the upsampling networks of the public WaveNets, with their constructors and parameter names.

All take mel (B, n_mels, n_frames) and return (B, n_mels, n_samples). `stages()` describes the same network to the
engine (fastvoc/ops/upsample.py), which runs it piece by piece while samples are generated.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvoc.errors import ConfigError
from fastvoc.ops.upsample import Fir, Mix

ACTIVATIONS = {"none": None, "ReLU": nn.ReLU, "LeakyReLU": nn.LeakyReLU}


def negative_slope(activation: nn.Module | None) -> float:
    """The one number that tells identity (1), ReLU (0) and LeakyReLU apart."""
    if activation is None:
        return 1.0
    return 0.0 if isinstance(activation, nn.ReLU) else float(activation.negative_slope)


class Stretch2d(nn.Module):
    """Repeats (nearest) or interpolates (bilinear) along time; r9y9's and ParallelWaveGAN's layer of that name."""

    def __init__(self, x_scale: int, y_scale: int = 1, mode: str = "nearest"):
        super().__init__()
        if y_scale != 1 or mode not in ("nearest", "bilinear"):
            raise ConfigError(
                f"Stretch2d: got y_scale={y_scale}, mode={mode!r}; expected y_scale=1, nearest or bilinear"
            )
        self.x_scale, self.mode = x_scale, mode

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=(1.0, float(self.x_scale)), mode=self.mode)


class UpsampleNetwork(nn.Module):
    """r9y9's UpsampleNetwork: per scale a stretch and a smoothing Conv2d over (frequency, time), no bias."""

    def __init__(
        self,
        upsample_scales,
        upsample_activation="none",
        upsample_activation_params=None,
        mode="nearest",
        freq_axis_kernel_size=1,
        cin_pad=0,
        cin_channels=80,
    ):
        super().__init__()
        if upsample_activation not in ACTIVATIONS:
            raise ConfigError(f"upsample_activation: got {upsample_activation!r}, expected one of {list(ACTIVATIONS)}")
        self.scales = tuple(int(s) for s in upsample_scales)
        self.scale = math.prod(self.scales)
        self.indent = cin_pad * self.scale
        self.context = cin_pad  # frames on each side that feed the edges and give no samples of their own
        self.up_layers = nn.ModuleList()
        for scale in self.scales:
            kernel = (freq_axis_kernel_size, 2 * scale + 1)
            conv = nn.Conv2d(1, 1, kernel, padding=((freq_axis_kernel_size - 1) // 2, scale), bias=False)
            nn.init.constant_(conv.weight, 1.0 / math.prod(kernel))
            self.up_layers += [Stretch2d(scale, 1, mode), conv]
            if upsample_activation != "none":
                self.up_layers.append(ACTIVATIONS[upsample_activation](**(upsample_activation_params or {})))
        self.is_linear_in_time = freq_axis_kernel_size == 1 and upsample_activation == "none"

    def forward(self, c: Tensor) -> Tensor:
        c = c.unsqueeze(1)
        for layer in self.up_layers:
            c = layer(c)
        c = c.squeeze(1)
        return c[:, :, self.indent : -self.indent] if self.indent else c

    def time_matrix(self, n_frames: int) -> Tensor:
        """(n_frames, n_samples) with forward(c) = c @ time_matrix, where the network acts on time alone."""
        weight = self.up_layers[1].weight
        return self(torch.eye(n_frames, dtype=weight.dtype, device=weight.device)[None])[0]

    def stages(self) -> list:
        stages, layers = [], list(self.up_layers)
        while layers:
            stretch, conv = layers.pop(0), layers.pop(0)
            slope = negative_slope(layers.pop(0)) if layers and not isinstance(layers[0], Stretch2d) else 1.0
            stages += Fir.stretch_conv(stretch.x_scale, conv.weight.detach()[0, 0], stretch.mode, slope)
        return stages


class ConvInUpsampleNetwork(nn.Module):
    """r9y9's and ParallelWaveGAN's ConvInUpsampleNetwork: a convolution over 2·cin_pad + 1 frames, then the above.

    The caller pads the mel by cin_pad frames on each side; the convolution eats them.
    """

    def __init__(
        self,
        upsample_scales,
        upsample_activation="none",
        upsample_activation_params=None,
        mode="nearest",
        freq_axis_kernel_size=1,
        cin_pad=0,
        cin_channels=80,
    ):
        super().__init__()
        self.context = cin_pad
        self.conv_in = nn.Conv1d(cin_channels, cin_channels, 2 * cin_pad + 1, bias=False)
        self.upsample = UpsampleNetwork(
            upsample_scales,
            upsample_activation,
            upsample_activation_params,
            mode,
            freq_axis_kernel_size,
            0,
            cin_channels,
        )
        self.scale = self.upsample.scale
        self.is_linear_in_time = self.upsample.is_linear_in_time

    def forward(self, c: Tensor) -> Tensor:
        return self.upsample(self.conv_in(c))

    def stages(self) -> list:
        return [Mix.conv(self.conv_in.weight.detach()), *self.upsample.stages()]


class ConvTranspose2dUpsampleNetwork(nn.Module):
    """Transposed convolutions over (frequency, time), shared by all mel bands.

    r9y9 2018: kernel (3, s), padding (1, 0), ReLU after each. ClariNet and both DiffWaves: kernel (3, 2s),
    padding (1, ⌊s/2⌋), LeakyReLU 0.4; for odd s the result is cut. The keys are those of a Sequential: up_layers.{0, 2, …}.
    """

    def __init__(self, upsample_scales, kernel_factor=2, freq_axis_kernel_size=3, negative_slope=0.4, cin_channels=80):
        super().__init__()
        self.scales = tuple(int(s) for s in upsample_scales)
        self.scale, self.context, self.is_linear_in_time = math.prod(self.scales), 0, False
        self.up_layers = nn.Sequential()
        for scale in self.scales:
            kernel = (freq_axis_kernel_size, kernel_factor * scale)
            padding = ((freq_axis_kernel_size - 1) // 2, (kernel_factor - 1) * scale // 2)
            conv = nn.ConvTranspose2d(1, 1, kernel, stride=(1, scale), padding=padding)
            # Mean one over the taps that meet in a sample, so that the mel's level survives the initialisation
            nn.init.constant_(conv.weight, 1.0 / (freq_axis_kernel_size * kernel_factor))
            nn.init.zeros_(conv.bias)
            self.up_layers += nn.Sequential(conv, nn.LeakyReLU(negative_slope) if negative_slope else nn.ReLU())

    def forward(self, c: Tensor) -> Tensor:
        return self.up_layers(c.unsqueeze(1)).squeeze(1)[:, :, : c.shape[2] * self.scale]

    def stages(self) -> list:
        for conv in self.up_layers[::2]:
            if conv.kernel_size[1] - 2 * conv.padding[1] != conv.stride[1]:
                raise ConfigError(f"upsample_scales: generation needs even scales here, got {conv.stride[1]}")
        return [
            Fir.transposed(
                conv.weight.detach()[0, 0], conv.bias.detach(), conv.stride[1], conv.padding[1], negative_slope(act)
            )
            for conv, act in zip(self.up_layers[::2], self.up_layers[1::2])
        ]


class ConvTranspose1dUpsampleNetwork(nn.Module):
    """nv-wavenet's and WaveGlow's upsampler: one transposed convolution that mixes all bands; the tail is cut off.

    Sample t depends on frames ⌊t/s⌋ - (window/s - 1) … ⌊t/s⌋ only. The module itself is the ConvTranspose1d.
    """

    def __init__(self, window: int, stride: int, cin_channels: int = 80):
        super().__init__()
        if window % stride:
            raise ConfigError(f"upsample window {window} is no multiple of its stride {stride}")
        self.scale, self.context, self.is_linear_in_time = stride, 0, False
        self.conv = nn.ConvTranspose1d(cin_channels, cin_channels, window, stride)

    def forward(self, c: Tensor) -> Tensor:
        return self.conv(c)[:, :, : c.shape[2] * self.scale]

    def stages(self) -> list:
        return [Mix.transposed(self.conv.weight.detach(), self.conv.bias.detach(), self.scale)]


NETWORKS = {
    cls.__name__: cls
    for cls in (
        UpsampleNetwork,
        ConvInUpsampleNetwork,
        ConvTranspose2dUpsampleNetwork,
        ConvTranspose1dUpsampleNetwork,
    )
}
