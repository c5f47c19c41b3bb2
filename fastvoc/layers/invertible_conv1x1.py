"""Invertible 1×1 convolution as a module: constructor, parameter name and calls of WaveGlow's glow.Invertible1x1Conv."""

import torch
from torch import Tensor, nn

from fastvoc._op import needs_grad
from fastvoc.errors import ConfigError
from fastvoc.ops.invertible_conv1x1 import inverse, invertible_conv1x1, invertible_conv1x1_inverse, log_abs_det


class Invertible1x1Conv(nn.Module):
    """y = W·z and log|det W|; starts as a random rotation. See ops/invertible_conv1x1.py.

    forward(z (B, c, T)) -> y (B, c, T), and the log-determinant of the whole map, B·T·log|det W| (a scalar)
    forward(y, reverse=True) -> W⁻¹·y
    """

    def __init__(self, c: int) -> None:
        super().__init__()
        if c < 1:
            raise ConfigError(f"Invertible1x1Conv: c must be at least 1, got {c}")
        self.conv = nn.Conv1d(c, c, 1, bias=False)
        rotation = torch.linalg.qr(torch.randn(c, c))[0]
        rotation[:, 0] *= torch.linalg.det(rotation).sign()  # without a look at it: a config is tried on the meta device
        with torch.no_grad():
            self.conv.weight.copy_(rotation[:, :, None])
        self._inverse: tuple[tuple, Tensor] | None = None

    def forward(self, z: Tensor, reverse: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        if reverse:
            return self.inverse(z)
        y, log_det = invertible_conv1x1(z, self.conv.weight[:, :, 0])
        return y, log_det * (z.shape[0] * z.shape[2])

    def log_det(self, z: Tensor) -> Tensor:
        """B·T·log|det W| alone."""
        return log_abs_det(self.conv.weight[:, :, 0]) * (z.shape[0] * z.shape[2])

    def inverse(self, y: Tensor) -> Tensor:
        """W⁻¹·y. Raises ConfigError where W is singular."""
        if needs_grad(y, self.conv.weight):
            return invertible_conv1x1_inverse(y, self.conv.weight[:, :, 0])
        return invertible_conv1x1(y, self._inverted())[0]

    @torch.no_grad()
    def _inverted(self) -> Tensor:
        """W⁻¹, made anew when W has changed."""
        w = self.conv.weight
        stamp = w.data_ptr(), 0 if w.is_inference() else w._version, w.dtype
        if self._inverse is None or self._inverse[0] != stamp:
            self._inverse = stamp, inverse(w[:, :, 0])
        return self._inverse[1]

    def __getstate__(self):
        return {**self.__dict__, "_inverse": None}
