"""Adversarial losses of a generator G and its discriminator D; outputs near 1 mean "a recording".

    least squares ("mse")    L_G = mean (D(G(z)) - 1)²         L_D = mean (D(y) - 1)² + mean D(G(z))²
    hinge                    L_G = -mean D(G(z))               L_D = mean max(1 - D(y), 0) + mean max(1 + D(G(z)), 0)

Mao et al. 2017, "Least Squares Generative Adversarial Networks", eq. 2, in Yamamoto et al. 2020, "Parallel WaveGAN",
eqs. 1 and 2; the hinge form is Lim & Ye 2017's. A discriminator's output is a tensor, or a list with one entry for each of
several discriminators, an entry being a tensor or the list of all its layers' outputs, of which the last counts.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from fastvoc.errors import ConfigError, ShapeError

Outputs = Tensor | Sequence[Tensor] | Sequence[Sequence[Tensor]]  # of a discriminator, of several, with all their layers
GENERATOR = {"mse": lambda fake: (fake - 1).square().mean(), "hinge": lambda fake: -fake.mean()}
REAL = {"mse": GENERATOR["mse"], "hinge": lambda real: F.relu(1 - real).mean()}
FAKE = {"mse": lambda fake: fake.square().mean(), "hinge": lambda fake: F.relu(1 + fake).mean()}


def generator_adversarial_loss(fake: Outputs, loss_type: str = "mse", average_by_discriminators: bool = True) -> Tensor:
    """What the generator is told: fake is the discriminator's output for its wave."""
    return _over_discriminators(_criterion(GENERATOR, loss_type), fake, average_by_discriminators)


def discriminator_adversarial_loss(
    fake: Outputs, real: Outputs, loss_type: str = "mse", average_by_discriminators: bool = True
) -> tuple[Tensor, Tensor]:
    """(loss of the recordings, loss of the generated), whose sum the discriminator is trained on."""
    return (
        _over_discriminators(_criterion(REAL, loss_type), real, average_by_discriminators),
        _over_discriminators(_criterion(FAKE, loss_type), fake, average_by_discriminators),
    )


def _criterion(criteria: dict, loss_type: str):
    if loss_type not in criteria:
        raise ConfigError(f"loss_type: got {loss_type!r}, expected one of {sorted(criteria)}")
    return criteria[loss_type]


def _over_discriminators(criterion, outputs, average: bool) -> Tensor:
    if isinstance(outputs, Tensor):
        return criterion(outputs)
    if not outputs:
        raise ShapeError("the discriminator's output is an empty list, expected a tensor or a list of outputs")
    losses = [criterion(output if isinstance(output, Tensor) else output[-1]) for output in outputs]
    return sum(losses) / (len(losses) if average else 1)
