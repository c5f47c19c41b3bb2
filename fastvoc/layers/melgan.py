"""MelGAN's generator, which kan-bayashi/ParallelWaveGAN can put in the place of an upsampling network.

    conv → for every scale s { activation, transposed convolution (kernel 2s, stride s), residual stacks } → activation, conv

    mel (B, in_channels, n_frames) -> (B, out_channels, n_frames · Π upsample_scales)

Kumar et al. 2019, "MelGAN", section 2.1. Constructor and parameter names are upstream's MelGANGenerator's.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from fastvoc.errors import ConfigError, ShapeError
from fastvoc.layers.nonlinearity import nonlinearity
from fastvoc.layers.padding import padding

LEAKY = {"negative_slope": 0.2}


class CausalConv1d(nn.Module):
    """A convolution over the past. Upstream pads both sides and cuts the end off: what it pads there is never seen."""

    def __init__(self, n_in, n_out, kernel_size, dilation=1, bias=True, pad="ReflectionPad1d", pad_params=None) -> None:
        super().__init__()
        reach = (kernel_size - 1) * dilation
        self.pad = padding(pad, (reach, reach), pad_params)
        self.conv = nn.Conv1d(n_in, n_out, kernel_size, dilation=dilation, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.pad(x))[:, :, : x.shape[2]]


class CausalConvTranspose1d(nn.Module):
    """Stride s: sample s·f + p from frames f - 1 and f."""

    def __init__(self, n_in, n_out, kernel_size, stride, bias=True) -> None:
        super().__init__()
        self.stride = stride
        self.deconv = nn.ConvTranspose1d(n_in, n_out, kernel_size, stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.deconv(F.pad(x, (1, 0), mode="replicate"))[:, :, self.stride : -self.stride]


class ResidualStack(nn.Module):
    """conv1x1(act(conv(act(x)))) + skip_layer(x)"""

    def __init__(self, channels, kernel_size, dilation, bias, activation, pad, pad_params, causal) -> None:
        super().__init__()
        conv = _conv(channels, channels, kernel_size, dilation, bias, pad, pad_params, causal)
        self.stack = nn.Sequential(activation(), *conv, activation(), nn.Conv1d(channels, channels, 1, bias=bias))
        self.skip_layer = nn.Conv1d(channels, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.stack(x) + self.skip_layer(x)


class MelGANGenerator(nn.Module):
    """Upstream's, but for use_weight_norm: weights are kept folded."""

    is_linear_in_time, context = False, 0

    def __init__(
        self,
        in_channels=80,
        out_channels=1,
        kernel_size=7,
        channels=512,
        bias=True,
        upsample_scales=(8, 8, 2, 2),
        stack_kernel_size=3,
        stacks=3,
        nonlinear_activation="LeakyReLU",
        nonlinear_activation_params=LEAKY,
        pad="ReflectionPad1d",
        pad_params=None,
        use_final_nonlinear_activation=True,
        use_causal_conv=False,
    ) -> None:
        super().__init__()
        self.scale, n_scales = math.prod(upsample_scales), len(upsample_scales)
        if not n_scales or channels < self.scale or channels % 2**n_scales:
            raise ConfigError(f"channels={channels}: expected a multiple of 2^{n_scales}, at least {self.scale}")
        if not use_causal_conv and not (kernel_size % 2 and stack_kernel_size % 2):
            raise ConfigError(f"kernel_size={kernel_size}, stack_kernel_size={stack_kernel_size}: expected odd ones")
        activation = lambda: nonlinearity(nonlinear_activation, nonlinear_activation_params)
        how = bias, pad, pad_params, use_causal_conv
        layers = [*_conv(in_channels, channels, kernel_size, 1, *how)]
        reach = kernel_size - 1  # in frames, of what one frame's samples depend on
        side = lambda kernel, dilation: (kernel - 1) * dilation // (1 if use_causal_conv else 2)
        reflected = [side(kernel_size, 1)]  # frames, at every place where edges are
        for i, s in enumerate(upsample_scales):
            narrower = channels // 2
            up = (CausalConvTranspose1d(channels, narrower, 2 * s, s, bias) if use_causal_conv else
                  nn.ConvTranspose1d(channels, narrower, 2 * s, s, s // 2 + s % 2, s % 2, bias=bias))  # fmt: skip
            dilations = [stack_kernel_size**j for j in range(stacks)]
            layers += [activation(), up]
            layers += [
                ResidualStack(narrower, stack_kernel_size, d, bias, activation, pad, pad_params, use_causal_conv)
                for d in dilations
            ]
            rate, channels = math.prod(upsample_scales[: i + 1]), narrower
            reach += s / rate + (stack_kernel_size - 1) * sum(dilations) / rate
            reflected += [side(stack_kernel_size, d) / rate for d in dilations]
        layers += [activation(), *_conv(channels, out_channels, kernel_size, 1, *how)]
        self.melgan = nn.Sequential(*layers, *([nn.Tanh()] if use_final_nonlinear_activation else []))
        self.reach = math.ceil(reach + (kernel_size - 1) / self.scale)
        self.reflected = max(reflected) if pad == "ReflectionPad1d" else 0
        for conv in self.modules():
            if isinstance(conv, nn.Conv1d | nn.ConvTranspose1d):
                nn.init.normal_(conv.weight, 0.0, 0.02)

    def forward(self, c: Tensor) -> Tensor:
        if c.shape[2] <= self.reflected:
            raise ShapeError(f"{c.shape[2]} mel frames are too few: the upsampler reflects {math.floor(self.reflected)} of them")
        return self.melgan(c)


def _conv(n_in, n_out, kernel_size, dilation, bias, pad, pad_params, causal) -> list[nn.Module]:
    """A convolution that keeps the length, as the layers of a Sequential."""
    if causal:
        return [CausalConv1d(n_in, n_out, kernel_size, dilation, bias, pad, pad_params)]
    side = (kernel_size - 1) // 2 * dilation
    return [padding(pad, (side, side), pad_params), nn.Conv1d(n_in, n_out, kernel_size, dilation=dilation, bias=bias)]
