"""Mel front ends: wav (B, n_samples) -> mel (B, n_mels, n_frames).

    S   = |STFT(wav)|^power / divisor      centred frames, periodic Hann padded to n_fft; n_frames = 1 + n_samples // hop;
                                           lws: see MelConfig.framing
    m   = log(max(filters · S, floor))     filters: triangles on the Slaney or HTK scale
    m   = clip((m + add) / divide)         the presets that map to [0, 1]
    mel = (m - mean) / scale               the presets that carry statistics

The arithmetic is float64 whatever comes in, and the result has the type of the input. A float32 FFT leaves noise some
140 dB below the loudest bin of a frame; under floors of 1e-10 that noise is visible, and upstream (librosa) has none of it.
"""

import difflib
import functools
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastvoc.errors import AudioError, ConfigError, DTypeError, ShapeError

# Bounds the memory of hour-long inputs: 4096 frames of 513 complex bins are 34 MB.
_FRAMES_PER_BLOCK = 4096

_LOGS = {
    "ln": torch.log,
    "log2": torch.log2,
    "log10": torch.log10,
    "20log10": lambda mel: 20 * torch.log10(mel),
}
_CHOICES = {
    "power": (1.0, 2.0),
    "mel_scale": ("slaney", "htk"),
    "mel_norm": ("slaney", None),
    "log": tuple(_LOGS),
    "stft_divisor": (None, "normalized"),
    "pad_mode": ("reflect", "constant"),
    "framing": ("centred", "lws"),
}

_BASE = {"sample_rate": 22050, "n_fft": 1024, "hop_length": 256, "win_length": 1024, "n_mels": 80}
_PWG = {**_BASE, "fmin": 80, "fmax": 7600, "log": "log10", "floor": 1e-10}
_PRESETS: dict[str, dict] = {
    "tacotron": {**_BASE, "fmin": 0, "fmax": 8000, "log": "ln", "floor": 1e-5},
    "lmnt": {
        **_BASE, "fmin": 20, "fmax": None, "mel_scale": "htk", "mel_norm": None, "stft_divisor": "normalized",
        "log": "20log10", "floor": 1e-5, "affine": (80, 100), "clip": (0, 1),
    },
    "parallel_wavegan": _PWG,
    "r9y9": {**_PWG, "fmin": 125},
    "r9y9_2018": {
        **_BASE, "fmin": 125, "fmax": 7600, "log": "20log10", "floor": 1e-5, "affine": (80, 100), "clip": (0, 1),
        "framing": "lws",
    },
    "clarinet": {
        **_BASE, "fmin": 125, "fmax": 7600, "power": 2, "log": "20log10", "floor": 1e-4, "affine": (80, 100), "clip": (0, 1),
    },
    "bfs18": {
        **_BASE, "sample_rate": 16000, "n_fft": 2048, "hop_length": 200, "win_length": 800, "fmin": 125, "fmax": 7600,
        "log": "20log10", "floor": 1e-5, "affine": (140, 140), "clip": (0, 1),
    },
}  # fmt: skip


