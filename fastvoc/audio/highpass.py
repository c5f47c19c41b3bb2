"""The high-pass filter that stands in front of r9y9's recipes: rumble below 70 Hz costs a vocoder bits and is not heard."""

import numpy as np

from fastvoc.errors import ConfigError

TAPS = 255


def highpass(wav: np.ndarray, cutoff: float, sample_rate: int) -> np.ndarray:
    """A linear-phase FIR high pass: (…, n_samples) -> the same, delayed by 127 samples, of the same dtype.

    A Hamming-windowed sinc of 255 taps with gain 1 at half the sample rate, as scipy.signal.firwin(255, pass_zero=False)
    makes it; what is before the signal is zero.
    """
    nyquist = sample_rate // 2  # upstream's rounding
    if not 0 < cutoff < nyquist:
        raise ConfigError(f"cutoff is {cutoff:g} Hz, expected between 0 and {nyquist} Hz")
    n = np.arange(TAPS) - (TAPS - 1) / 2
    ratio = cutoff / nyquist
    taps = (np.sinc(n) - ratio * np.sinc(ratio * n)) * np.hamming(TAPS)
    taps /= np.sum(taps * np.cos(np.pi * n))
    size = wav.shape[-1]
    length = 1 << (size + TAPS - 2).bit_length() if size else 1
    spectrum = np.fft.rfft(wav.astype(np.float64), length) * np.fft.rfft(taps, length)
    return np.fft.irfft(spectrum, length)[..., :size].astype(wav.dtype)
