"""What the trainer must know of a family: its networks, what they are fed, and what they are told."""

import dataclasses

import torch
from torch import Tensor, nn

from fastvoc.audio.mel import MelConfig
from fastvoc.checkpoints.weight_norm import fold_weight_norm
from fastvoc.errors import ConfigError
from fastvoc.models.preprocessing import Preprocessing
from fastvoc.models.pretrained import config_from_dict
from fastvoc.models.vocoder import Vocoder
from fastvoc.training.data import Corpus


class Draws:
    """The random numbers of one step: they depend on the seed and the step alone, not on how many processes share it.

    Numbers are drawn for the whole batch; `rows` are those of the items that this process has.
    """

    def __init__(self, seed: int, step: int, batch_size: int, rows: slice = slice(None), device="cpu"):
        self.generator = torch.Generator().manual_seed(seed * 7_368_787 + step)
        self.batch_size, self.rows, self.device = batch_size, rows, device

    def normal(self, *shape: int) -> Tensor:
        """(items, *shape) standard normal."""
        return self._mine(torch.randn(self.batch_size, *shape, generator=self.generator))

    def uniform(self, *shape: int) -> Tensor:
        """(items, *shape) in [0, 1)."""
        return self._mine(torch.rand(self.batch_size, *shape, generator=self.generator))

    def integers(self, end: int, *shape: int) -> Tensor:
        """(items, *shape) int64 in 0 … end - 1."""
        return self._mine(torch.randint(end, (self.batch_size, *shape), generator=self.generator))

    def _mine(self, values: Tensor) -> Tensor:
        return values[self.rows].to(self.device)


class Task:
    """One family's side of the training. A subclass sets Model, and says what `losses` are.

    The networks are {"model": …} and whatever else is trained with it, each with an optimiser of its own.
    """

    Model: type[Vocoder]
    loss_unit = ""  # of "loss", for the axis of the curve
    initial: dict[str, Tensor] | None = None  # weights that "model" starts from, instead of random ones

    def __init__(self, recipe: dict):
        self.recipe, self.options = recipe, recipe["training"]
        self.config = config_from_dict(self.Model.Config, recipe["model"], "the recipe's model")
        self.mel = MelConfig.preset(**recipe["mel"])
        model = self.Model(self.config)
        self.context = getattr(model, "context_frames", 0)
        if model.hop_length != self.mel.hop_length or model.n_mels not in (0, self.mel.n_mels):
            raise ConfigError(
                f"the recipe's mel has {self.mel.n_mels} bands and a hop of {self.mel.hop_length}, its model takes "
                f"{model.n_mels} bands and makes {model.hop_length} samples of a frame"
            )

    def networks(self) -> dict[str, nn.Module]:
        """Untrained."""
        return {"model": self.model()}

    def model(self) -> nn.Module:
        model = self.Model(self.config)
        if self.initial is not None:
            model.load_state_dict(self.initial)
        return model.apply_weight_norm() if self.options.get("weight_norm") else model

    def finished(self, weights: dict[str, Tensor]) -> Vocoder:
        """A vocoder of its own with these weights of "model"."""
        model = self.Model(self.config)
        model.load_state_dict(fold_weight_norm(weights))
        model.preprocessing = self.preprocessing()
        return model.eval()

    def start_from(self, model: Vocoder) -> tuple[list[float], list[float]] | None:
        """Take over a trained model's weights. -> its mean and scale of every mel band, which go with them, or None."""
        if model.config != self.config:
            raise ConfigError(
                f"the model to start from is {model.config}, the recipe's is {self.config}",
                hint="Copy the recipe, and give it the model's settings.",
            )
        self.initial = fold_weight_norm(model.state_dict())
        if model.mel_config is None or model.mel_config.mean is None:
            return None
        return list(model.mel_config.mean), list(model.mel_config.scale)

    def set_statistics(self, mean: list[float], scale: list[float]) -> None:
        """The training set's mean and scale of every mel band; a family that is not normalised ignores them."""

    def preprocessing(self) -> Preprocessing:
        options = {k: self.recipe[k] for k in ("preemphasis", "gain", "temperature") if k in self.recipe}
        return Preprocessing(self.mel, **options)

    def prepare(self, corpus: Corpus) -> None:
        """Waves to what the network works on, mels to what it is given, once."""
        preprocessing = self.preprocessing()
        corpus.waves = [torch.from_numpy(preprocessing.to_model(w.numpy())) for w in corpus.waves]
        corpus.mels = [self.mel.normalise(m) for m in corpus.mels]

    def phases(self, step: int) -> list[str]:
        """Names of the networks that are updated in this step, in order."""
        return ["model"]

    def losses(self, name: str, networks: dict, waves: Tensor, mels: Tensor, draws: Draws, step: int) -> dict[str, Tensor]:
        """What network `name` minimises: the sum of the dictionary's scalars. The other networks are given frozen.

        waves (B, T), mels (B, n_mels, n_frames + 2·context)
        """
        raise NotImplementedError

    def validation_loss(self, networks: dict, waves: Tensor, mels: Tensor, draws: Draws) -> Tensor:
        """Scalar, comparable throughout the training."""
        return sum(self.losses("model", networks, waves, mels, draws, 0).values())

    def sample(self, model: Vocoder, mel: Tensor):
        """A prepared mel (n_mels, n_frames), vocoded freely -> (n_samples,) float32 array."""
        return model.vocode(mel[None], seed=0, **self.recipe.get("sample", {}))[0]


def with_statistics(mel: MelConfig, mean: list[float], scale: list[float]) -> MelConfig:
    return dataclasses.replace(mel, mean=tuple(mean), scale=tuple(scale))
