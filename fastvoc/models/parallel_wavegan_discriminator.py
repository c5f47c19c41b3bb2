"""The discriminators that Parallel WaveGAN is trained against, with kan-bayashi/ParallelWaveGAN's constructors.

    ParallelWaveGANDiscriminator            v1: dilated convolutions; Yamamoto et al. 2020, section 3.1
    ResidualParallelWaveGANDiscriminator    a WaveNet stack without conditioning
    MelGANMultiScaleDiscriminator           v3: three at halved rates; Kumar et al. 2019, "MelGAN", section 2.3

All take waves (B, in_channels, T). The parameter names are upstream's; weight norm is torch's parametrization, whose
state_dict spells g and v original0 and original1 and which loads either spelling.
"""

import math

from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from fastvoc.errors import ConfigError
from fastvoc.layers.nonlinearity import nonlinearity
from fastvoc.layers.padding import padding
from fastvoc.layers.wavenet_residual_block import WaveNetStack

LEAKY = {"negative_slope": 0.2}
HALVED = {"kernel_size": 4, "stride": 2, "padding": 1, "count_include_pad": False}
POOLINGS = {"AvgPool1d": nn.AvgPool1d, "MaxPool1d": nn.MaxPool1d}


class ParallelWaveGANDiscriminator(nn.Module):
    """(B, in_channels, T) -> (B, out_channels, T). Layer i has dilation i, or dilation_factor^i; at least 1."""

    def __init__(
        self,
        in_channels=1,
        out_channels=1,
        kernel_size=3,
        layers=10,
        conv_channels=64,
        dilation_factor=1,
        nonlinear_activation="LeakyReLU",
        nonlinear_activation_params=LEAKY,
        bias=True,
        use_weight_norm=True,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0 or dilation_factor < 1 or layers < 2:
            raise ConfigError(
                f"kernel_size={kernel_size}, dilation_factor={dilation_factor}, layers={layers}: "
                "expected an odd kernel, a dilation_factor of at least 1 and at least 2 layers"
            )
        self.conv_layers = nn.ModuleList()
        for i in range(layers - 1):
            dilation = 1 if i == 0 else i if dilation_factor == 1 else dilation_factor**i
            n_in = in_channels if i == 0 else conv_channels
            self.conv_layers += [
                _conv(n_in, conv_channels, kernel_size, dilation, bias),
                nonlinearity(nonlinear_activation, nonlinear_activation_params),
            ]
        self.conv_layers.append(_conv(conv_channels, out_channels, kernel_size, 1, bias))
        if use_weight_norm:
            _apply_weight_norm(self)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.conv_layers:
            x = layer(x)
        return x


class ResidualParallelWaveGANDiscriminator(WaveNetStack):
    """(B, in_channels, T) -> (B, out_channels, T)."""

    def __init__(
        self,
        in_channels=1,
        out_channels=1,
        kernel_size=3,
        layers=30,
        stacks=3,
        residual_channels=64,
        gate_channels=128,
        skip_channels=64,
        dropout=0.0,
        bias=True,
        use_weight_norm=True,
        use_causal_conv=False,
        nonlinear_activation="LeakyReLU",
        nonlinear_activation_params=LEAKY,
    ) -> None:
        super().__init__(
            layers, stacks, kernel_size=kernel_size, residual_channels=residual_channels, gate_channels=gate_channels,
            skip_channels=skip_channels, aux_channels=-1, dropout=dropout, bias=bias, use_causal_conv=use_causal_conv,
        )  # fmt: skip
        activation = lambda: nonlinearity(nonlinear_activation, nonlinear_activation_params)
        self.first_conv = nn.Sequential(_conv(in_channels, residual_channels, 1), activation())
        self.last_conv_layers = nn.ModuleList(
            [activation(), _conv(skip_channels, skip_channels, 1), activation(), _conv(skip_channels, out_channels, 1)]
        )
        if use_weight_norm:
            _apply_weight_norm(self)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # it takes no conditioning
        x = super().forward(self.first_conv(x))
        for layer in self.last_conv_layers:
            x = layer(x)
        return x


class MelGANDiscriminator(nn.Module):
    """(B, in_channels, T) -> what every layer gives, a list; the last is (B, out_channels, T / Π downsample_scales)."""

    def __init__(
        self,
        in_channels=1,
        out_channels=1,
        kernel_sizes=(5, 3),
        channels=16,
        max_downsample_channels=1024,
        bias=True,
        downsample_scales=(4, 4, 4, 4),
        nonlinear_activation="LeakyReLU",
        nonlinear_activation_params=LEAKY,
        pad="ReflectionPad1d",
        pad_params=None,
    ) -> None:
        super().__init__()
        if len(kernel_sizes) != 2 or not all(k % 2 for k in kernel_sizes):
            raise ConfigError(f"kernel_sizes must be two odd numbers, got {kernel_sizes}")
        activation = lambda: nonlinearity(nonlinear_activation, nonlinear_activation_params)
        front = math.prod(kernel_sizes)
        self.layers = nn.ModuleList(
            [
                nn.Sequential(
                    padding(pad, (front // 2, front // 2), pad_params),
                    nn.Conv1d(in_channels, channels, front, bias=bias),
                    activation(),
                )
            ]
        )
        for scale in downsample_scales:
            wider = min(channels * scale, max_downsample_channels)
            conv = nn.Conv1d(channels, wider, 10 * scale + 1, scale, 5 * scale, groups=channels // 4, bias=bias)
            self.layers.append(nn.Sequential(conv, activation()))
            channels = wider
        wider = min(2 * channels, max_downsample_channels)
        first, second = (nn.Conv1d(*size, padding=size[2] // 2, bias=bias)
                         for size in ((channels, wider, kernel_sizes[0]), (wider, out_channels, kernel_sizes[1])))  # fmt: skip
        self.layers += [nn.Sequential(first, activation()), second]
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for layer in self.layers:
            x = layer(x)
            outputs.append(x)
        return outputs


class MelGANMultiScaleDiscriminator(nn.Module):
    """A MelGANDiscriminator for the wave and for each of its halved rates: (B, in_channels, T) -> a list of their lists."""

    def __init__(
        self,
        in_channels=1,
        out_channels=1,
        scales=3,
        downsample_pooling="AvgPool1d",
        downsample_pooling_params=HALVED,
        kernel_sizes=(5, 3),
        channels=16,
        max_downsample_channels=1024,
        bias=True,
        downsample_scales=(4, 4, 4, 4),
        nonlinear_activation="LeakyReLU",
        nonlinear_activation_params=LEAKY,
        pad="ReflectionPad1d",
        pad_params=None,
        use_weight_norm=True,
    ) -> None:
        super().__init__()
        if downsample_pooling not in POOLINGS:
            raise ConfigError(f"downsample_pooling: got {downsample_pooling!r}, expected one of {sorted(POOLINGS)}")
        self.discriminators = nn.ModuleList(
            MelGANDiscriminator(
                in_channels, out_channels, kernel_sizes, channels, max_downsample_channels, bias, downsample_scales,
                nonlinear_activation, nonlinear_activation_params, pad, pad_params,
            )
            for _ in range(scales)
        )  # fmt: skip
        self.pooling = POOLINGS[downsample_pooling](**downsample_pooling_params)
        if use_weight_norm:
            _apply_weight_norm(self)

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        outputs = []
        for discriminator in self.discriminators:
            outputs.append(discriminator(x))
            x = self.pooling(x)
        return outputs


DISCRIMINATORS = {
    cls.__name__: cls
    for cls in (ParallelWaveGANDiscriminator, ResidualParallelWaveGANDiscriminator, MelGANMultiScaleDiscriminator)
}


def _conv(n_in: int, n_out: int, kernel: int, dilation: int = 1, bias: bool = True) -> nn.Conv1d:
    conv = nn.Conv1d(n_in, n_out, kernel, padding=(kernel - 1) // 2 * dilation, dilation=dilation, bias=bias)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    if bias:
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # torch: it may be None
    return conv


def _apply_weight_norm(module: nn.Module) -> None:
    for conv in [m for m in module.modules() if isinstance(m, nn.Conv1d)]:
        weight_norm(conv)
