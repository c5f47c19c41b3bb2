"""Position-indexed noise: Philox4x32-10 (Salmon et al. 2011), key = seed, counter = (sample index, stream, draw / 4).

The NumPy twin of csrc/core/philox.h and csrc/cpu/sample.h: the same numbers, for the reference and for whoever wants to
pass noise explicitly.
"""

import numpy as np


def philox(seed: int, sample: np.ndarray, stream: int, block: int) -> np.ndarray:
    """(n,) sample indices -> (n, 4) uint32."""
    sample = np.asarray(sample, np.uint64)
    mask = np.uint64(0xFFFFFFFF)
    w = [sample & mask, sample >> np.uint64(32), np.full_like(sample, stream), np.full_like(sample, block)]
    key = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * w[0], np.uint64(0xCD9E8D57) * w[2]
        high0, high1 = p0 >> np.uint64(32), p1 >> np.uint64(32)
        w = [high1 ^ w[1] ^ np.uint64(key[0]), p1 & mask, high0 ^ w[3] ^ np.uint64(key[1]), p0 & mask]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack(w, axis=1).astype(np.uint32)


def uniform(words: np.ndarray) -> np.ndarray:
    """uint32 -> float32 in (0, 1): 23 bits, the middle of their interval."""
    return ((words >> np.uint32(9)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)


def normal(u: np.ndarray) -> np.ndarray:
    """Uniform float32 -> standard normal, √2·erf⁻¹(2u - 1). Giles 2010, single precision."""
    f = np.float32
    x = f(2) * u - f(1)
    w = -np.log((f(1) - x).astype(np.float64) * (f(1) + x).astype(np.float64)).astype(f)
    centre = (
        2.81022636e-08,
        3.43273939e-07,
        -3.5233877e-06,
        -4.39150654e-06,
        0.00021858087,
        -0.00125372503,
        -0.00417768164,
        0.246640727,
        1.50140941,
    )
    tail = (
        -0.000200214257,
        0.000100950558,
        0.00134934322,
        -0.00367342844,
        0.00573950773,
        -0.0076224613,
        0.00943887047,
        1.00167406,
        2.83297682,
    )
    v = np.where(w < 5, w - f(2.5), np.sqrt(np.maximum(w, f(5)).astype(np.float64)).astype(f) - f(3))
    p = np.zeros_like(v)
    for c, t in zip(centre, tail):
        p = np.where(w < 5, f(c), f(t)) + p * v
    return f(1.41421356) * p * x


def draws(head: str, n_mix: int, seed: int, stream: int, first: int, n_samples: int) -> np.ndarray:
    """(n_samples, number of draws) float32: the noise of samples first … first + n_samples - 1 of a stream."""
    n = n_draws(head, n_mix)
    at = np.arange(first, first + n_samples)
    words = np.concatenate([philox(seed, at, stream, block) for block in range(-(-n // 4))], axis=1)[:, :n]
    u = uniform(words)
    if head == "softmax":
        return u
    out = np.float32(1e-5) + u * np.float32(1 - 2e-5)
    if head in ("gaussian", "mog"):
        out[:, -1] = normal(u[:, -1])
    return out


def n_draws(head: str, n_mix: int) -> int:
    """Random numbers per sample: one to pick or draw, and for a mixture one for each component."""
    return n_mix + 1 if head == "mol" or (head == "mog" and n_mix > 1) else 1
