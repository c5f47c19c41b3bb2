"""Multi-resolution STFT loss of a waveform against its target.

    X = √max(|STFT(x)|², 1e-7), likewise Y           Hann window, centred frames, edges reflected
    L_sc  = ‖Y - X‖_F / ‖Y‖_F                        spectral convergence, the norms over the whole batch
    L_mag = mean |log Y - log X|                     log magnitude

    x, y (B, T) or (B, C, T), float32 | float64  ->  two scalars, averaged over the resolutions

Yamamoto et al. 2020, "Parallel WaveGAN", eqs. 4 to 6; the floor of 1e-7 is kan-bayashi/ParallelWaveGAN's. The gradient of
L_mag grows as 1/X towards bins with nothing in them: two float32 evaluations of it differ by parts in a thousand.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastvoc.errors import ConfigError, DTypeError, ShapeError

FLOOR = 1e-7
WINDOWS = {
    name: getattr(torch, name)
    for name in ("hann_window", "hamming_window", "blackman_window", "bartlett_window")
}


def multi_resolution_stft_loss(
    x: Tensor,
    y: Tensor,
    fft_sizes: Sequence[int] = (1024, 2048, 512),
    hop_sizes: Sequence[int] = (120, 240, 50),
    win_lengths: Sequence[int] = (600, 1200, 240),
    window: str = "hann_window",
) -> tuple[Tensor, Tensor]:
    """(spectral convergence, log magnitude) of the prediction x against y, the means over the resolutions."""
    if not len(fft_sizes) == len(hop_sizes) == len(win_lengths) or not len(fft_sizes):
        raise ConfigError(
            f"fft_sizes {list(fft_sizes)}, hop_sizes {list(hop_sizes)}, win_lengths {list(win_lengths)}: "
            "expected equally many, at least one"
        )
    losses = [stft_loss(x, y, *sizes, window) for sizes in zip(fft_sizes, hop_sizes, win_lengths)]
    convergence, magnitude = zip(*losses)
    return sum(convergence) / len(losses), sum(magnitude) / len(losses)


def stft_loss(
    x: Tensor, y: Tensor, fft_size: int = 1024, hop_size: int = 120, win_length: int = 600, window: str = "hann_window"
) -> tuple[Tensor, Tensor]:
    """(spectral convergence, log magnitude) at one resolution."""
    _check(x, y, fft_size)
    X, Y = (_magnitude(wave.flatten(0, -2), fft_size, hop_size, win_length, window) for wave in (x, y))
    return torch.linalg.norm(Y - X) / torch.linalg.norm(Y), F.l1_loss(X.log(), Y.log())


def _magnitude(wave: Tensor, fft_size: int, hop_size: int, win_length: int, window: str) -> Tensor:
    taps = _window(window, win_length, wave.dtype, wave.device)
    spectrum = torch.view_as_real(torch.stft(wave, fft_size, hop_size, win_length, taps, return_complex=True))
    return spectrum.square().sum(-1).clamp(min=FLOOR).sqrt()


@functools.lru_cache(maxsize=32)
def _window(name: str, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    if name not in WINDOWS:
        raise ConfigError(f"window: got {name!r}, expected one of {sorted(WINDOWS)}")
    with torch.inference_mode(False):  # a window first made under inference_mode could never be trained through
        return WINDOWS[name](length).to(dtype).to(device)  # rounded to float32 in every precision, as upstream's buffer


def _check(x: Tensor, y: Tensor, fft_size: int) -> None:
    for name, wave in (("x", x), ("y", y)):
        if wave.dtype not in (torch.float32, torch.float64):
            raise DTypeError(f"{name} must be float32 or float64, got {wave.dtype}.", hint=f"Pass {name}.float().")
    if x.shape != y.shape or x.dim() not in (2, 3) or not x.numel():
        raise ShapeError(
            f"x and y must be waves of one shape, (B, T) or (B, C, T), got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if x.shape[-1] <= fft_size // 2:
        raise ShapeError(f"the waves have {x.shape[-1]} samples; fft_size {fft_size} needs at least {fft_size // 2 + 1}")
