"""What a network was built with, read from the instance."""

from torch import nn

from fastvoc.errors import ConfigError


def dilation_cycle(convs: list[nn.Conv1d]) -> int:
    """The length of 1, 2, 4 …, 1, 2, 4 …"""
    dilations = [conv.dilation[0] for conv in convs]
    cycle = dilations.index(1, 1) if 1 in dilations[1:] else len(dilations)
    if dilations != [2 ** (i % cycle) for i in range(len(dilations))]:
        raise ConfigError(f"dilations {dilations} are no cycles of 1, 2, 4 …")
    return cycle


def upsampler(network: nn.Module) -> tuple[str, dict]:
    """(class, constructor arguments) of an UpsampleNetwork or ConvInUpsampleNetwork, r9y9's or Parallel WaveGAN's."""
    inner = getattr(network, "upsample", network)
    name = "UpsampleNetwork" if inner is network else "ConvInUpsampleNetwork"
    layers = list(inner.up_layers)
    stretches = [layer for layer in layers if hasattr(layer, "x_scale")]
    convs = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    params = {
        "upsample_scales": [int(layer.x_scale) for layer in stretches],
        "interpolate_mode": stretches[0].mode,
        "freq_axis_kernel_size": convs[0].kernel_size[0],
    }
    activation = next((layer for layer in layers if layer not in stretches and layer not in convs), None)
    if activation is not None:
        params["nonlinear_activation"] = type(activation).__name__
        params["nonlinear_activation_params"] = {c: getattr(activation, c) for c in getattr(activation, "__constants__", ())}
    return name, params
