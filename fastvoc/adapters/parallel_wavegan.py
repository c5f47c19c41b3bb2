"""kan-bayashi/ParallelWaveGAN's ParallelWaveGANGenerator: `inference(c, x, normalize_before)`."""

import numpy as np
import torch
from torch import Tensor, nn

from fastvoc.adapters.becoming import become
from fastvoc.adapters.structure import dilation_cycle, melgan_upsampler, upsampler
from fastvoc.checkpoints import parallel_wavegan
from fastvoc.checkpoints.weight_norm import fold_weight_norm
from fastvoc.errors import ConfigError, IncompatibleCheckpointError, ShapeError
from fastvoc.models.parallel_wavegan import ParallelWaveGAN, ParallelWaveGANConfig
from fastvoc.models.pretrained import load_weights

UPSTREAM = "kan-bayashi/ParallelWaveGAN's ParallelWaveGANGenerator"


class Generator(ParallelWaveGAN):
    """ParallelWaveGAN with the upstream's `inference`."""

    has_statistics = False

    def inference(self, c=None, x=None, normalize_before: bool = False) -> Tensor:
        """c (n_frames, n_mels), x (n_samples, in_channels) noise, tensors or arrays -> (n_samples, out_channels).

        Without x the noise is what the upstream would draw from torch's generator.
        """
        to = self.first_conv.weight
        c, x = (None if v is None else torch.as_tensor(np.asarray(v) if isinstance(v, list) else v).to(to) for v in (c, x))
        if normalize_before and not self.has_statistics:
            raise ConfigError("normalize_before needs the statistics, and this generator has none registered.",
                              hint="Call register_stats of the original before accelerate.")  # fmt: skip
        if c is None and x is None:
            raise ConfigError("pass c, the mel, or for an unconditional generator x, the noise")
        if c is not None and c.dim() != 2:
            raise ShapeError(f"c is {tuple(c.shape)}, expected (n_frames, {self.n_mels})")
        if x is None:
            x = torch.randn(1, 1, len(c) * self.hop_length).to(to)[0].t()
        noise = x.t()[None]
        mel = None if c is None or not self.n_mels else c.t()[None].contiguous()
        y = self.infer(mel, noise=noise[:, 0] if noise.shape[1] == 1 else noise, normalised=not normalize_before)
        return y.reshape(-1, y.shape[-1]).t()


def matches(module: nn.Module, names: set[str]) -> bool:
    # An unconditional generator has no conv1x1_aux; its out and skip convolutions are r9y9's too, its stacks are not
    aux = any(name.startswith("conv_layers.0.conv1x1_aux.") for name in names)
    return aux or (hasattr(module, "aux_channels") and any(n.startswith("conv_layers.0.conv1x1_skip.") for n in names))


def adapt(module: nn.Module, state: dict[str, Tensor]) -> Generator:
    name = type(module).__name__
    state = fold_weight_norm(state)
    mean, scale = state.pop("mean", None), state.pop("scale", None)
    model = ParallelWaveGAN(config_of(module, state, name))
    given = parallel_wavegan.canonical(state, model.config)
    n = model.n_mels
    given["mean"] = torch.zeros(n) if mean is None else mean.reshape(-1)
    given["scale"] = torch.ones(n) if scale is None else scale.reshape(-1)
    load_weights(model, given, name)
    model = become(Generator, model)
    model.has_statistics = mean is not None and scale is not None
    return model


def config_of(module: nn.Module, state: dict[str, Tensor], name: str) -> ParallelWaveGANConfig:
    try:
        conv, blocks = state["conv_layers.0.conv.weight"], module.conv_layers
        net = getattr(module, "upsample_net", None)
        if hasattr(net, "melgan"):
            kind, params = "MelGANGenerator", melgan_upsampler(net)
        else:
            kind, params = ("ConvInUpsampleNetwork", None) if net is None else upsampler(net)
        values = {
            "in_channels": state["first_conv.weight"].shape[1],
            "out_channels": state["last_conv_layers.3.weight"].shape[0],
            "kernel_size": conv.shape[2],
            "layers": len(blocks),
            "stacks": len(blocks) // dilation_cycle([block.conv for block in blocks]),
            "residual_channels": conv.shape[1],
            "gate_channels": conv.shape[0],
            "skip_channels": state["conv_layers.0.conv1x1_skip.weight"].shape[0],
            "aux_channels": module.aux_channels,
            "aux_context_window": module.aux_context_window,
            "dropout": float(getattr(blocks[0], "dropout", 0.0)),
            "bias": "conv_layers.0.conv.bias" in state,
            "use_causal_conv": bool(blocks[0].use_causal_conv),
            "upsample_conditional_features": net is not None,
            "upsample_net": kind,
        }
    except (AttributeError, KeyError, IndexError) as fault:
        raise IncompatibleCheckpointError(f"{name} lacks what a ParallelWaveGANGenerator has: {fault}") from None
    return ParallelWaveGANConfig(**values, **({} if params is None else {"upsample_params": params}))

