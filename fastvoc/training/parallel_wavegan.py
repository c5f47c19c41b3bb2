"""What Parallel WaveGAN is trained on: the recording's spectra at several resolutions, and after a while a discriminator.

    generator       L_sc + L_mag + λ_adv·(L_adv + λ_fm·L_fm)          the second half from step discriminator.start on
    discriminator   L_real + L_fake                                   from there on, after the generator, with its new wave

Yamamoto et al. 2020, "Parallel WaveGAN", eqs. 1 to 7; the order of the updates is kan-bayashi/ParallelWaveGAN's.
"""

import torch
from torch import Tensor, nn

from fastvoc.errors import ConfigError
from fastvoc.losses.adversarial import discriminator_adversarial_loss, generator_adversarial_loss
from fastvoc.losses.feature_matching import feature_matching_loss
from fastvoc.losses.stft import multi_resolution_stft_loss
from fastvoc.models.parallel_wavegan import ParallelWaveGAN
from fastvoc.models.parallel_wavegan_discriminator import DISCRIMINATORS
from fastvoc.models.vocoder import Vocoder
from fastvoc.training.data import Corpus
from fastvoc.training.task import Draws, Task, with_statistics


class ParallelWaveGANTask(Task):
    Model = ParallelWaveGAN

    def __init__(self, recipe: dict):
        super().__init__(recipe)
        self.statistics = None
        missing = [key for key in ("discriminator", "stft", "lambda_adversarial") if key not in recipe]
        if missing or "start" not in self.options.get("discriminator", {}):
            raise ConfigError(f"a recipe for Parallel WaveGAN lacks {', '.join(missing) or 'training.discriminator.start'}")
        self.discriminator_params = dict(recipe["discriminator"])
        self.kind = self.discriminator_params.pop("type", "ParallelWaveGANDiscriminator")
        if self.kind not in DISCRIMINATORS:
            raise ConfigError(f"discriminator type: got {self.kind!r}, expected one of {sorted(DISCRIMINATORS)}")

    def networks(self) -> dict[str, nn.Module]:
        try:
            return {"model": self.model(), "discriminator": DISCRIMINATORS[self.kind](**self.discriminator_params)}
        except TypeError as fault:
            raise ConfigError(f"the recipe's discriminator does not fit {self.kind}: {fault}") from None

    def model(self) -> nn.Module:
        model = super().model()
        for buffer, values in zip((model.mean, model.scale), self.statistics):
            buffer.copy_(torch.tensor(values))
        return model

    def start_from(self, model: ParallelWaveGAN) -> tuple[list[float], list[float]]:
        super().start_from(model)
        return model.mean.tolist(), model.scale.tolist()  # its own; a model without statistics has 0 and 1

    def set_statistics(self, mean: list[float], scale: list[float]) -> None:
        self.statistics = mean, scale

    def prepare(self, corpus: Corpus) -> None:
        super().prepare(corpus)
        statistics = with_statistics(self.mel, *self.statistics)  # the model's own, so not part of self.mel
        corpus.mels = [statistics.normalise(mel) for mel in corpus.mels]

    def phases(self, step: int) -> list[str]:
        return ["model", "discriminator"] if self._is_adversarial(step) else ["model"]

    def _is_adversarial(self, step: int) -> bool:
        return step >= self.options["discriminator"]["start"]

    def losses(self, name: str, networks: dict, waves: Tensor, mels: Tensor, draws: Draws, step: int) -> dict[str, Tensor]:
        real, z = waves[:, None], draws.normal(self.config.in_channels, waves.shape[1])
        made, judge = networks["model"](z, mels), networks["discriminator"]
        if name == "discriminator":
            real_loss, fake_loss = discriminator_adversarial_loss(judge(made), judge(real))
            return {"real": real_loss, "fake": fake_loss}
        losses = self._stft(made, real)
        if self._is_adversarial(step):
            judged, adversarial = judge(made), self.recipe["lambda_adversarial"]
            losses["adversarial"] = adversarial * generator_adversarial_loss(judged)
            if self.recipe.get("lambda_feature_matching"):
                matching = feature_matching_loss(judged, judge(real))
                losses["feature_matching"] = adversarial * self.recipe["lambda_feature_matching"] * matching
        return losses

    def validation_loss(self, networks: dict, waves: Tensor, mels: Tensor, draws: Draws) -> Tensor:
        made = networks["model"](draws.normal(self.config.in_channels, waves.shape[1]), mels)
        return sum(self._stft(made, waves[:, None]).values())

    def _stft(self, made: Tensor, real: Tensor) -> dict[str, Tensor]:
        convergence, magnitude = multi_resolution_stft_loss(made, real, **self.recipe["stft"])
        return {"spectral_convergence": convergence, "log_magnitude": magnitude}

    def sample(self, model: Vocoder, mel: Tensor):
        return model.vocode(mel[None], seed=0, normalised=True)[0]
