"""What Parallel WaveNet is trained on: the opinion of a trained WaveNet of the samples that the student makes of noise.

    distillation   divergence from the teacher, and its regularisation or contrast (training/distillation.py)
    spectral       frame, power or multi-resolution STFT loss against the recording; the last is what Parallel WaveGAN's
                   authors train a ClariNet student with (Yamamoto et al. 2019 and 2020)

The recipe names the teacher's file or folder ("teacher", or `--teacher`). Its mel convention, pre-emphasis and gain are
the student's too. With "teacher_upsampler" the student's mel goes through a frozen copy of the teacher's upsampler, as in
ClariNet.
"""

import dataclasses
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from fastvoc.errors import ConfigError
from fastvoc.losses.frame_loss import frame_loss
from fastvoc.losses.gaussian_kl import REGULARISATION
from fastvoc.losses.power_loss import power_loss
from fastvoc.losses.stft import multi_resolution_stft_loss
from fastvoc.models.parallel_wavenet import ParallelWaveNet
from fastvoc.models.preprocessing import Preprocessing
from fastvoc.models.wavenet import WaveNet
from fastvoc.training.data import Corpus
from fastvoc.training.distillation import distill
from fastvoc.training.task import Draws, Task


def resolutions_loss(x: Tensor, y: Tensor, **sizes) -> Tensor:
    convergence, magnitude = multi_resolution_stft_loss(x, y, **sizes)
    return convergence + magnitude


SPECTRAL = {"frame": frame_loss, "power": power_loss, "stft": resolutions_loss}


class ParallelWaveNetTask(Task):
    Model = ParallelWaveNet

    def __init__(self, recipe: dict):
        super().__init__(recipe)
        spectral = {"loss": "frame", "weight": 1.0, **recipe.get("spectral", {})}
        if spectral["loss"] not in SPECTRAL:
            raise ConfigError(f"spectral loss: got {spectral['loss']!r}, expected one of {sorted(SPECTRAL)}")
        self.spectral_weight = spectral.pop("weight")
        self.spectral = partial(SPECTRAL[spectral.pop("loss")], **spectral)
        self.teacher = self._teacher(recipe["teacher"]) if recipe.get("teacher") else None

    def _teacher(self, path) -> WaveNet:
        from fastvoc.models import load

        teacher = load(Path(path))
        if not isinstance(teacher, WaveNet) or teacher.preprocessing is None:
            raise ConfigError(f"{path} is no WaveNet with a known mel convention, as a teacher must be")
        mel = teacher.preprocessing.mel
        same = dataclasses.replace(mel, mean=None, scale=None) == self.mel
        if not same or teacher.context_frames != self.context or teacher.n_mels != self.config.cin_channels:
            raise ConfigError(
                f"{path} was trained on another mel convention than the recipe's, or with other context frames",
                hint=f"Its mel is {mel.to_dict()}, with {teacher.context_frames} context frames.",
            )
        self.mel = mel
        return teacher.requires_grad_(False)

    def model(self) -> nn.Module:
        model = super().model()
        if self.teacher is not None and self.recipe.get("teacher_upsampler"):
            _copy(self.teacher.upsample_net, model.upsample_net)
            model.upsample_net.requires_grad_(False)
        return model

    def preprocessing(self) -> Preprocessing:
        if self.teacher is None:
            return super().preprocessing()
        return dataclasses.replace(self.teacher.preprocessing, temperature=self.recipe.get("temperature", 1.0))

    def prepare(self, corpus: Corpus) -> None:
        if self.teacher is None:
            raise ConfigError(
                "a Parallel WaveNet is distilled from a trained WaveNet, and the recipe names none.",
                hint="Name it with --teacher PATH, a checkpoint or the model folder of a training.",
            )
        super().prepare(corpus)

    def losses(self, name: str, networks: dict, waves: Tensor, mels: Tensor, draws: Draws, step: int) -> dict[str, Tensor]:
        parts = self._distill(networks["model"], waves, mels, draws, self.recipe.get("contrastive", 0.0))
        spectral = self.spectral_weight * parts["spectral"]
        return {"distillation": parts["total"] - spectral, "spectral": spectral}

    def validation_loss(self, networks: dict, waves: Tensor, mels: Tensor, draws: Draws) -> Tensor:
        return self._distill(networks["model"], waves, mels, draws, 0.0)["total"]

    def _distill(self, run, waves: Tensor, mels: Tensor, draws: Draws, contrastive: float) -> dict[str, Tensor]:
        uniform, n = None, waves.shape[1]
        if self.config.distribution == "logistic":
            inside = lambda u: 1e-5 + (1 - 2e-5) * u
            z = torch.logit(inside(draws.uniform(n)))
            uniform = inside(draws.uniform(self.recipe.get("monte_carlo", 100), n)).transpose(0, 1)
        else:
            z = draws.normal(n)
        return distill(
            self.config, self.teacher.to(waves.device), mels, z, waves, run=run, uniform=uniform,
            other_mel=mels.roll(1, 0) if contrastive else None, contrastive_weight=contrastive,
            direction=self.recipe.get("direction", "reverse"),
            regularisation=self.recipe.get("regularisation", REGULARISATION),
            spectral_loss=self.spectral, spectral_weight=self.spectral_weight,
        )  # fmt: skip


@torch.no_grad()
def _copy(source: nn.Module, target: nn.Module) -> None:
    for name, module in source.named_modules():
        for parameter, value in module.named_parameters(recurse=False):
            try:
                mine = target.get_submodule(name)
                if is_parametrized(mine, parameter):
                    setattr(mine, parameter, value.detach())
                else:
                    getattr(mine, parameter).copy_(value)
            except (AttributeError, RuntimeError):
                raise ConfigError(
                    f"the recipe's upsampler is not built as its teacher's: {name}.{parameter}",
                    hint="Give the model the teacher's upsample_net and upsample_params, or drop teacher_upsampler.",
                ) from None
