"""Mel frames to samples: the upsampling networks of the public vocoders, with their constructors and parameter names.

All take mel (B, n_mels, n_frames) and return (B, n_mels, n_samples). `stages()` describes the same network to the
engine (fastvoc/ops/upsample.py), which runs it piece by piece while samples are generated; None where the engine cannot,
and the whole mel has to be there first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvoc._op import forced_backend
from fastvoc.errors import ConfigError
from fastvoc.layers.nonlinearity import nonlinearity
from fastvoc.ops.gated_residual_stack import Interpolated
from fastvoc.ops.upsample import Fir, Mix, upsample_samples


def at_sample_rate(network: nn.Module | None, c: Tensor) -> Tensor:
    """(B, C, n_frames) -> (B, n_samples, C'): network(c) time-major, which is how the stacks take it.

    Without a gradient, in float32 on the CPU, the compiled stages do it, some twenty times as fast as conv2d.
    """
    plain = torch.is_grad_enabled() or c.dtype != torch.float32 or not c.is_cpu or not len(c)
    if network is None or plain or forced_backend() == "reference":
        return (c if network is None else network(c)).transpose(1, 2).contiguous()
    stages: Any = getattr(network, "stages", lambda: None)()
    if stages is None:  # MelGAN's, a causal one, odd scales: the network itself
        return network(c).transpose(1, 2).contiguous()
    return upsample_samples(stages, c, getattr(network, "indent", 0))


def at_frame_rate(network: nn.Module | None, c: Tensor, low: int, high: int) -> Interpolated | None:
    """at_sample_rate's samples of frames low … high - 1, not counting context, as sums of few frames each.

    None where the network is not linear in time, and where it would not pay: a stack's own conditioning is made for every
    frame and kept, which at a handful of samples a frame costs more than it saves.
    """
    plain = torch.is_grad_enabled() or c.dtype != torch.float32 or not c.is_cpu or forced_backend() == "reference"
    mixer = network if isinstance(network, ConvInUpsampleNetwork) else None  # of the frames around each, before they are stretched
    stretch = network if mixer is None else mixer.upsample
    if plain or not isinstance(stretch, UpsampleNetwork) or not stretch.is_linear_in_time or stretch.scale < 16:
        return None
    context = 0 if mixer is None else 2 * mixer.context
    first, taps = stretch.time_taps(c.shape[2] - context, low, high)
    start, end = int(first.min()), int(first.max()) + taps.shape[1]
    frames = c[:, :, start : end + context]
    frames = frames if mixer is None else mixer.frames(frames)
    return Interpolated(frames.transpose(1, 2).contiguous(), first - start, taps)


@dataclass
class Stretched:
    """Conditioning at sample rate that is kept as frames, with gradients: c(frame i) = blocks[i] @ frames[i … i + width - 1].

    W·c is then blocks @ (W·frames): a projection costs as much as if there were `width` bands, and needs none of c's memory.
    """

    frames: Tensor  # (B, n + width - 1, C)
    blocks: Tensor  # (n, scale, width)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, T, C): of what it stands for"""
        return self.frames.shape[0], self.blocks.shape[0] * self.blocks.shape[1], self.frames.shape[2]

    def linear(self, weight: Tensor) -> Tensor:
        """F.linear(c, weight): (B, T, out)"""
        windows = F.linear(self.frames, weight).unfold(1, self.blocks.shape[2], 1)  # (B, n, out, width)
        return (self.blocks @ windows.transpose(2, 3)).flatten(1, 2)


def stretched(network: nn.Module | None, c: Tensor) -> Stretched | None:
    """network(c) for a training's projections. None where the network is not linear in time, and where it would not pay."""
    mixer = network if isinstance(network, ConvInUpsampleNetwork) else None
    stretch = network if mixer is None else mixer.upsample
    if not isinstance(stretch, UpsampleNetwork) or not stretch.is_linear_in_time or stretch.scale < 16:
        return None
    low, high = stretch.seen
    frames = (c if mixer is None else mixer.frames(c)).transpose(1, 2)
    frames = F.pad(frames, (0, 0, -low, high))
    n = frames.shape[1] - (high - low)
    context = stretch.context
    return Stretched(frames[:, context : frames.shape[1] - context], stretch.time_blocks(n - 2 * context))


def projected(cond: Tensor | Stretched, weight: Tensor) -> Tensor:
    """cond (B, T, C), weight (out, C) -> (B, T, out)"""
    return cond.linear(weight) if isinstance(cond, Stretched) else F.linear(cond, weight)


def negative_slope(activation: nn.Module | None) -> float | None:
    """The one number that tells identity (1), ReLU (0) and LeakyReLU apart, the ones that the engine knows; else None."""
    if activation is None:
        return 1.0
    if not isinstance(activation, nn.ReLU | nn.LeakyReLU):
        return None
    return float(getattr(activation, "negative_slope", 0.0))


class Stretch2d(nn.Module):
    """Repeats (nearest) or interpolates along time; r9y9's and ParallelWaveGAN's layer of that name."""

    MODES = "nearest", "bilinear", "bicubic", "area", "nearest-exact"

    def __init__(self, x_scale: int, y_scale: int = 1, mode: str = "nearest") -> None:
        super().__init__()
        if y_scale != 1 or mode not in self.MODES:
            raise ConfigError(f"Stretch2d: got y_scale={y_scale}, mode={mode!r}; expected y_scale=1, one of {self.MODES}")
        self.x_scale, self.mode = x_scale, mode

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=(1.0, float(self.x_scale)), mode=self.mode)


