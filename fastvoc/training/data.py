"""Training examples: a folder of wavs, held in memory as waves and mels, cut into random segments.

The segments of step n are drawn from a generator seeded by (seed, n) alone. So a training that was interrupted and
resumed sees exactly the segments that an uninterrupted one sees.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastvoc.audio.mel import MelConfig, mel_spectrogram
from fastvoc.audio.wav import read_wav
from fastvoc.errors import AudioError


class Corpus:
    """Every wav of a folder (and its subfolders), with its mel.

    waves  list of (n_frames · hop_length,) float32
    mels   list of (n_mels, n_frames) float32, not normalised
    """

    def __init__(self, folder: Path, mel: MelConfig):
        paths = sorted(Path(folder).rglob("*.wav"))
        if not paths:
            raise AudioError(f"no .wav file in {folder}", hint="--data takes a folder of wav files")
        self.paths, self.waves, self.mels, self.hop = [], [], [], mel.hop_length
        for path in paths:
            wave, _ = read_wav(path, sample_rate=mel.sample_rate)
            n_frames = len(wave) // mel.hop_length
            if n_frames * mel.hop_length <= mel.n_fft:
                continue  # too short for one analysis window
            spectrogram = mel_spectrogram(torch.from_numpy(wave), mel)[:, :n_frames]
            self.paths.append(path)
            self.waves.append(torch.from_numpy(wave[: n_frames * mel.hop_length]))
            self.mels.append(spectrogram)
        if not self.waves:
            raise AudioError(f"every wav in {folder} is shorter than one analysis window of {mel.n_fft} samples")

    def band_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of every mel band over the corpus."""
        frames = torch.cat(self.mels, dim=1).double()
        return frames.mean(1).numpy(), frames.std(1).clamp_min(1e-3).numpy()

    def segments(self, seed: int, step: int, batch_size: int, n_frames: int, context: int) -> tuple[Tensor, Tensor]:
        """(batch_size, n_frames · hop) samples and (batch_size, n_mels, n_frames + 2·context) mel, both cut at random.

        Utterances are picked in proportion to their length; the mel's edge frames are repeated beyond the ends.
        """
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        weights = torch.tensor([m.shape[1] for m in self.mels], dtype=torch.float)
        waves, mels = [], []
        for i in torch.multinomial(weights, batch_size, replacement=True, generator=generator).tolist():
            wave, mel = self.waves[i], self.mels[i]
            start = int(torch.randint(max(mel.shape[1] - n_frames, 0) + 1, (1,), generator=generator))
            at = torch.arange(start - context, start + n_frames + context).clamp(0, mel.shape[1] - 1)
            piece = wave[start * self.hop : (start + n_frames) * self.hop]
            waves.append(torch.nn.functional.pad(piece, (0, n_frames * self.hop - len(piece))))
            mels.append(mel[:, at])
        return torch.stack(waves), torch.stack(mels)
