"""Models with random weights, to time and to compare where no trained ones are at hand."""

import math

import torch

from fastvoc.layers import GatedResidualStack
from fastvoc.models import MODELS


@torch.no_grad()
def random_model(family: str, seed: int = 0, **options) -> torch.nn.Module:
    """options: of the family's config. Activations are of order one in every layer, as trained ones are: saturated gates
    enlarge roundings. Weights that start as zeros, which would hide every error, are drawn as well.
    """
    torch.manual_seed(seed)
    model = MODELS[family](**options).eval()
    for stack in (m for m in model.modules() if isinstance(m, GatedResidualStack)):
        for layer in stack.layers:
            _draw(layer.conv.weight, 0.7)
            _draw(layer.out.weight, 0.7)
            if layer.cond is not None:
                _draw(layer.cond.weight, 0.5)
    for name, p in model.named_parameters():
        if not p.any() and name.endswith("weight"):
            _draw(p, 0.3)
    return model


def _draw(weight: torch.Tensor, gain: float) -> None:
    weight.normal_(0, gain / math.sqrt(weight[0].numel()))
