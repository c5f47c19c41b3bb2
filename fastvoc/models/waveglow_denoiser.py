"""The hum taken out of a WaveGlow's output: what it makes of nothing is subtracted from every frame's magnitudes.

    hum = |STFT(infer(a mel of zeros, sigma = 0))|, the first frame        |Y| = max(|X| - strength · hum, 0), phase kept

NVIDIA/waveglow's denoiser.py: STFT of 1024 with a Hann window and four frames over each sample.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvoc.errors import ConfigError, ShapeError

N_FRAMES = 88  # of the mel that the hum is made from


class Denoiser(nn.Module):
    """Denoiser(model)(audio, strength=0.1), constructor as upstream's.

    mode  "zeros", a mel of zeros; "normal", a random one

    bias_spec (1, filter_length / 2 + 1, 1) is the hum.
    """

    def __init__(
        self, waveglow, filter_length: int = 1024, n_overlap: int = 4, win_length: int | None = None, mode: str = "zeros"
    ) -> None:
        super().__init__()
        self.window: Tensor
        self.bias_spec: Tensor
        win_length = filter_length if win_length is None else win_length
        if n_overlap < 2 or filter_length % n_overlap or not 1 <= win_length <= filter_length:
            raise ConfigError(
                f"filter_length={filter_length} must be a multiple of n_overlap={n_overlap} ≥ 2, and win_length={win_length} "
                "no longer"
            )
        if mode not in ("zeros", "normal"):
            raise ConfigError(f"mode: got {mode!r}, expected 'zeros' or 'normal'")
        self.filter_length, self.hop_length = filter_length, filter_length // n_overlap
        weight = next(waveglow.parameters())
        self.register_buffer("window", torch.hann_window(win_length, dtype=weight.dtype, device=weight.device))
        make = torch.zeros if mode == "zeros" else torch.randn
        mel = make(1, waveglow.n_mels, N_FRAMES, dtype=weight.dtype, device=weight.device)
        hum = waveglow.infer(mel, sigma=0.0).to(weight.dtype)
        self.register_buffer("bias_spec", self._stft(hum).abs()[:, :, :1])

    def forward(self, audio: Tensor, strength: float = 0.1) -> Tensor:
        """audio (B, n_samples) -> (B, 1, n_samples cut to whole hops). Raises ShapeError, ConfigError."""
        if audio.dim() != 2 or audio.shape[1] <= self.filter_length // 2:
            raise ShapeError(
                f"audio is {tuple(audio.shape)}, expected (B, n_samples) of more than {self.filter_length // 2} samples"
            )
        if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 <= strength < math.inf:
            raise ConfigError(f"strength must be a number of at least 0, got {strength!r}")
        spectrum = self._stft(audio.to(self.window.dtype))
        magnitude = F.relu(spectrum.abs() - self.bias_spec * strength)
        clean = torch.istft(
            torch.polar(magnitude, spectrum.angle()), self.filter_length, self.hop_length, len(self.window), self.window
        )
        return clean[:, None]

    def _stft(self, audio: Tensor) -> Tensor:
        return torch.stft(
            audio, self.filter_length, self.hop_length, len(self.window), self.window, pad_mode="reflect", return_complex=True
        )
