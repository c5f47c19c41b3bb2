"""Silence at both ends of a recording, found as librosa.effects.trim finds it."""

import numpy as np


def trim_silence(wav: np.ndarray, top_db: float = 60, frame_length: int = 2048, hop_length: int = 512) -> np.ndarray:
    """(n_samples,) without the frames at its ends that are more than top_db below the loudest one.

    Loudness is the root mean square of centred frames, zeros around the signal. A signal of nothing but zeros stays.
    """
    padded = np.pad(wav.astype(np.float64), frame_length // 2)
    energy = np.concatenate([[0.0], np.cumsum(padded**2)])
    starts = np.arange(0, len(padded) - frame_length + 1, hop_length)
    power = np.maximum((energy[starts + frame_length] - energy[starts]) / frame_length, 1e-10)
    loud = np.flatnonzero(10 * np.log10(power / power.max()) > -top_db)
    return wav[loud[0] * hop_length : (loud[-1] + 1) * hop_length] if len(loud) else wav
