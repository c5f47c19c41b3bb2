"""DiffWave's objective: how far the predicted noise is from the noise that was added.

    x_t  = √ᾱ_t·x_0 + √(1 - ᾱ_t)·ε                     ε ~ N(0, 1), t uniform over the training steps
    loss = |ε - ε_θ(x_t, t)|  (l1: lmnt)   or   (ε - ε_θ(x_t, t))²  (l2: the paper, philsyn)

    predicted  (B, 1, T)  ε_θ, float32 | float64
    noise      (B, T)     ε, like predicted

Kong et al. 2021, "DiffWave", eq. 7 and algorithm 1.
"""

import torch
from torch import Tensor

from fastvoc.errors import ConfigError, DTypeError, ShapeError
from fastvoc.losses import _border

NORMS = {"l1": torch.abs, "l2": torch.square}


def diffwave_loss(
    predicted: Tensor,
    noise: Tensor,
    norm: str = "l1",
    reduction: str = "none",
    lengths: Tensor | None = None,
) -> Tensor:
    """|ε - ε_θ| or its square.   predicted: (B, 1, T), noise: (B, T) -> (B, T), or a scalar if reduced"""
    _border.check_prediction(predicted, noise, reduction, "predicted", "noise")
    if noise.dtype != predicted.dtype:
        raise DTypeError(f"noise must have the dtype of predicted, {predicted.dtype}, got {noise.dtype}.",
                         hint="Pass noise.to(predicted.dtype).")
    if predicted.shape[1] != 1:
        raise ShapeError(f"predicted must have 1 channel, got {predicted.shape[1]}.", hint="DiffWave predicts one waveform.")
    if norm not in NORMS:
        raise ConfigError(f"norm must be one of {list(NORMS)}, got {norm!r}.", hint='lmnt uses "l1", the paper "l2".')
    mask = _border.valid_mask(lengths, predicted)
    predicted, noise = _border.clear_padding(mask, predicted, noise)
    return _border.reduce(NORMS[norm](noise - predicted[:, 0]), mask, reduction)


def diffused(audio: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """x_t, a draw from q(x_t | x_0).   audio, noise: (B, T), level: (B,) ᾱ_t in [0, 1] -> (B, T)"""
    if audio.dim() != 2 or audio.shape != noise.shape:
        raise ShapeError(f"audio is {tuple(audio.shape)} and noise {tuple(noise.shape)}, expected (B, T) both")
    if tuple(level.shape) != (len(audio),):
        raise ShapeError(f"level is {tuple(level.shape)}, expected (B,) = ({len(audio)},)", hint="One ᾱ for each item.")
    level = level.to(audio)[:, None]
    return level.sqrt() * audio + (1 - level).sqrt() * noise
