"""What a WaveNet is trained on: the likelihood of each sample given all earlier ones and the mel."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvoc.audio.mulaw import mulaw_encode
from fastvoc.losses.cross_entropy import mulaw_cross_entropy
from fastvoc.losses.gaussian import gaussian_loss
from fastvoc.losses.mixture_of_gaussians import mixture_of_gaussians_loss
from fastvoc.losses.mixture_of_logistics import mixture_of_logistics_loss
from fastvoc.models.wavenet import WaveNet
from fastvoc.training.task import Draws, Task, with_statistics

SCALAR_LOSSES = {"mol": mixture_of_logistics_loss, "gaussian": gaussian_loss, "mog": mixture_of_gaussians_loss}


class WaveNetTask(Task):
    Model = WaveNet
    loss_unit = "nats per sample"

    def set_statistics(self, mean: list[float], scale: list[float]) -> None:
        self.mel = with_statistics(self.mel, mean, scale)

    def start_from(self, model: WaveNet) -> tuple[list[float], list[float]] | None:
        """Also from a WaveNet with fewer layers: it is the beginning of this one, whose further layers add nothing at first."""
        return super().start_from(self._grown(model))

    def _grown(self, model: WaveNet) -> WaveNet:
        small, wanted = model.config, self.config
        beginning = small.layers < wanted.layers and list(small.dilations) == list(wanted.dilations[: small.layers])
        depth = {name: getattr(wanted, name) for name in ("layers", "stacks", "dilations", "skip_scale")}
        if not beginning or dataclasses.replace(small, **depth) != wanted:
            return model
        torch.manual_seed(self.options["seed"])
        grown = WaveNet(wanted)
        weights = {k: v.clone() for k, v in model.state_dict().items()}
        # What the skips are scaled by goes with the number of layers; the ReLU behind it lets a factor through
        weights["last_conv_layers.1.weight"] *= small.skip_scale / wanted.skip_scale
        for name, value in grown.state_dict().items():
            silent = "conv1x1_out" in name or "conv1x1_skip" in name
            weights.setdefault(name, torch.zeros_like(value) if silent else value)
        grown.load_state_dict(weights)
        grown.preprocessing = model.preprocessing
        return grown

    def losses(self, name: str, networks: dict, waves: Tensor, mels: Tensor, draws: Draws, step: int) -> dict[str, Tensor]:
        """Mean negative log likelihood. The input carries noise of up to ±input_noise µ-law steps.

        The noise teaches the network to recover from its own errors when it runs free: without it each sampling error
        moves the next inputs away from anything seen in training. Scalar inputs have `dither` instead, normal noise of that
        deviation on inputs and targets alike: exact digital silence has an unbounded likelihood, and the step out of it
        an unbounded loss.
        """
        return {"likelihood": self._loss(networks["model"], waves, mels, draws, self.options.get("input_noise", 0))}

    def validation_loss(self, networks: dict, waves: Tensor, mels: Tensor, draws: Draws) -> Tensor:
        return self._loss(networks["model"], waves, mels, draws, 0)

    def _loss(self, model, waves: Tensor, mels: Tensor, draws: Draws, input_noise: int) -> Tensor:
        if self.config.scalar_input:
            waves = waves + self.options.get("dither", 0.0) * draws.normal(waves.shape[1])
            inputs = _shifted(waves, 0.0).unsqueeze(1)
            return SCALAR_LOSSES[self.config.head](model(inputs, mels), waves, reduction="mean")
        A = self.config.out_channels
        classes = mulaw_encode(waves, A)
        inputs = classes
        if input_noise:
            steps = (draws.uniform(classes.shape[1]) * 2 - 1) * draws.uniform(1) * input_noise
            inputs = (classes + steps.round().long()).clamp(0, A - 1)
        return mulaw_cross_entropy(model(_shifted(inputs, A // 2), mels), classes, reduction="mean")


def _shifted(x: Tensor, start: float) -> Tensor:
    """x delayed by one sample: what the network has seen when it predicts x."""
    return F.pad(x[:, :-1], (1, 0), value=start)
