"""Gaussian negative log likelihood of a sample.

    params  (B, 2, T)  [mean | log_scale], float32 | float64
    target  (B, T)     waveform, like params
    nll     (B, T)     ½ log 2π + log_scale + ½ ((y - mean)/exp(log_scale))²,  log_scale at least log_scale_min

Ping et al. 2018, "ClariNet", §3.1. The density is continuous, so the loss may be negative. r9y9/wavenet_vocoder's
mix_gaussian_loss for two channels, and ksw0306/ClariNet's GaussianLoss with log_scale_min = -9.
"""

import math

import torch
from torch import Tensor

from fastvoc.errors import ShapeError
from fastvoc.losses import _border


def gaussian_loss(
    params: Tensor,
    target: Tensor,
    log_scale_min: float = -7.0,
    reduction: str = "none",
    lengths: Tensor | None = None,
) -> Tensor:
    """-log N(target).   params: (B, 2, T), target: (B, T) -> (B, T), or a scalar if reduced"""
    _border.check_prediction(params, target, reduction)
    _border.check_waveform(params, target)
    _border.check_log_scale_min(log_scale_min)
    if params.shape[1] != 2:
        raise ShapeError(f"params must have 2 channels [mean | log_scale], got {params.shape[1]}.",
                         hint="For 3K channels use mixture_of_gaussians_loss.")
    mask = _border.valid_mask(lengths, params)
    params, target = _border.clear_padding(mask, params, target)

    mean, log_scale = params.unbind(dim=1)
    return _border.reduce(gaussian_nll(target, mean, log_scale.clamp(min=log_scale_min)), mask, reduction)


def gaussian_nll(y: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    u = (y - mean) * torch.exp(-log_scale)
    return 0.5 * math.log(2 * math.pi) + log_scale + 0.5 * u * u
