"""A recording and what was made of its mel, side by side: waveforms above, log-mel spectrograms below."""

import math
from pathlib import Path

import numpy as np

from fastvoc._atomic import atomic_path
from fastvoc.audio.mel import MelConfig, mel_spectrogram

DYNAMIC_RANGE = 80  # dB that the colours span, below the loudest cell of the recording
N_MELS = 96


def plot_side_by_side(path: Path, columns: list[tuple[str, np.ndarray, int]]) -> None:
    """columns: (title, wav, sample rate), the recording first."""
    from matplotlib.figure import Figure  # not pyplot: it keeps figures and looks for a screen

    spectra = [_spectrum(wav, rate) for _, wav, rate in columns]
    top = spectra[0].max()
    peak = 1.05 * max(np.abs(wav).max() for _, wav, _ in columns) or 1.0
    highest = max(rate for *_, rate in columns) / 2

    figure = Figure(figsize=(6.5 * len(columns), 6), layout="constrained")
    axes = figure.subplots(2, len(columns), sharex=True, sharey="row", gridspec_kw={"height_ratios": [1, 2]})
    for (name, wav, rate), spectrum, (above, below) in zip(columns, spectra, axes.T):
        seconds = len(wav) / rate
        above.plot(np.arange(len(wav)) / rate, wav, linewidth=0.4, color="#1f4e79")
        above.set(title=name, ylim=(-peak, peak), xlim=(0, seconds))
        above.grid(alpha=0.3)
        picture = below.imshow(
            spectrum - top, origin="lower", aspect="auto", interpolation="nearest", cmap="magma", vmin=-DYNAMIC_RANGE,
            vmax=0, extent=(0, seconds, 0, _mel(rate / 2)),
        )
        below.set(xlabel="time (s)", xlim=(0, seconds), ylim=(0, _mel(highest)))
    ticks = [f for f in (0, 250, 500, 1000, 2000, 4000, 8000, 16000) if f <= highest]
    axes[1, 0].set_yticks([_mel(f) for f in ticks], [f"{f / 1000:g}" for f in ticks])
    axes[0, 0].set_ylabel("amplitude")
    axes[1, 0].set_ylabel("frequency (kHz, mel scale)")
    figure.colorbar(picture, ax=axes[1], label="level (dB re the original's loudest)", pad=0.01)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def _spectrum(wav: np.ndarray, sample_rate: int) -> np.ndarray:
    """(n_mels, n_frames), dB"""
    n_fft = 2 ** round(math.log2(0.06 * sample_rate))
    window = n_fft // 2
    config = MelConfig(
        sample_rate, n_fft, max(window // 8, 1), window, min(N_MELS, n_fft // 4), 0, None, mel_scale="htk",
        mel_norm=None, log="20log10", floor=1e-7, pad_mode="constant",
    )
    return np.asarray(mel_spectrogram(np.asarray(wav, np.float64), config))


def _mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)
