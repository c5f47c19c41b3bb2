"""`accelerate`: from an instance of a public implementation's class to the fastvoc model with its weights.

One adapter per class. It has `UPSTREAM`, one line for people; `matches(module, names)`, which looks at attributes and
parameter names and never at the class, so that forks work; and `adapt(module, state, **options)`, which returns the model:
a subclass that adds the upstream's own methods for inference.
"""

import inspect
from typing import Any

from torch import nn

from fastvoc.adapters import clarinet, diffwave_lmnt, diffwave_philsyn, parallel_wavegan, waveglow, wavenet_r9y9
from fastvoc.checkpoints.families import nearest
from fastvoc.checkpoints.reading import float_tensors
from fastvoc.errors import ConfigError, DTypeError, IncompatibleCheckpointError
from fastvoc.models.vocoder import Vocoder
from fastvoc.ops.wavenet_generate import PRECISIONS

ADAPTERS = [waveglow, parallel_wavegan, diffwave_lmnt, diffwave_philsyn, clarinet, wavenet_r9y9]

__all__ = ["ADAPTERS", "accelerate"]


def accelerate(module: nn.Module, precision: str = "fp32", **options: Any) -> Vocoder:
    """The fastvoc model with the weights of `module`, an instance of a public implementation's class.

    It is called for inference as `module` is, has `infer` beside that, and is on the module's device, in eval mode. The
    weights are copies: what is trained on in `module` later does not come along.

    precision  of inference: "fp32" or "bf16"
    options    what an adapter asks for where the module does not tell, such as diffusion_config for philsyn's DiffWave

    Raises DTypeError, ConfigError, CheckpointError and their kin.
    """
    if not isinstance(module, nn.Module):
        raise DTypeError(f"module is a {type(module).__name__}, expected an instance of a torch.nn.Module.",
                         hint="For a file, use fastvoc.load(path).")  # fmt: skip
    if precision not in PRECISIONS:
        raise ConfigError(f"precision: got {precision!r}, expected one of {list(PRECISIONS)}")
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        module = module.module
    name = type(module).__name__
    state = float_tensors({k: v.detach().cpu() for k, v in module.state_dict().items() if v.is_floating_point()}, name)
    for adapter in ADAPTERS:
        if adapter.matches(module, set(state)):
            known = list(inspect.signature(adapter.adapt).parameters)[2:]
            for option in options:
                if option not in known:
                    raise ConfigError(f"unknown option {option!r} for {adapter.UPSTREAM}; it takes {known or 'none'}")
            model = adapter.adapt(module, state, **options)
            model.precision = precision
            return model.to(next(module.parameters()).device)
    supported = "Supported are: " + "; ".join(adapter.UPSTREAM for adapter in ADAPTERS) + "."
    raise IncompatibleCheckpointError(
        f"{name} is no module that fastvoc knows.", hint=" ".join(filter(None, [nearest(state), supported]))
    )
