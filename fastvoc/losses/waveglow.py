"""WaveGlow's negative log likelihood, per number of the latent and without the constant ½ log 2πσ².

    loss = [Σ z²/(2σ²) - Σ_k Σ log_s_k - Σ_k log_det_k] / (B · n_group · n_samples / n_group)

Prenger et al. 2019, "WaveGlow", eq. 4-11; NVIDIA's glow.WaveGlowLoss.
"""

import math

import torch
from torch import Tensor

from fastvoc.errors import ConfigError, DTypeError, ShapeError


def waveglow_loss(z: Tensor, log_s: list[Tensor], log_det: list[Tensor], sigma: float = 1.0) -> Tensor:
    """The outputs of WaveGlow.forward -> scalar.

    z (B, n_group, T); log_s (B, channels / 2, T) and log_det (a scalar) of each flow.  Raises ShapeError, DTypeError,
    ConfigError.
    """
    try:
        value = math.nan if isinstance(sigma, bool | str) else float(sigma)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigError(f"sigma must be a positive number, got {sigma!r}.", hint="WaveGlow is trained with 1.0.")
    if not z.is_floating_point():
        raise DTypeError(f"z is {z.dtype}, expected a floating point tensor")
    if z.dim() != 3 or not z.numel():
        raise ShapeError(f"z is {tuple(z.shape)}, expected (B, n_group, T)")
    if len(log_s) != len(log_det) or not log_s:
        raise ShapeError(f"log_s has {len(log_s)} flows and log_det {len(log_det)}; expected one each for every flow")
    for k, s in enumerate(log_s):
        if s.dim() != 3 or s.shape[0] != z.shape[0] or s.shape[2] != z.shape[2]:
            raise ShapeError(f"log_s[{k}] is {tuple(s.shape)}, expected ({z.shape[0]}, channels, {z.shape[2]})")
    scales = torch.stack([s.sum() for s in log_s]).sum()
    return (z.square().sum() / (2 * value * value) - scales - torch.stack(list(log_det)).sum()) / z.numel()
