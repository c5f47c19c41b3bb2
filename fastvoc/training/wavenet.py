"""What a WaveNet is trained on: the likelihood of each sample given all earlier ones and the mel."""

import dataclasses

import torch
from torch import Tensor

from fastvoc.audio.mel import MelConfig
from fastvoc.audio.mulaw import mulaw_encode
from fastvoc.losses.cross_entropy import mulaw_cross_entropy
from fastvoc.losses.gaussian import gaussian_loss
from fastvoc.losses.mixture_of_gaussians import mixture_of_gaussians_loss
from fastvoc.losses.mixture_of_logistics import mixture_of_logistics_loss
from fastvoc.models.preprocessing import Preprocessing
from fastvoc.models.pretrained import config_from_dict
from fastvoc.models.wavenet import WaveNet, WaveNetConfig
from fastvoc.training.data import Corpus

SCALAR_LOSSES = {"mol": mixture_of_logistics_loss, "gaussian": gaussian_loss, "mog": mixture_of_gaussians_loss}


class WaveNetTask:
    """model(), corpus(folder) and loss(...): all that the trainer must know of a family."""

    def __init__(self, recipe: dict):
        self.config = config_from_dict(WaveNetConfig, recipe["model"], "the recipe's model")
        self.mel = MelConfig.preset(**recipe["mel"])
        self.recipe = recipe
        self.context = self.config.cin_pad
        self.input_noise = recipe["training"].get("input_noise", 0)

    def model(self) -> WaveNet:
        return WaveNet(self.config)

    def set_statistics(self, mean: list[float], scale: list[float]) -> None:
        self.mel = dataclasses.replace(self.mel, mean=tuple(mean), scale=tuple(scale))

    def preprocessing(self) -> Preprocessing:
        options = {k: self.recipe[k] for k in ("preemphasis", "gain", "temperature") if k in self.recipe}
        return Preprocessing(self.mel, **options)

    def prepare(self, corpus: Corpus) -> None:
        """Waves to what the network predicts, mels to normalised mels, once."""
        preprocessing = self.preprocessing()
        corpus.waves = [torch.from_numpy(preprocessing.to_model(w.numpy())) for w in corpus.waves]
        corpus.mels = [self.mel.normalise(m) for m in corpus.mels]

    def loss(self, model, waves: Tensor, mels: Tensor, generator: torch.Generator | None) -> Tensor:
        """Mean negative log likelihood in nats per sample. With a generator (in training) the input carries noise.

        The noise, up to ±input_noise µ-law steps, teaches the network to recover from its own errors when it runs free:
        without it each sampling error moves the next inputs away from anything seen in training.
        """
        if self.config.scalar_input:
            inputs = _shifted(waves, 0.0).unsqueeze(1)
            return SCALAR_LOSSES[self.config.head](model(inputs, mels), waves, reduction="mean")
        A = self.config.out_channels
        classes = mulaw_encode(waves, A)
        inputs = classes
        if generator is not None and self.input_noise:
            width = torch.rand(len(classes), 1, generator=generator) * self.input_noise
            steps = (torch.rand(classes.shape, generator=generator) * 2 - 1) * width
            inputs = (classes + steps.round().long()).clamp(0, A - 1)
        return mulaw_cross_entropy(model(_shifted(inputs, A // 2), mels), classes, reduction="mean")


def _shifted(x: Tensor, start: float) -> Tensor:
    """x delayed by one sample: what the network has seen when it predicts x."""
    return torch.nn.functional.pad(x[:, :-1], (1, 0), value=start)
