"""Power loss: as much energy in each band as speech has. Keeps a student from whispering.

    x, y  (B, T)      φ(x) = |STFT(x)|²      loss = mean (φ(x) - φ(y))²  -> scalar

van den Oord et al. 2018, "Parallel WaveNet", section 5, "Power loss", without its average over time. bfs18/nsynth_wavenet
compares magnitudes (power=1) and weighs the bins below 3 kHz double (priority_bins): half the loss is theirs alone.
"""

import torch
from torch import Tensor

from fastvoc.errors import ConfigError
from fastvoc.losses.frame_loss import check_pair, power_spectrogram


def power_loss(
    x: Tensor,
    y: Tensor,
    n_fft: int = 1024,
    hop_length: int = 256,
    win_length: int | None = None,
    power: float = 2.0,
    priority_bins: int = 0,
) -> Tensor:
    """x, y: (B, T) with T > n_fft / 2; periodic Hann window -> scalar"""
    check_pair(x, y, n_fft)
    if power not in (1.0, 2.0):
        raise ConfigError(f"power must be 1 (magnitudes) or 2 (as published), got {power}")
    if not 0 <= priority_bins <= n_fft // 2 + 1:
        raise ConfigError(f"priority_bins must lie in 0…{n_fft // 2 + 1}, got {priority_bins}")
    window = torch.hann_window(win_length or n_fft, dtype=x.dtype, device=x.device)
    phi = power_spectrogram(torch.stack([x, y]).flatten(0, 1), window, n_fft, hop_length)
    if power == 1.0:
        phi = torch.sqrt(phi + 1e-10)  # its slope at zero is infinite
    phi_x, phi_y = phi.chunk(2)
    squares = (phi_x - phi_y) ** 2
    return 0.5 * (squares.mean() + squares[:, :priority_bins].mean()) if priority_bins else squares.mean()
