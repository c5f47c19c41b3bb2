"""What demo and bench measure: the compiled engine beside the plain PyTorch loop, and whether the two agree."""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import fastvoc
from fastvoc.errors import KernelError

CHECKED_SAMPLES = 500
TOLERANCE = 1e-4  # of the largest network output; both sides sum in float32, in different orders

ENGINE, LOOP = "cpu", "reference"


@dataclass
class Timing:
    """Sound that was made, and in what time."""

    wavs: list[np.ndarray]
    seconds: float
    sample_rate: int

    @property
    def samples_per_s(self) -> float:
        return sum(map(len, self.wavs)) / self.seconds

    @property
    def rtf(self) -> float:
        """Seconds computed per second of sound, all streams together."""
        return self.sample_rate / self.samples_per_s


def vocode_timed(model, backend: str, mel: Tensor, **options) -> Timing:
    """mel (B, n_mels, n_frames) through one backend and no other: where it declines, that is an error.

    The first call with these options packs the weights, so time a second one.
    """
    with fastvoc.backend(backend):
        start = time.perf_counter()
        wavs = model.vocode(mel, **options)
        seconds = time.perf_counter() - start
    return Timing(wavs, seconds, model.preprocessing.mel.sample_rate)


def check_agreement(model, mel: Tensor, wav: np.ndarray, threads: int) -> float:
    """The largest relative difference of engine and loop, both fed the start of a recording, in fp32.

    Raises KernelError beyond TOLERANCE. Fed what each draws, the two would part at the first sample where rounding tips
    the draw, which says nothing about either.
    """
    per_frame = model.samples_per_frame
    n_frames = min(math.ceil(CHECKED_SAMPLES / per_frame), mel.shape[1])
    n_samples = n_frames * per_frame
    recording = model.preprocessing.to_model(wav[:n_samples])
    recording = np.pad(recording, (0, n_samples - len(recording)))
    forced, mel = torch.from_numpy(recording)[None], mel[None, :, :n_frames]
    with fastvoc.backend(ENGINE):
        ours = model.infer(mel, forced=forced, threads=threads)
    with fastvoc.backend(LOOP):
        theirs = model.infer(mel, forced=forced, threads=threads)
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    if not difference <= TOLERANCE:
        raise KernelError(
            f"the compiled engine and the PyTorch loop disagree: their outputs differ by {difference:.1e} of the "
            f"largest, more than {TOLERANCE:.0e}",
            hint="Run the tests on this machine, or force another instruction set with FASTVOC_CPU_ISA.",
        )
    return difference
