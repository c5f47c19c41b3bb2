"""lmnt-com/diffwave's DiffWave(params). It has no method for inference: diffwave.inference.predict calls the network once
per step, and finds the model in its table `models`. So the model here can be called as that one is, and can be put there:

    diffwave.inference.models[name] = fastvoc.accelerate(model);   predict(spectrogram, name)

`infer` does the same without leaving fastvoc between the steps, which is faster.
"""

import inspect
from functools import partial

import torch
from torch import Tensor, nn

from fastvoc.adapters.becoming import become, in_dtype_of
from fastvoc.checkpoints import diffwave_lmnt
from fastvoc.checkpoints.weight_norm import fold_weight_norm
from fastvoc.errors import ConfigError
from fastvoc.models.diffwave import DiffWave

UPSTREAM = "lmnt-com/diffwave's DiffWave"


class LmntDiffWave(DiffWave):
    """model(audio, diffusion_step, spectrogram), or in the order of its time model(audio, spectrogram, diffusion_step)."""

    order = ("diffusion_step", "spectrogram")

    def forward(self, audio: Tensor, *args, **named) -> Tensor:
        named |= zip(self.order, args)
        audio, named = in_dtype_of(self, audio), {name: in_dtype_of(self, x) for name, x in named.items()}
        stack = self.stack if torch.is_grad_enabled() else partial(self.stack.infer, precision=self.precision)
        return self._predicted(audio, named["diffusion_step"], named.get("spectrogram"), None, stack)


def matches(module: nn.Module, names: set[str]) -> bool:
    return diffwave_lmnt.matches(dict.fromkeys(names), None)


def adapt(module: nn.Module, state: dict[str, Tensor], params: dict | None = None) -> LmntDiffWave:
    """params: lmnt's hyper-parameters, where the module does not have them as an attribute."""
    own = getattr(module, "params", None)
    params = own if params is None else params
    if not isinstance(params, dict):
        raise ConfigError("this DiffWave has no params, lmnt's hyper-parameters.", hint="Pass params=….")
    # Some of lmnt's code changes params as attributes, which its dictionary does not see
    values = {**params, **(vars(params) if hasattr(params, "__dict__") else {})}
    model = become(LmntDiffWave, diffwave_lmnt.from_state(fold_weight_norm(state), values, type(module).__name__))
    model.params = params
    names = list(inspect.signature(module.forward).parameters)[1:3]
    if set(names) == set(LmntDiffWave.order):
        model.order = tuple(names)
    return model
