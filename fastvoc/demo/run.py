"""What demo and bench measure: the compiled kernels beside plain PyTorch, and whether the two agree."""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import fastvoc
from fastvoc.demo import OPTIONS
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
    """The largest relative difference of the compiled kernels and plain PyTorch over the first frames, in fp32.

    A WaveNet is fed the start of the recording: fed what each draws, the two would part at the first sample where rounding
    tips the draw, which says nothing about either. The other families get the same noise.
    Raises KernelError beyond TOLERANCE.
    """
    per_frame = model.hop_length
    n_frames = min(math.ceil(CHECKED_SAMPLES / per_frame), mel.shape[1])
    n_samples = n_frames * per_frame
    if model.family == "wavenet":
        recording = model.preprocessing.to_model(wav[:n_samples])
        same = {"forced": torch.from_numpy(np.pad(recording, (0, n_samples - len(recording))))[None]}
    else:
        same = {"seed": 0, **OPTIONS.get(model.family, {})}
    ours, theirs = (_inferred(model, backend, mel[None, :, :n_frames], threads=threads, **same) for backend in (ENGINE, LOOP))
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    if not difference <= TOLERANCE:
        raise KernelError(
            f"the compiled kernels and plain PyTorch disagree on {model.family}: their outputs differ by {difference:.1e} of "
            f"the largest, more than {TOLERANCE:.0e}",
            hint="Run the tests on this machine, or force another instruction set with FASTVOC_CPU_ISA.",
        )
    return difference


def _inferred(model, backend: str, mel: Tensor, **options) -> Tensor:
    with fastvoc.backend(backend):
        return model.infer(mel, **options)
