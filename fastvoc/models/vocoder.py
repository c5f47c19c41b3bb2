"""What the five vocoders have in common: what they say about themselves, and what they ask of a mel."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fastvoc.audio.mel import MelConfig
from fastvoc.errors import ConfigError, DeviceError, DTypeError, ShapeError
from fastvoc.models import pretrained
from fastvoc.models.preprocessing import Preprocessing
from fastvoc.models.wavenet_streams import check_finite
from fastvoc.models.weight_norm import apply_weight_norm, remove_weight_norm
from fastvoc.ops.noise import normal, uniform_noise

Lengths = Sequence[int] | Tensor | None  # frames of each item of a batch
Progress = Callable[[int, int], object] | None  # called with (done, in all)


class Vocoder(nn.Module):
    """A model with `infer(mel, *, seed=None, noise=None, …) -> (B, n_samples)` float32.

    family         the name in MODELS and in config.json;  Config: its dataclass
    preprocessing  the recording convention (models/preprocessing.py); None where the checkpoint does not tell
    precision      of `infer`, where the call gives none: "fp32" or "bf16"
    without_weight_norm  ends of the names of convolutions that are trained without it (models/weight_norm.py)
    """

    family: str
    Config: type
    config: Any  # a Config
    preprocessing: Preprocessing | None
    without_weight_norm: tuple[str, ...] = ()

    if TYPE_CHECKING:  # parts by name; for torch each of them may be a Tensor

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self) -> None:
        super().__init__()
        self.preprocessing = None
        self.precision = "fp32"

    @property
    def mel_config(self) -> MelConfig | None:
        return None if self.preprocessing is None else self.preprocessing.mel

    @property
    def sample_rate(self) -> int | None:
        return None if self.preprocessing is None else self.preprocessing.mel.sample_rate

    @property
    def n_mels(self) -> int:
        """Bands of the mel that `infer` takes; 0 for an unconditional model."""
        raise NotImplementedError

    @property
    def hop_length(self) -> int:
        """Samples that one mel frame becomes."""
        raise NotImplementedError

    def check_mel(self, mel: Tensor, dims: int = 3) -> Tensor:
        """Raise unless mel is a finite float32 (B, n_mels, n_frames) (dims=3) or (n_mels, n_frames) (dims=2) here.

        A model in float64 takes float64.
        """
        shape = f"(B, {self.n_mels}, n_frames)" if dims == 3 else f"({self.n_mels}, n_frames)"
        if not isinstance(mel, Tensor):
            raise DTypeError(
                f"mel is a {type(mel).__name__}, expected a torch.Tensor {shape}.", hint="Use torch.from_numpy(mel)."
            )
        if mel.layout != torch.strided:
            raise DTypeError(f"mel is {mel.layout}, expected a dense tensor.", hint="Convert it with .to_dense().")
        parameter = next(self.parameters())
        if mel.dtype != parameter.dtype:
            raise DTypeError(f"mel is {mel.dtype}, expected {parameter.dtype}.", hint=f"Convert it with .to({parameter.dtype}).")
        if mel.device != parameter.device:
            raise DeviceError(
                f"mel is on {mel.device}, the model on {parameter.device}.", hint="Move one with .to(device)."
            )
        if mel.dim() != dims:
            hint = "Add a batch axis with mel[None]." if mel.dim() == dims - 1 else None
            raise ShapeError(f"mel is {tuple(mel.shape)}, expected {shape}.", hint=hint)
        if mel.shape[-2] != self.n_mels:
            hint = "The mel was made for another model."
            if mel.shape[-1] == self.n_mels:
                hint = f"{self.n_mels} bands were found on the last axis: transpose it."
            message = f"mel is {tuple(mel.shape)}, expected {shape}: axis {dims - 2} must hold {self.n_mels} mel bands."
            raise ShapeError(message, hint=hint)
        if mel.shape[-1] < 1:
            raise ShapeError("mel has 0 frames, expected at least 1")
        check_finite(mel)
        return mel.detach()

    def check_lengths(self, lengths: Lengths, mel: Tensor) -> list[int] | None:
        """Frames of each item of mel (B, n_mels, n_frames), if lengths are B of 1…n_frames; None where all are whole."""
        if lengths is None:
            return None
        frames = whole_numbers("lengths", lengths)
        if len(frames) != mel.shape[0] or not all(1 <= n <= mel.shape[2] for n in frames):
            raise ShapeError(f"lengths are {frames}, expected {mel.shape[0]} numbers in 1…{mel.shape[2]}")
        return None if frames == [mel.shape[2]] * mel.shape[0] else frames

    def normal_noise(self, shape: tuple[int, ...], seed: int | None, draw: int = 0, transform: Callable = normal) -> Tensor:
        """(B, …, T) standard normal numbers by position: item b's do not depend on the batch or on the length.

        seed None takes a fresh one. draw numbers independent tensors of one call; middle axes count as draws of their own.
        transform: of uniform numbers, where they are to be others than normal
        """
        batch, *middle, length = shape
        seed = fresh_seed() if seed is None else check_seed(seed)
        n_rows = math.prod(middle)
        parameter = next(self.parameters())
        u = uniform_noise(seed, batch, draw * n_rows, n_rows, length, parameter.device)
        return transform(1e-5 + u * (1 - 2e-5)).reshape(shape).to(parameter)

    def given_noise(self, name: str, noise: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The caller's noise, if it has the shape and is finite; in the model's dtype and on its device."""
        noise = given_numbers(name, noise)
        if tuple(noise.shape) != tuple(shape):
            raise ShapeError(f"{name} is {tuple(noise.shape)}, expected {tuple(shape)}")
        check_finite(noise, name)
        return noise.to(next(self.parameters()))

    def vocode(self, mel: Tensor, **options: Any) -> list[np.ndarray]:
        """infer, then undo what stood before the model: mel (B, n_mels, n_frames) -> per item a float32 array."""
        waves = [w.cpu().numpy() for w in self.infer(mel, **options)]
        return [self.preprocessing.from_model(w) for w in waves] if self.preprocessing is not None else waves

    apply_weight_norm = apply_weight_norm
    remove_weight_norm = remove_weight_norm
    save_pretrained = pretrained.save_pretrained
    from_pretrained = classmethod(pretrained.from_pretrained)


def given_numbers(name: str, values) -> Tensor:
    """What the caller gave, as a dense tensor of real numbers. Raises DTypeError, DeviceError."""
    try:
        values = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        raise DTypeError(f"{name} is a {type(values).__name__}, expected a torch.Tensor") from None
    if values.is_complex() or values.dtype == torch.bool or values.layout != torch.strided:
        raise DTypeError(f"{name} is {values.dtype} ({values.layout}), expected a dense tensor of real numbers")
    if values.is_meta:
        raise DeviceError(f"{name} is on meta, where tensors have no values.")
    return values


def real_number(name: str, value) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise ConfigError(f"{name} must be a number, got {value!r}") from None


def whole_numbers(name: str, values) -> list[int]:
    """Of ints, numpy's or torch's integers; nothing is rounded."""
    try:
        return [operator.index(n) for n in values]
    except TypeError:
        raise ConfigError(f"{name} must be whole numbers, got {values!r}") from None


def check_seed(seed: int) -> int:
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < 2**64:
        raise ConfigError(f"seed must be an integer in 0…2⁶⁴ - 1, got {seed!r}")
    return number


def fresh_seed() -> int:
    """From torch's generator, so that torch.manual_seed makes unseeded calls repeatable."""
    return int(torch.randint(2**63 - 1, ()))
