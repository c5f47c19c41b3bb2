"""Weight norm for training: w = g · v / ‖v‖, the norm of each of a convolution's first-axis slices.

Salimans and Kingma 2016, "Weight Normalization". All five vocoders were trained with it, lmnt's DiffWave excepted. Their
checkpoints are read with it folded away; these two functions put it back for fine-tuning, and take it away again.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

CONVOLUTIONS = nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d


@torch.no_grad()
def apply_weight_norm(model: Any) -> Any:
    """Weight norm on every convolution but those of `model.without_weight_norm`. The outputs stay what they are.

    The direction v starts as the weight itself, so g is its norm. Returns the model.
    """
    modules: Any = list(model.named_modules())
    for name, conv in modules:
        if isinstance(conv, CONVOLUTIONS) and not name.endswith(model.without_weight_norm) and not is_parametrized(conv):
            weight_norm(conv)
            parts: Any = conv.parametrizations.weight
            g, v = parts.original0, parts.original1
            # A row of zeros has no direction, and 0 / 0 is no number; with g = 0 it is zero in any direction
            v.masked_fill_(g == 0, 1.0)
    return model


def remove_weight_norm(model: Any) -> Any:
    """Plain weights again. Returns the model."""
    for conv in model.modules():
        if isinstance(conv, CONVOLUTIONS) and is_parametrized(conv, "weight"):
            remove_parametrizations(conv, "weight")
    return model