class UpsampleNetwork(nn.Module):
    """Per scale a stretch and a smoothing Conv2d over (frequency, time), no bias.

    r9y9's and ParallelWaveGAN's layer of that name. The latter's names are taken as keywords: nonlinear_activation,
    nonlinear_activation_params, interpolate_mode, and use_causal_conv, which only r9y9's lacks.
    """

    def __init__(
        self,
        upsample_scales: Sequence[int],
        upsample_activation: str | None = "none",
        upsample_activation_params: dict | None = None,
        mode: str = "nearest",
        freq_axis_kernel_size: int = 1,
        cin_pad: int = 0,
        cin_channels: int = 80,
        *,
        nonlinear_activation: str | None = None,
        nonlinear_activation_params: dict | None = None,
        interpolate_mode: str | None = None,
        use_causal_conv: bool = False,
    ) -> None:
        super().__init__()
        name = nonlinear_activation or upsample_activation or "none"
        params = nonlinear_activation_params or upsample_activation_params
        self.scales = _positive("upsample_scales", upsample_scales)
        if freq_axis_kernel_size < 1 or freq_axis_kernel_size % 2 == 0:
            raise ConfigError(f"freq_axis_kernel_size must be odd, got {freq_axis_kernel_size}")
        self.scale = math.prod(self.scales)
        self.indent = cin_pad * self.scale
        self.context = cin_pad  # frames on each side that feed the edges and give no samples of their own
        self.use_causal_conv = use_causal_conv
        self.up_layers: Any = nn.ModuleList()
        for scale in self.scales:
            kernel = (freq_axis_kernel_size, 2 * scale + 1)
            padding = (freq_axis_kernel_size - 1) // 2, 2 * scale if use_causal_conv else scale
            conv = nn.Conv2d(1, 1, kernel, padding=padding, bias=False)
            nn.init.constant_(conv.weight, 1.0 / math.prod(kernel))
            self.up_layers += [Stretch2d(scale, 1, interpolate_mode or mode), conv]
            if name != "none":
                self.up_layers.append(nonlinearity(name, params))
        self.is_linear_in_time = freq_axis_kernel_size == 1 and name == "none"

    def forward(self, c: Tensor) -> Tensor:
        samples = self._whole(c)
        return samples[:, :, self.indent : -self.indent] if self.indent else samples

    def _whole(self, c: Tensor) -> Tensor:
        """The context's samples included."""
        c = c.unsqueeze(1)
        for layer in self.up_layers:
            length = c.shape[3]
            c = layer(c)
            if self.use_causal_conv and isinstance(layer, nn.Conv2d):
                c = c[..., :length]  # a causal convolution: zeros before the signal, the tail cut
        return c.squeeze(1)

    @property
    def seen(self) -> tuple[int, int]:
        """(first, last) frame, counted from itself, that one frame's samples depend on: (-2, 2), say."""
        low, high = 0, self.scale - 1
        for scale, stretch in zip(reversed(self.scales), reversed([m for m in self.up_layers if isinstance(m, Stretch2d)])):
            low, high = (low - 2 * scale, high) if self.use_causal_conv else (low - scale, high + scale)
            beside = {"bilinear": 1, "bicubic": 2}.get(stretch.mode, 0)
            low, high = low // scale - beside, high // scale + beside
        return low, high

    @property
    def reach(self) -> int:
        """Frames on each side, at most, that one frame's samples depend on."""
        low, high = self.seen
        return max(-low, high)

    def time_matrix(self, n_frames: int) -> Tensor:
        """(n_frames, n_frames · scale): what each frame, context included, adds to each sample; the network acts on time alone."""
        weight = self.up_layers[1].weight
        return self._whole(torch.eye(n_frames, dtype=weight.dtype, device=weight.device)[None])[0]

    def time_blocks(self, n: int) -> Tensor:
        """(n, scale, width): frame i's samples from frames i + seen[0] … i + seen[1] of the whole input, context included,
        for n frames of output. With gradients. Where a block sees beyond an end it holds zeros.
        """
        # A frame further than `reach` from both ends sees no end: the middle one of a short signal stands for all of these
        (low, high), whole = self.seen, n + 2 * self.context
        short = min(whole, 2 * self.reach + 1)
        matrix = self.time_matrix(short)
        matrix = F.pad(matrix.unflatten(1, (short, self.scale)), (0, 0, 0, 0, -low, high))
        blocks = torch.stack([matrix[i : i + high - low + 1, i].t() for i in range(short)])
        at = torch.arange(self.context, whole - self.context, device=matrix.device)
        return blocks[self._alike(at, whole, short)]

    def _alike(self, at: Tensor, n_frames: int, short: int) -> Tensor:
        """Frames of a short signal that see of its ends what frames `at` of a long one see of theirs."""
        beyond = torch.where(at >= n_frames - self.reach, at - n_frames + short, self.reach)
        return torch.where(at < self.reach, at, beyond)

    @torch.no_grad()
    def time_taps(self, n_frames: int, low: int, high: int) -> tuple[Tensor, Tensor]:
        """time_matrix(n_frames) for the samples of frames low … high - 1, not counting context, without its zeros.

        -> first (T,) int32, taps (T, n_taps): a sample is the sum of taps[j] times frame first + j.
        """
        # A frame further than `reach` from both ends sees no end: the middle one of a short signal stands for all of these
        n = n_frames - 2 * self.context
        short = min(n, 2 * self.reach + 1)
        samples = slice(self.indent, self.indent + short * self.scale)
        matrix = self.time_matrix(short + 2 * self.context)[:, samples].t()  # (samples, frames) of the short signal
        used = matrix != 0
        first = used.int().argmax(1)
        width = int((used * torch.arange(1, used.shape[1] + 1)).amax(1).sub(first).max().clamp(min=1))
        first = first.clamp(max=used.shape[1] - width)
        taps = matrix.gather(1, first[:, None] + torch.arange(width))
        at = torch.arange(low, high)
        alike = self._alike(at, n, short)
        first = first.unflatten(0, (short, self.scale))[alike] + (at - alike)[:, None]
        return first.flatten().int(), taps.unflatten(0, (short, self.scale))[alike].flatten(0, 1)

    def stages(self) -> list | None:
        stages, layers = [], list(self.up_layers)
        while layers:
            stretch, conv = layers.pop(0), layers.pop(0)
            slope = negative_slope(layers.pop(0)) if layers and not isinstance(layers[0], Stretch2d) else 1.0
            if slope is None or stretch.mode not in ("nearest", "bilinear") or self.use_causal_conv:
                return None
            stages += Fir.stretch_conv(stretch.x_scale, conv.weight.detach()[0, 0], stretch.mode, slope)
        return stages


