"""Frame loss: mean squared difference of two waveforms' STFT magnitudes.

    x, y  (B, T)      |S| = √(re² + im² + 1e-10)      loss = mean (|S(x)| - |S(y)|)²  -> scalar

Ping et al. 2019, "ClariNet", section 3.3: windows of 1024 samples every 256, centred, reflected at the ends; upstream
passes torch.stft no window, and a rectangular one is then what its students were trained with.
"""

import torch
from torch import Tensor

from fastvoc.errors import DTypeError, ShapeError


def frame_loss(x: Tensor, y: Tensor, n_fft: int = 1024, hop_length: int = 256) -> Tensor:
    """x, y: (B, T) with T > n_fft / 2 -> scalar"""
    check_pair(x, y, n_fft)
    window = torch.ones(n_fft, dtype=x.dtype, device=x.device)
    squares = power_spectrogram(torch.stack([x, y]).flatten(0, 1), window, n_fft, hop_length)
    magnitude_x, magnitude_y = torch.sqrt(squares + 1e-10).chunk(2)
    return ((magnitude_x - magnitude_y) ** 2).mean()


def power_spectrogram(x: Tensor, window: Tensor, n_fft: int, hop_length: int) -> Tensor:
    """(B, T) -> (B, n_fft / 2 + 1, frames)"""
    return torch.view_as_real(torch.stft(x, n_fft, hop_length, len(window), window, return_complex=True)).pow(2).sum(-1)


def check_pair(x: Tensor, y: Tensor, n_fft: int) -> None:
    if x.dim() != 2 or x.shape != y.shape:
        raise ShapeError(f"x is {tuple(x.shape)} and y {tuple(y.shape)}, expected two waveforms (B, T).")
    if x.dtype != y.dtype:
        raise DTypeError(f"x is {x.dtype} but y is {y.dtype}.", hint="Pass y.to(x.dtype).")
    if x.shape[1] <= n_fft // 2:
        raise ShapeError(f"x has {x.shape[1]} samples, windows of {n_fft} need more than {n_fft // 2}.")
