"""Negative log likelihood of a sample under a mixture of Gaussians.

    params  (B, 3K, T)  [logits | means | log_scales], float32 | float64
    target  (B, T)      waveform, like params
    nll     (B, T)      -logsumexp_k(log softmax(logits)_k + log N(y; mean_k, exp(max(log_scale_k, log_scale_min))))

r9y9/wavenet_vocoder's mix_gaussian_loss for three channels and more; its two-channel case is gaussian_loss. With K = 1
the single logit has no influence and no gradient.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from fastvoc.losses import _border
from fastvoc.losses.gaussian import gaussian_nll


def mixture_of_gaussians_loss(
    params: Tensor,
    target: Tensor,
    log_scale_min: float = -7.0,
    reduction: str = "none",
    lengths: Tensor | None = None,
) -> Tensor:
    """-log p(target).   params: (B, 3K, T), target: (B, T) -> (B, T), or a scalar if reduced"""
    _border.check_prediction(params, target, reduction)
    _border.check_waveform(params, target)
    _border.check_mixture(params)
    _border.check_log_scale_min(log_scale_min)
    mask = _border.valid_mask(lengths, params)
    params, target = _border.clear_padding(mask, params, target)

    logits, means, log_scales = params.chunk(3, dim=1)
    nll = gaussian_nll(target[:, None], means, log_scales.clamp(min=log_scale_min))
    return _border.reduce(-torch.logsumexp(F.log_softmax(logits, dim=1) - nll, dim=1), mask, reduction)
