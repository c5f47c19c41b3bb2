"""Which mel convention an array looks like, and where two conventions differ: the wrong mel is the commonest failure.

What speech gives under each, at ordinary loudness (median, 95th percentile of the values above the floor):

    ln           tacotron                       -5, -1        floor ln 1e-5 = -11.51
    log10        parallel_wavegan, r9y9         -2, -0.5      floor -10; before their statistics
    normalised   the same after them             0,  1.5
    unit         lmnt, clarinet, r9y9_2018, bfs18             within 0…1
    decibels     20 log10, not mapped to 0…1    -45, -10
    linear       magnitudes without a logarithm  0.01, 0.3    never negative
"""

import numpy as np

from fastvoc.audio.mel import MelConfig

KINDS = {
    "ln": "natural logarithm (tacotron: WaveGlow, nv-wavenet, philsyn's DiffWave; HiFi-GAN's differs in its framing)",
    "log10": "log10, not normalised (parallel_wavegan, r9y9 before their statistics)",
    "normalised": "log10, normalised by statistics (parallel_wavegan, r9y9)",
    "unit": "mapped to 0…1 (lmnt, clarinet, r9y9_2018, bfs18)",
    "decibels": "decibels, not mapped to 0…1",
    "linear": "magnitudes, no logarithm",
}


def statistics(mel: np.ndarray) -> dict[str, float]:
    """min, max and mean of a mel of any layout."""
    return {name: float(getattr(mel, name)()) for name in ("min", "max", "mean")}


def looks_like(mel: np.ndarray) -> str:
    """The kind (a key of KINDS) that a finite mel of speech, of any layout, is closest to. A guess, from its values alone."""
    least, most = float(mel.min()), float(mel.max())
    above = mel[mel > least + 1e-3] if most > least + 1e-3 else mel
    median = float(np.median(above))
    if least >= 0:
        return "unit" if most <= 1.0001 and median > 0.1 * most else "linear"
    if least < -30:
        return "decibels"
    if np.mean(mel <= least + 1e-3) > 0.005:  # a floor is met, and it tells
        for kind, floor in (("ln", np.log(1e-5)), ("log10", -10.0)):
            if abs(least - floor) < 0.02:
                return kind
    return "normalised" if median > -1 else "log10" if median > -3.6 else "ln"


def kind_of(config: MelConfig, normalised: bool = True) -> str:
    """The kind that a convention makes, or "log2"; normalised: its statistics, if it has any, are applied."""
    if config.mean is not None and normalised:
        return "normalised"
    if config.clip is not None:
        return "unit"
    return "decibels" if config.log == "20log10" else config.log


def differences(declared: MelConfig, taken: MelConfig, normalised: bool) -> list[str]:
    """What distinguishes two conventions, a line a field; statistics count where they are applied."""
    a, b = declared.to_dict(), taken.to_dict()
    lines = [f"{name} {a[name]} instead of {b[name]}" for name in a if name not in ("mean", "scale") and a[name] != b[name]]
    close = lambda x, y: x == y or bool(x and y and len(x) == len(y) and np.allclose(x, y, rtol=1e-5))
    if normalised and not (close(a["mean"], b["mean"]) and close(a["scale"], b["scale"])):
        lines.append("other statistics (mean, scale)")
    return lines
