"""Feature matching: what a discriminator's layers see in a generated wave, against what they see in the recording.

    L = mean_k mean_l mean |D_k^l(y) - D_k^l(G(z))|          k discriminators, l their layers but for the last

The recording's features are targets: no gradient goes through them. Kumar et al. 2019, "MelGAN", eq. 4; averages as in
kan-bayashi/ParallelWaveGAN's FeatureMatchLoss.
"""
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fastvoc.errors import ShapeError


def feature_matching_loss(
    fake: list[list[Tensor]],
    real: list[list[Tensor]],
    average_by_layers: bool = True,
    average_by_discriminators: bool = True,
    include_final_outputs: bool = False,
) -> Tensor:
    """fake, real: for each discriminator the outputs of its layers -> scalar"""
    if not fake or len(fake) != len(real) or any(len(f) != len(r) for f, r in zip(fake, real)):
        raise ShapeError("fake and real must be lists of equally many discriminators with equally many layers each")
    total: Any = 0.0
    for fake_layers, real_layers in zip(fake, real):
        end = len(fake_layers) if include_final_outputs else len(fake_layers) - 1
        if end < 1:
            raise ShapeError("a discriminator of one layer has no features to match")
        losses = [F.l1_loss(f, r.detach()) for f, r in zip(fake_layers[:end], real_layers[:end])]
        total = total + sum(losses) / (end if average_by_layers else 1)
    return total / (len(fake) if average_by_discriminators else 1)
