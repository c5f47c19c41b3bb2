"""philsyn/DiffWave-Vocoder's WaveNet_vocoder. Its util.sampling calls the network once per step, net((x, mel, steps)); so
the model here can be called as that one is. `infer` is faster.
"""

from functools import partial

import torch
from torch import Tensor, nn

from fastvoc.adapters.becoming import become, in_dtype_of
from fastvoc.adapters.structure import dilation_cycle
from fastvoc.checkpoints import diffwave_philsyn
from fastvoc.checkpoints.weight_norm import fold_weight_norm
from fastvoc.errors import ConfigError
from fastvoc.models.diffwave import DiffWave

UPSTREAM = "philsyn/DiffWave-Vocoder's WaveNet_vocoder"


class PhilsynDiffWave(DiffWave):
    """model((audio, mel_spectrogram, diffusion_steps)) -> (B, 1, T)"""

    def forward(self, input_data) -> Tensor:
        audio, *mel, step = (in_dtype_of(self, x) for x in input_data)
        stack = self.stack if torch.is_grad_enabled() else partial(self.stack.infer, precision=self.precision)
        return self._predicted(audio, step, mel[0] if mel else None, None, stack)


def matches(module: nn.Module, names: set[str]) -> bool:
    return diffwave_philsyn.matches(dict.fromkeys(names), None)


def adapt(module: nn.Module, state: dict[str, Tensor], diffusion_config: dict | None = None) -> PhilsynDiffWave:
    """diffusion_config: {"T", "beta_0", "beta_T"} of upstream's config.json; the module does not have it."""
    if not isinstance(diffusion_config, dict):
        raise ConfigError(
            "philsyn's module does not tell its noise schedule.",
            hint='Pass diffusion_config={"T": 50, "beta_0": 0.0001, "beta_T": 0.05}, as in its config.json.',
        )
    convs = [block.dilated_conv_layer.conv for block in module.residual_layer.residual_blocks]
    values = {"diffusion_config": diffusion_config, "wavenet_config": {"dilation_cycle": dilation_cycle(convs)}}
    name = type(module).__name__
    return become(PhilsynDiffWave, diffwave_philsyn.from_state(fold_weight_norm(state), values, name, "diffusion_config"))

