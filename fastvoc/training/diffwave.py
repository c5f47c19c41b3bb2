"""What DiffWave is trained on: the noise in a wave that was noised by a random number of diffusion steps."""

import torch
from torch import Tensor

from fastvoc.losses.diffwave import diffused, diffwave_loss
from fastvoc.models.diffwave import DiffWave
from fastvoc.models.diffwave_schedule import noise_levels
from fastvoc.training.task import Draws, Task


class DiffWaveTask(Task):
    Model = DiffWave
    loss_unit = "noise's standard deviations"

    def losses(self, name: str, networks: dict, waves: Tensor, mels: Tensor, draws: Draws, step: int) -> dict[str, Tensor]:
        t = draws.integers(len(self.config.noise_schedule))
        noise = draws.normal(waves.shape[1])
        levels = noise_levels(self.config.noise_schedule, self.config.float32_schedule)
        noisy = diffused(waves, noise, torch.from_numpy(levels).to(waves)[t])
        predicted = networks["model"](noisy, t, mels)
        return {"noise": diffwave_loss(predicted, noise, self.recipe.get("norm", "l1"), reduction="mean")}
