"""Pre-emphasis y[n] = x[n] - c·x[n-1] and its inverse y[n] = x[n] + c·y[n-1].

The inverse is a recursion, and ten minutes of it would take a Python loop many seconds. But

    1/(1 - c z⁻¹) = (1 + c z⁻¹)(1 + c² z⁻²)(1 + c⁴ z⁻⁴) ...

so log2(span) shifted additions give y to c^span, taken below 2⁻⁵³. Every output is then one fixed expression of the last
`span` inputs, wherever chunks begin: chunks equal the whole bit for bit, and the state is those inputs.
"""

import math

import numpy as np

from fastvoc.errors import ConfigError, DTypeError, ShapeError


def preemphasis(x: np.ndarray, coef: float) -> np.ndarray:
    """(n_samples,) float -> same. The sample before the first counts as zero."""
    _check(x, coef)
    y = x.copy()
    y[1:] -= x.dtype.type(coef) * x[:-1]
    return y


def inv_preemphasis(x: np.ndarray, coef: float, state: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(n_samples,) float -> same, and the state to pass with the next chunk; None begins a signal."""
    _check(x, coef)
    span = 2
    while coef**span > 2.0**-53:
        span *= 2
    if state is None:
        state = np.zeros(span - 1)
    elif np.shape(state) != (span - 1,):
        raise ShapeError(f"the state of coef {coef:g} has shape ({span - 1},), not {np.shape(state)}.")
    y = np.empty_like(x)
    block = max(1 << 14, span)  # stays in cache; any size gives the same bits
    for start in range(0, len(x), block):
        work = np.concatenate([state, x[start : start + block]])  # float64, as the state
        state = work[len(work) - (span - 1) :].copy()
        step = 1
        while step < span:
            work[step:] += coef**step * work[:-step]
            step *= 2
        y[start : start + block] = work[span - 1 :]
    return y, state


def _check(x: np.ndarray, coef: float) -> None:
    if not isinstance(x, np.ndarray) or x.dtype not in (np.float32, np.float64):
        got = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
        raise DTypeError(f"x must be a float32 or float64 numpy array, not {got}.")
    if x.ndim != 1:
        raise ShapeError(f"x must be (n_samples,), not {x.shape}.")
    if not (math.isfinite(coef) and 0 <= coef <= 0.999):
        raise ConfigError(f"coef must be from 0 to 0.999, not {coef!r}.")
