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
    return name, params if activation is None else {**params, **_activation(activation)}


def melgan_upsampler(network: nn.Module) -> dict:
    """Constructor arguments of the MelGANGenerator that Parallel WaveGAN can upsample by."""
    layers, convs = list(network.melgan), [m for m in network.modules() if isinstance(m, nn.Conv1d)]
    ups = [m for m in network.modules() if isinstance(m, nn.ConvTranspose1d)]
    stacks = [layer for layer in layers if hasattr(layer, "skip_layer")]
    first_up = next(i for i, layer in enumerate(layers) if ups[0] in [*layer.modules()])
    pad = getattr(layers[0], "pad", layers[0])  # causal convolutions hold their own
    return {
        "in_channels": convs[0].in_channels,
        "out_channels": convs[-1].out_channels,
        "kernel_size": convs[0].kernel_size[0],
        "channels": convs[0].out_channels,
        "bias": convs[0].bias is not None,
        "upsample_scales": [up.stride[0] for up in ups],
        "stack_kernel_size": next((m.kernel_size[0] for s in stacks for m in s.modules() if isinstance(m, nn.Conv1d)), 3),
        "stacks": len(stacks) // len(ups),
        "pad": type(pad).__name__,
        "pad_params": {"value": pad.value} if hasattr(pad, "value") else {},
        **_activation(layers[first_up - 1]),
    }


def _activation(module: nn.Module) -> dict:
    params = {c: getattr(module, c) for c in getattr(module, "__constants__", ())}
    return {"nonlinear_activation": type(module).__name__, "nonlinear_activation_params": params}