@dataclass(frozen=True)
class MelConfig:
    """A mel convention: everything that decides what a mel spectrogram's numbers mean."""

    sample_rate: int
    n_fft: int
    hop_length: int
    win_length: int
    n_mels: int
    fmin: float
    fmax: float | None  # None: half the sample rate
    power: float = 1.0  # of the STFT magnitude
    mel_scale: str = "slaney"
    mel_norm: str | None = "slaney"  # each triangle divided by its width
    log: str = "ln"
    floor: float = 1e-5  # smallest mel value before the logarithm
    stft_divisor: str | None = None  # "normalized": by √Σ window², as torchaudio's normalized=True
    affine: tuple[float, float] | None = None  # (add, divide)
    clip: tuple[float, float] | None = None  # (low, high)
    pad_mode: str = "reflect"
    mean: tuple[float, ...] | None = None  # per band, of the training set
    scale: tuple[float, ...] | None = None
    # "centred": frame f is around sample f · hop. "lws": frame f begins at sample f · hop of the signal behind
    # n_fft - hop zeros, zeros at its end fill the last frame, and the window is √(Hann · 2 hop / n_fft), the Hann half a
    # sample off (the lws package in mode "speech"). What a vocoder makes of such frames begins with those zeros
    framing: str = "centred"

    def __post_init__(self):
        for name in ("sample_rate", "n_fft", "hop_length", "win_length", "n_mels"):
            value = getattr(self, name)
            if type(value) is not int or value <= 0:
                raise ConfigError(f"{name} must be a positive whole number, not {value!r}.")
        if self.fmax is None:
            object.__setattr__(self, "fmax", self.sample_rate / 2)
        for name in ("fmin", "fmax", "power", "floor"):
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        for name, size in (("affine", 2), ("clip", 2), ("mean", self.n_mels), ("scale", self.n_mels)):
            object.__setattr__(self, name, _numbers(name, getattr(self, name), size))
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if not isinstance(value, str | float | None) or value not in choices:
                raise ConfigError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}.")
        if self.n_fft > 1 << 20:
            raise ConfigError(f"n_fft is {self.n_fft}; at most {1 << 20} is allowed.")
        if self.win_length > self.n_fft:
            raise ConfigError(f"win_length {self.win_length} is larger than n_fft {self.n_fft}.")
        if self.framing == "lws" and (self.win_length != self.n_fft or self.n_fft % self.hop_length):
            raise ConfigError(
                f"lws frames need win_length = n_fft, a multiple of hop_length, not {self.win_length}, {self.n_fft}, "
                f"{self.hop_length}."
            )
        if self.n_mels > self.n_fft // 2 + 1:
            raise ConfigError(
                f"n_mels {self.n_mels} is larger than the {self.n_fft // 2 + 1} bins of n_fft {self.n_fft}."
            )
        if not 0 <= self.fmin < self.fmax <= self.sample_rate / 2:
            raise ConfigError(
                f"fmin {self.fmin:g} and fmax {self.fmax:g} must satisfy 0 <= fmin < fmax <= "
                f"sample_rate / 2 = {self.sample_rate / 2:g}."
            )
        if self.floor <= 0:
            raise ConfigError(f"floor must be positive, not {self.floor:g}.")
        if self.affine and self.affine[1] <= 0:
            raise ConfigError(f"affine is (add, divide) with divide positive, not {self.affine}.")
        if self.clip and self.clip[0] >= self.clip[1]:
            raise ConfigError(f"clip is (low, high) with low < high, not {self.clip}.")
        if (self.mean is None) != (self.scale is None):
            raise ConfigError("mean and scale go together: give both or neither.")
        if self.scale and min(self.scale) <= 0:
            raise ConfigError(
                f"scale must be positive in every band; band {np.argmin(self.scale)} has {min(self.scale):g}."
            )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "MelConfig":
        """tacotron, lmnt, parallel_wavegan, r9y9, r9y9_2018, clarinet or bfs18, with fields changed.

        Upstream ClariNet and r9y9 of 2018 rescale each clip to a peak of 0.999 first; that is the caller's, since it
        changes the audio too.
        parallel_wavegan and r9y9 checkpoints come with mean and scale.
        """
        if name not in _PRESETS:
            raise ConfigError(f"There is no mel preset {name!r}.", hint=_did_you_mean(name, _PRESETS))
        return cls.from_dict({**_PRESETS[name], **changes})

    @classmethod
    def from_dict(cls, values: dict) -> "MelConfig":
        if not isinstance(values, dict):
            raise ConfigError(f"A mel configuration is an object with named fields, not {type(values).__name__}.")
        names = [field.name for field in fields(cls)]
        for name in values:
            if name not in names:
                raise ConfigError(f"A mel configuration has no field {name!r}.", hint=_did_you_mean(name, names))
        missing = [name for name in names[:7] if name not in values]
        if missing:
            raise ConfigError(f"The mel configuration lacks {', '.join(missing)}.")
        return cls(**values)

    def to_dict(self) -> dict:
        return asdict(self)

    @property
    def min_samples(self) -> int:
        """The shortest input: reflection cannot reach past the other end."""
        return self.n_fft // 2 + 1 if self.pad_mode == "reflect" and self.framing == "centred" else 1

    def n_frames(self, n_samples: int) -> int:
        if self.framing == "lws":
            return -(-n_samples // self.hop_length) + self.n_fft // self.hop_length - 1
        return 1 + (n_samples + 2 * (self.n_fft // 2) - self.n_fft) // self.hop_length

    def frames_to_samples(self, n_frames: int) -> int:
        """How much audio a vocoder makes of that many frames."""
        return n_frames * self.hop_length

    def normalise(self, mel: Tensor) -> Tensor:
        """(mel - mean) / scale, bands on axis -2; unchanged where there are no statistics."""
        if self.mean is None or self.scale is None:
            return mel
        return (mel - _column(self.mean, mel)) / _column(self.scale, mel)

    def denormalise(self, mel: Tensor) -> Tensor:
        if self.mean is None or self.scale is None:
            return mel
        return mel * _column(self.scale, mel) + _column(self.mean, mel)


def mel_spectrogram(wav: Tensor | np.ndarray, config: MelConfig) -> Tensor:
    """wav (B, n_samples) or (n_samples,) within ±1 -> mel (B, n_mels, n_frames) or (n_mels, n_frames).

    float32 or float64 in, the same out. Differentiable.
    """
    if isinstance(wav, np.ndarray):
        wav = torch.from_numpy(np.ascontiguousarray(wav, wav.dtype.newbyteorder("=")))
    if not isinstance(wav, Tensor):
        raise DTypeError(f"wav must be a tensor or a numpy array, not {type(wav).__name__}.")
    if wav.dtype not in (torch.float32, torch.float64):
        integer = not wav.dtype.is_floating_point and not wav.dtype.is_complex
        hint = "Divide 16-bit samples by 32768.0." if integer else "Convert it with .float()."
        raise DTypeError(f"wav must be float32 or float64 within ±1, not {wav.dtype}.", hint=hint)
    if wav.ndim not in (1, 2):
        raise ShapeError(f"wav must be (B, n_samples) or (n_samples,), not {tuple(wav.shape)}.")
    n_samples = wav.shape[-1]
    if n_samples < config.min_samples:
        raise ShapeError(f"wav has {n_samples} samples; n_fft {config.n_fft} needs at least {config.min_samples}.")
    finite = torch.isfinite(wav)
    if not finite.all():
        first = tuple((~finite).nonzero()[0].tolist())
        raise AudioError(f"wav is not finite: {wav[first].item()} at index {first[0] if len(first) == 1 else first}.")

    hop, n_frames = config.hop_length, config.n_frames(n_samples)
    before, after, mode = config.n_fft // 2, config.n_fft // 2, config.pad_mode
    if config.framing == "lws":
        before, mode = config.n_fft - hop, "constant"
        after = (n_frames - 1) * hop + config.n_fft - before - n_samples
    padded = F.pad((wav[None] if wav.ndim == 1 else wav)[:, None].double(), (before, after), mode=mode)[:, 0]
    blocks = [
        _mel_block(padded[:, start * hop : (min(start + _FRAMES_PER_BLOCK, n_frames) - 1) * hop + config.n_fft], config)
        for start in range(0, n_frames, _FRAMES_PER_BLOCK)
    ]
    mel = config.normalise(torch.cat(blocks, dim=-1))
    return mel.to(wav.dtype).reshape(*wav.shape[:-1], config.n_mels, n_frames)


def _mel_block(padded: Tensor, config: MelConfig) -> Tensor:
    if padded.shape[0] == 0:  # torch.stft refuses an empty batch
        return padded.new_zeros(0, config.n_mels, 1 + (padded.shape[1] - config.n_fft) // config.hop_length)
    filters, window = _tables(
        config.sample_rate, config.n_fft, config.win_length, config.n_mels, config.fmin, config.fmax,
        config.mel_scale, config.mel_norm, config.hop_length if config.framing == "lws" else None, padded.device,
    )  # fmt: skip
    spectrum = torch.stft(
        padded, config.n_fft, config.hop_length, config.win_length, window, center=False, return_complex=True
    ).abs()
    if config.stft_divisor == "normalized":
        spectrum = spectrum / window.square().sum().sqrt()
    if config.power == 2:
        spectrum = spectrum.square()
    mel = _LOGS[config.log]((filters @ spectrum).clamp(min=config.floor))
    if config.affine:
        mel = (mel + config.affine[0]) / config.affine[1]
    return mel.clamp(*config.clip) if config.clip else mel


@functools.lru_cache(maxsize=32)
def _tables(sample_rate, n_fft, win_length, n_mels, fmin, fmax, mel_scale, mel_norm, lws_hop, device) -> tuple[Tensor, Tensor]:
    """filters (n_mels, n_fft // 2 + 1) and window (win_length,), float64. lws_hop: of lws frames, else None."""
    if mel_scale == "slaney":  # linear below 1 kHz (15 mel), then 27 mel per factor of 6.4
        step = math.log(6.4) / 27
        low, high = (3 * f / 200 if f < 1000 else 15 + math.log(f / 1000) / step for f in (fmin, fmax))
        mels = np.linspace(low, high, n_mels + 2)
        edges = np.where(mels < 15, 200 / 3 * mels, 1000 * np.exp(step * (mels - 15)))
    else:
        low, high = (2595 * math.log10(1 + f / 700) for f in (fmin, fmax))
        edges = 700 * (10 ** (np.linspace(low, high, n_mels + 2) / 2595) - 1)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bins = np.linspace(0, sample_rate / 2, n_fft // 2 + 1)
    filters = np.maximum(0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))
    # librosa, where the Slaney scale comes from, keeps its filters in float32; under low floors that shows
    rounded = (lambda x: x.astype(np.float32).astype(np.float64)) if mel_scale == "slaney" else (lambda x: x)
    filters = rounded(filters)
    if mel_norm == "slaney":
        filters = rounded(filters * (2 / (right - left)))
    with torch.inference_mode(False):  # a table first made under inference_mode could never be trained through
        window = torch.hann_window(win_length, dtype=torch.float64)
        if lws_hop is not None:
            angle = 2 * torch.pi * (torch.arange(win_length, dtype=torch.float64) + 0.5) / win_length
            window = ((1 - torch.cos(angle)) * lws_hop / win_length).sqrt()
        return torch.from_numpy(filters).to(device), window.to(device)


def _column(values: tuple[float, ...], mel: Tensor) -> Tensor:
    if mel.ndim < 2 or mel.shape[-2] != len(values):
        raise ShapeError(f"mel must be (..., n_mels = {len(values)}, n_frames), not {tuple(mel.shape)}.")
    return torch.tensor(values, dtype=mel.dtype, device=mel.device)[:, None]


def _number(name: str, value) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{name} must be a finite number, not {value!r}.")
    return float(value)


def _numbers(name: str, values, size: int) -> tuple[float, ...] | None:
    if values is None:
        return None
    if not isinstance(values, tuple | list) or len(values) != size:
        length = f" of {len(values)}" if isinstance(values, tuple | list) else ""
        raise ConfigError(f"{name} must be {size} numbers or None, not a {type(values).__name__}{length}.")
    return tuple(_number(f"{name}[{i}]", value) for i, value in enumerate(values))


def _did_you_mean(name, options) -> str:
    close = difflib.get_close_matches(str(name), options, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"There are: {', '.join(options)}."
