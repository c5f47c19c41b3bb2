"""The noise schedules of DiffWave: what a step of the sampler multiplies by, and where a short schedule meets a long one.

    α_n = 1 - β_n      ᾱ_n = Π_{i ≤ n} α_i
    x  ←  c1_n·(x - c2_n·ε(x, t_n)) + σ_n·z                n = N - 1 … 0, no noise z at n = 0
    c1_n = 1/√α_n      c2_n = (1 - α_n)/√(1 - ᾱ_n)      σ_n² = β_n·(1 - ᾱ_{n-1})/(1 - ᾱ_n)

Kong et al. 2021, "DiffWave", algorithm 2 and eq. 5. A schedule other than the one trained with meets it at the fractional
steps t_n where √ᾱ is equal, linear between two training steps (the paper's appendix on fast sampling).
"""

import math
from dataclasses import dataclass

import numpy as np

from fastvoc.errors import ConfigError

# The paper's six steps, for T = 200 and for T = 50 training steps; lmnt ships the second
FAST_SCHEDULES = [[1e-4, 1e-3, 1e-2, 0.05, 0.2, 0.7], [1e-4, 1e-3, 1e-2, 0.05, 0.2, 0.5]]
ROUNDING = 1e-9  # by which ᾱ may lie outside of the training schedule and still be its first or last


@dataclass(frozen=True)
class SamplingSteps:
    """One number per step, n ascending; the sampler runs from the last to the first."""

    t: np.ndarray  # (N,) float32, in training steps from 0
    c1: list[float]
    c2: list[float]
    sigma: list[float]  # sigma[0] is not used

    def __len__(self) -> int:
        return len(self.t)


def checked_betas(betas, name: str = "schedule") -> list[float]:
    """The same as a list of floats. Raises ConfigError unless they are numbers in (0, 1), at least one."""
    try:
        values = [float(b) for b in betas]
    except (TypeError, ValueError):
        raise ConfigError(f"{name}: got {betas!r}, expected a list of numbers β in (0, 1)") from None
    if not values:
        raise ConfigError(f"{name} is empty, expected at least one β")
    for n, beta in enumerate(values):
        if not 0 < beta < 1:  # NaN too
            raise ConfigError(f"{name}[{n}] is {beta}, expected 0 < β < 1")
    return values


def noise_levels(betas: list[float], float32: bool = False) -> np.ndarray:
    """ᾱ of every step, float64 (N,). float32: rounded after every product, as philsyn's code does it."""
    return np.cumprod(1 - np.asarray(betas, np.float32 if float32 else np.float64)).astype(np.float64)


def sampling_steps(betas: list[float], training: list[float], float32: bool = False) -> SamplingSteps:
    """What the sampler needs to follow `betas` with a network trained on `training`.

    Raises ConfigError where a noise level of `betas` is none that the network was trained for.
    """
    beta = np.asarray(betas, np.float32 if float32 else np.float64)
    levels = noise_levels(betas, float32)
    t = aligned(levels, noise_levels(training, float32))
    alpha = (1 - beta).astype(np.float64)
    rest = (1 - levels).astype(beta.dtype)
    sigma = np.sqrt(beta * np.concatenate([[0], rest[:-1] / rest[1:]]).astype(beta.dtype))
    return SamplingSteps(
        t=t.astype(np.float32),
        c1=(1 / np.sqrt(alpha)).tolist(),
        c2=((1 - alpha) / np.sqrt(1 - levels)).tolist(),
        sigma=sigma.tolist(),
    )


def aligned(levels: np.ndarray, training: np.ndarray) -> np.ndarray:
    """The fractional training steps with the noise levels ᾱ = `levels`, interpolated in √ᾱ."""
    first, last = training[0], training[-1]
    for n, level in enumerate(levels):
        if not last * (1 - ROUNDING) <= level <= first * (1 + ROUNDING):
            beyond = "less noise than the first" if level > first else "more noise than the last"
            mend = "a larger first" if level > first else "smaller"
            raise ConfigError(
                f"this schedule cannot be used: after step {n} ᾱ is {level:.6g}, {beyond} of the model's {len(training)} "
                f"training steps, whose ᾱ run from {first:.6g} to {last:.6g}.",
                hint=f"Use {mend} β.",
            )
    # np.interp wants ascending positions: -√ᾱ
    return np.interp(-np.sqrt(levels), -np.sqrt(training), np.arange(len(training)))


def fast_schedule(training: list[float]) -> list[float] | None:
    """The paper's six steps for such a training schedule; None where they do not fit it."""
    for betas in FAST_SCHEDULES:
        try:
            sampling_steps(betas, training)
        except ConfigError:
            continue
        return betas
    return None


def linear_schedule(first: float, last: float, steps: int) -> list[float]:
    """β from first to last, the usual training schedule."""
    if steps < 1 or not (math.isfinite(first) and math.isfinite(last)):
        raise ConfigError(f"a linear schedule needs at least one step, got {steps} from {first} to {last}")
    return np.linspace(first, last, steps).tolist()
