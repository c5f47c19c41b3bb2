"""How near a waveform comes to its reference: own log-mel distance, and PESQ and STOI where their packages are installed."""

import numpy as np
import torch
from torch import Tensor

from fastvoc.audio.mel import MelConfig, mel_spectrogram
from fastvoc.audio.wav import resampled
from fastvoc.errors import ShapeError


def log_mel_distance(reference: Tensor | np.ndarray, wav: Tensor | np.ndarray, sample_rate: int) -> float:
    """Mean over frames of the RMS over 80 bands of the difference of 20·log10 mel magnitudes, in dB.

    Frames of 1024 samples every 256, Slaney bands from 0 to half the sample rate. Both sides are floored 100 dB below
    the loudest cell of the reference. Zero for equal inputs; louder is a difference too.
    """
    config = MelConfig(sample_rate, 1024, 256, 1024, 80, 0, None, log="20log10", floor=1e-20)
    reference, wav = _pair(reference, wav)
    first, second = (mel_spectrogram(side, config) for side in (reference, wav))
    floor = first.max() - 100
    difference = first.clamp(min=floor) - second.clamp(min=floor)
    return difference.square().mean(dim=0).sqrt().mean().item()


def pesq_wb(reference: Tensor | np.ndarray, wav: Tensor | np.ndarray, sample_rate: int) -> float | None:
    """Wideband PESQ at 16 kHz (ITU-T P.862.2), 1 to 4.6; None without the package pesq or without speech in the input."""
    try:
        import pesq
    except ImportError:
        return None
    reference, wav = _pair(reference, wav)
    if not reference.any():
        return None
    reference, wav = (resampled(side.float().numpy(), sample_rate, 16000) for side in (reference, wav))
    try:
        return float(pesq.pesq(16000, reference, wav, "wb"))
    except (pesq.NoUtterancesError, pesq.BufferTooShortError):
        return None


def stoi(reference: Tensor | np.ndarray, wav: Tensor | np.ndarray, sample_rate: int) -> float | None:
    """Short-time objective intelligibility, 0 to 1; None without the package pystoi."""
    try:
        import pystoi
    except ImportError:
        return None
    reference, wav = _pair(reference, wav)
    return float(pystoi.stoi(reference.numpy(), wav.numpy(), sample_rate))


def quality(reference: Tensor | np.ndarray, wav: Tensor | np.ndarray, sample_rate: int) -> dict[str, float | None]:
    """All three by name."""
    return {measure.__name__: measure(reference, wav, sample_rate) for measure in (log_mel_distance, pesq_wb, stoi)}


def _pair(reference: Tensor | np.ndarray, wav: Tensor | np.ndarray) -> list[Tensor]:
    """Both (n_samples,) float64 on the CPU, cut to the shorter."""
    sides = [torch.as_tensor(side).detach().cpu().double() for side in (reference, wav)]
    for side in sides:
        if side.ndim != 1:
            raise ShapeError(f"quality measures take (n_samples,), not {tuple(side.shape)}.")
    n_samples = min(map(len, sides))
    return [side[:n_samples] for side in sides]