class ConvInUpsampleNetwork(nn.Module):
    """A convolution over the frames around each, then the above: r9y9's and ParallelWaveGAN's layer of that name.

    The caller pads the mel by `context` frames on each side; the convolution eats them. It sees 2·context + 1 frames,
    or with use_causal_conv the context + 1 up to each. ParallelWaveGAN's names are taken as keywords, as above, and
    aux_channels, aux_context_window for r9y9's cin_channels, cin_pad.
    """

    def __init__(
        self, upsample_scales: Sequence[int], upsample_activation: str | None = "none",
        upsample_activation_params: dict | None = None, mode: str = "nearest", freq_axis_kernel_size: int = 1,
        cin_pad: int = 0, cin_channels: int = 80, *, aux_channels: int | None = None, aux_context_window: int | None = None,
        use_causal_conv: bool = False, **names: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        channels = cin_channels if aux_channels is None else aux_channels
        self.context = cin_pad if aux_context_window is None else aux_context_window
        self.use_causal_conv = use_causal_conv
        kernel = (1 if use_causal_conv else 2) * self.context + 1
        self.conv_in = nn.Conv1d(channels, channels, kernel, bias=False)
        self.upsample = UpsampleNetwork(
            upsample_scales,
            upsample_activation,
            upsample_activation_params,
            mode,
            freq_axis_kernel_size,
            use_causal_conv=use_causal_conv,
            **names,
        )
        self.scale, self.reach = self.upsample.scale, self.upsample.reach
        self.is_linear_in_time = self.upsample.is_linear_in_time

    def forward(self, c: Tensor) -> Tensor:
        return self.upsample(self.frames(c))

    def frames(self, c: Tensor) -> Tensor:
        """(B, C, n_frames + 2·context) -> (B, C, n_frames): the mel with its surroundings mixed in."""
        mixed = self.conv_in(c)
        return mixed[:, :, : mixed.shape[2] - self.context] if self.use_causal_conv else mixed

    def stages(self) -> list | None:
        stages = self.upsample.stages()
        return None if stages is None else [Mix.conv(self.conv_in.weight.detach()), *stages]


class ConvTranspose2dUpsampleNetwork(nn.Module):
    """Transposed convolutions over (frequency, time), shared by all mel bands.

    r9y9 2018: kernel (3, s), padding (1, 0), ReLU after each. ClariNet and both DiffWaves: kernel (3, 2s),
    padding (1, ⌊s/2⌋), LeakyReLU 0.4; for odd s the result is cut. The keys are those of a Sequential: up_layers.{0, 2, …}.
    """

    def __init__(
        self,
        upsample_scales: Sequence[int],
        kernel_factor: int = 2,
        freq_axis_kernel_size: int = 3,
        negative_slope: float = 0.4,
        cin_channels: int = 80,
    ) -> None:
        super().__init__()
        self.scales = _positive("upsample_scales", upsample_scales)
        self.scale, self.context, self.is_linear_in_time = math.prod(self.scales), 0, False
        self.up_layers: Any = nn.Sequential()
        for scale in self.scales:
            kernel = (freq_axis_kernel_size, kernel_factor * scale)
            padding = ((freq_axis_kernel_size - 1) // 2, (kernel_factor - 1) * scale // 2)
            conv = nn.ConvTranspose2d(1, 1, kernel, stride=(1, scale), padding=padding)
            # Mean one over the taps that meet in a sample, so that the mel's level survives the initialisation
            nn.init.constant_(conv.weight, 1.0 / (freq_axis_kernel_size * kernel_factor))
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # torch: it may be None
            self.up_layers += nn.Sequential(conv, nn.LeakyReLU(negative_slope) if negative_slope else nn.ReLU())

    def forward(self, c: Tensor) -> Tensor:
        return self.up_layers(c.unsqueeze(1)).squeeze(1)[:, :, : c.shape[2] * self.scale]

    def stages(self) -> list | None:
        for conv in self.up_layers[:-2:2]:  # an odd one gives a sample too much, which the next stage would hear
            if conv.kernel_size[1] - 2 * conv.padding[1] != conv.stride[1]:
                return None
        slopes: Any = [negative_slope(act) for act in self.up_layers[1::2]]  # of ReLU or LeakyReLU: never None
        return [
            Fir.transposed(conv.weight.detach()[0, 0], conv.bias.detach(), conv.stride[1], conv.padding[1], slope)
            for conv, slope in zip(self.up_layers[::2], slopes)
        ]


class ConvTranspose1dUpsampleNetwork(nn.Module):
    """nv-wavenet's and WaveGlow's upsampler: one transposed convolution that mixes all bands; the tail is cut off.

    Sample t depends on frames ⌊t/s⌋ - (window/s - 1) … ⌊t/s⌋ only. The module itself is the ConvTranspose1d.
    """

    def __init__(self, window: int, stride: int, cin_channels: int = 80) -> None:
        super().__init__()
        if window % stride:
            raise ConfigError(f"upsample window {window} is no multiple of its stride {stride}")
        self.scale, self.context, self.is_linear_in_time = stride, 0, False
        self.conv = nn.ConvTranspose1d(cin_channels, cin_channels, window, stride)

    def forward(self, c: Tensor) -> Tensor:
        return self.conv(c)[:, :, : c.shape[2] * self.scale]

    def stages(self) -> list:
        bias: Any = self.conv.bias
        return [Mix.transposed(self.conv.weight.detach(), bias.detach(), self.scale)]


class DeconvUpsampleNetwork(nn.Module):
    """bfs18's: transposed convolutions over time that mix all bands, LeakyReLU behind each; n_mels in, `channels` out.

    Output s·i + j - left gathers tap j of frame i, left = ⌊(k - s)/2⌋: TensorFlow's "SAME", stride times as long.
    """

    def __init__(self, kernels, strides, channels=256, negative_slope=0.4, cin_channels=80) -> None:
        super().__init__()
        if len(kernels) != len(strides) or any(k < s for k, s in zip(kernels, strides)):
            raise ConfigError(f"kernels {kernels} and strides {strides}: expected as many, no kernel below its stride")
        self.scale, self.context, self.negative_slope = math.prod(strides), 0, negative_slope
        widths = [cin_channels, *[channels] * len(kernels)]
        self.up_layers: Any = nn.ModuleList(
            nn.ConvTranspose1d(a, b, k, s) for a, b, k, s in zip(widths, widths[1:], kernels, strides)
        )

    def forward(self, c: Tensor) -> Tensor:
        for conv in self.up_layers:
            (k,), (s,) = conv.kernel_size, conv.stride
            c = F.leaky_relu(conv(c)[:, :, (k - s) // 2 :][:, :, : s * c.shape[2]], self.negative_slope)
        return c


def _positive(name: str, values) -> tuple[int, ...]:
    if not isinstance(values, list | tuple) or not values or not all(isinstance(v, int) and v > 0 for v in values):
        raise ConfigError(f"{name} must be a list of positive whole numbers, got {values!r}")
    return tuple(values)


NETWORKS = {
    cls.__name__: cls
    for cls in (
        UpsampleNetwork,
        ConvInUpsampleNetwork,
        ConvTranspose2dUpsampleNetwork,
        ConvTranspose1dUpsampleNetwork,
    )
}
