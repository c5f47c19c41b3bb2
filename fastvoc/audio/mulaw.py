"""µ-law classes: y = sgn(x) ln(1 + µ|x|) / ln(1 + µ),  class = (y + 1) / 2 · µ,  µ = n_classes - 1.

nv-wavenet rounds the class to nearest; r9y9 (nnmnkwii) truncates it. The two decode alike: with s = 2q/µ - 1,
x = sgn(s) ((1 + µ)^|s| - 1) / µ. The 2018 recipes that pass µ = 256 want n_classes=257.
"""

import functools
import math
from typing import overload

import numpy as np
import torch
from torch import Tensor

from fastvoc.errors import ConfigError, DTypeError


@overload
def mulaw_encode(x: Tensor, n_classes: int = 256, rounding: str = "nearest") -> Tensor: ...
@overload
def mulaw_encode(x: np.ndarray, n_classes: int = 256, rounding: str = "nearest") -> np.ndarray: ...
def mulaw_encode(x: Tensor | np.ndarray, n_classes: int = 256, rounding: str = "nearest") -> Tensor | np.ndarray:
    """Float waveform of any shape -> int64 classes 0 .. n_classes - 1. Samples beyond ±1 count as ±1."""
    if isinstance(x, np.ndarray):
        return mulaw_encode(torch.from_numpy(np.ascontiguousarray(x)), n_classes, rounding).numpy().reshape(x.shape)
    if rounding not in ("nearest", "truncate"):
        raise ConfigError(f"rounding must be 'nearest' or 'truncate', not {rounding!r}.")
    if not x.dtype.is_floating_point:
        raise DTypeError(
            f"x must be a float waveform within ±1, not {x.dtype}.", hint="Divide 16-bit samples by 32768.0."
        )
    mu = _mu(n_classes)
    x = x.detach().double().clamp(-1, 1)
    y = x.sign() * torch.log1p(mu * x.abs()) / math.log1p(mu)
    scaled = (y + 1) / 2 * mu
    return (scaled + 0.5 if rounding == "nearest" else scaled).floor().long()


@overload
def mulaw_decode(q: Tensor, n_classes: int = 256) -> Tensor: ...
@overload
def mulaw_decode(q: np.ndarray, n_classes: int = 256) -> np.ndarray: ...
def mulaw_decode(q: Tensor | np.ndarray, n_classes: int = 256) -> Tensor | np.ndarray:
    """Integer classes of any shape -> float32 waveform.

    A class out of range is an IndexError for CPU tensors and arrays, and clamped on a GPU, where looking would stall it.
    """
    if isinstance(q, np.ndarray):
        return mulaw_decode(torch.from_numpy(np.ascontiguousarray(q)), n_classes).numpy().reshape(q.shape)
    if q.dtype.is_floating_point or q.dtype.is_complex or q.dtype == torch.bool:
        raise DTypeError(f"q must hold integer classes, not {q.dtype}.")
    q = q.long()
    if q.device.type == "cpu":
        outside = (q < 0) | (q > _mu(n_classes))
        if outside.any():
            raise IndexError(f"class {q[outside][0].item()} is outside 0 .. {n_classes - 1}")
    return _table(n_classes).to(q.device)[q.clamp(0, _mu(n_classes))]


@functools.lru_cache(maxsize=8)
def _table(n_classes: int) -> Tensor:
    mu = _mu(n_classes)
    s = 2 * np.arange(n_classes) / mu - 1
    return torch.from_numpy((np.sign(s) * np.expm1(np.abs(s) * np.log1p(mu)) / mu).astype(np.float32))


def _mu(n_classes: int) -> int:
    if not isinstance(n_classes, int) or not 2 <= n_classes <= 1 << 16:
        raise ConfigError(f"n_classes must be a whole number from 2 to 65536, not {n_classes!r}.")
    return n_classes - 1
