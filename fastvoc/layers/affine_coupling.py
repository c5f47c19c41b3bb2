"""Affine coupling as a module: one half of the channels moves the other; see ops/affine_coupling.py.

    audio = [a; b]    t, log_s = net((a, cond))    ->    [a; b·exp(log_s) + t]

Prenger et al. 2019, "WaveGlow", section 2.1.
"""

import torch
from torch import Tensor, nn

from fastvoc.errors import ShapeError
from fastvoc.ops.affine_coupling import affine_coupling, affine_coupling_inverse


class AffineCoupling(nn.Module):
    """net((a (B, h, T), cond)) -> (B, 2h, T), t in its first half and log_s in the second, such as `WN`.

    swap  the second half of the channels moves the first, as in every other flow of WaveGlow's glow_old

    forward(audio (B, 2h, T), cond) -> (B, 2h, T), log_s (B, h, T);   forward(audio, cond, reverse=True) -> (B, 2h, T)
    """

    def __init__(self, net: nn.Module, swap: bool = False) -> None:
        super().__init__()
        self.net, self.swap = net, swap

    def forward(self, audio: Tensor, cond: Tensor | None = None, reverse: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        a, b = self.halves(audio)
        params = self.net((a, cond)).to(audio.dtype)  # which autocast may have made a lower one
        if reverse:
            return self.undone(a, b, params)
        t, log_s = params.chunk(2, 1)
        return self.joined(a, affine_coupling(b, log_s, t)[0]), log_s

    def undone(self, a: Tensor, b: Tensor, params: Tensor) -> Tensor:
        """The inverse, where net's output is known."""
        t, log_s = params.chunk(2, 1)
        return self.joined(a, affine_coupling_inverse(b, log_s, t))

    def halves(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 2h, T) -> what stays, what is moved: (B, h, T) each."""
        if audio.dim() != 3 or audio.shape[1] % 2:
            raise ShapeError(f"AffineCoupling: audio is {tuple(audio.shape)}, expected (B, an even number of channels, T)")
        first, second = audio.chunk(2, 1)
        return (second, first) if self.swap else (first, second)

    def joined(self, a: Tensor, b: Tensor) -> Tensor:
        """The inverse of `halves`."""
        return torch.cat([b, a] if self.swap else [a, b], 1)

    def extra_repr(self) -> str:
        return f"swap={self.swap}"
