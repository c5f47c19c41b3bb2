"""Gated activation as a module: tanh of one half of the channels times σ of the other; see ops/gated_activation.py."""

from torch import Tensor, nn

from fastvoc.errors import ShapeError
from fastvoc.ops.gated_activation import gated_activation


class GatedActivation(nn.Module):
    """y = tanh(a)·σ(b), where a and b are the halves of x along `dim`, a first; or the two given tensors.

    (B, 2·C, T) -> (B, C, T);   (B, C, T), (B, C, T) -> (B, C, T)
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        if b is None:
            a, b = self._halves(a)
        return gated_activation(a, b)

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not -x.dim() <= self.dim < x.dim():
            raise ShapeError(f"GatedActivation: x is {tuple(x.shape)}, it has no dimension {self.dim} to split.")
        if x.shape[self.dim] % 2:
            raise ShapeError(
                f"GatedActivation: x is {tuple(x.shape)}, expected an even size in dimension {self.dim}.",
                hint="The first half goes through tanh, the second through σ.",
            )
        half = x.shape[self.dim] // 2
        return x.narrow(self.dim, 0, half), x.narrow(self.dim, half, half)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"
