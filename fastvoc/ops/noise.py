"""Random numbers by position, on any device: number t of row r of item b is Philox4x32-10 at the counter (t, b, r / 4).

The numbers of ops/philox.py, a row of them for each draw of a model, in torch: on a GPU they are made where they are used.
They depend on the seed and the position alone, not on the batch, the length or what else is drawn.
"""

import torch
from torch import Tensor

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85
WORD = 0xFFFFFFFF
PIECE = 1 << 17, 1 << 22  # counters that are worked on at once, on the CPU and elsewhere: in cache; memory bounded

# √2·erf⁻¹ as in ops/philox.py
CENTRE = (2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503, -0.00417768164,
          0.246640727, 1.50140941)  # fmt: skip
TAIL = (-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047,
        1.00167406, 2.83297682)  # fmt: skip


def uniform_noise(seed: int, batch: int, first_row: int, n_rows: int, length: int, device) -> Tensor:
    """(batch, n_rows, length) float32 in (0, 1): 23 bits, the middle of their interval."""
    blocks = torch.arange(first_row // 4, -(-(first_row + n_rows) // 4), device=device)[:, None]
    items = torch.arange(batch, device=device)[:, None, None]
    out = torch.empty(batch, len(blocks), 4, length, dtype=torch.float32, device=device)
    piece = max(PIECE[not out.is_cpu] // max(batch * len(blocks), 1), 1)
    for first in range(0, length, piece):
        at = torch.arange(first, min(first + piece, length), device=device)
        words = _philox(seed, at, items, blocks)
        for i, word in enumerate(words):
            out[:, :, i, first : first + piece] = ((word >> 9).float() + 0.5) * 2.0**-23
    skipped = first_row % 4
    return out.flatten(1, 2)[:, skipped : skipped + n_rows]


def _philox(seed: int, sample: Tensor, stream: Tensor, block: Tensor) -> list[Tensor]:
    """Four words of 32 bits, in int64, for every counter; the three broadcast."""
    shape = torch.broadcast_shapes(sample.shape, stream.shape, block.shape)
    w = [x.expand(shape) for x in (sample & WORD, sample >> 32, stream, block)]
    key = [seed & WORD, seed >> 32 & WORD]
    for _ in range(10):
        p0, p1 = w[0] * MULTIPLIERS[0], w[2] * MULTIPLIERS[1]  # int64 wraps, and the 64 bits are right
        w = [(p1 >> 32) & WORD ^ w[1] ^ key[0], p1 & WORD, (p0 >> 32) & WORD ^ w[3] ^ key[1], p0 & WORD]
        key = [(k + step) & WORD for k, step in zip(key, KEY_STEPS)]
    return w


def normal(u: Tensor) -> Tensor:
    """Uniform float32 -> standard normal, √2·erf⁻¹(2u - 1). Giles 2010, single precision."""
    x = 2 * u - 1
    w = -torch.log((1 - x).double() * (1 + x).double()).float()
    is_centre = w < 5
    v = torch.where(is_centre, w - 2.5, w.clamp(min=5).double().sqrt().float() - 3)
    centre, tail = torch.zeros_like(v), torch.zeros_like(v)
    for c, t in zip(CENTRE, TAIL):
        centre, tail = c + centre * v, t + tail * v
    return 1.41421356 * torch.where(is_centre, centre, tail) * x


def logistic(u: Tensor) -> Tensor:
    """Uniform float32 -> standard logistic, log u - log(1 - u)."""
    u = u.double()
    return (torch.log(u) - torch.log1p(-u)).float()
