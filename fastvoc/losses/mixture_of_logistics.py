"""Discretised mixture of logistics: -log of the probability that a mixture gives to the target's quantisation bin.

    params  (B, 3K, T)  [logits | means | log_scales], float32 | float64
    target  (B, T)      in [-1, 1] (not checked), like params
    nll     (B, T)

With s = exp(max(log_scale, log_scale_min)), u = (y - mean)/s, a bin of width w = 2/((n_classes - 1) s) in units of s,
p = u + w/2 and m = u - w/2, component k has the log probability

    log σ(p)                                         y < -0.999   lowest bin, open to -∞
    log σ(-m)                                        y >  0.999   highest bin, open to +∞
    log (σ(p) - σ(m))                                where that difference exceeds 1e-5
    log σ(u) + log σ(-u) + log w                     elsewhere: density at the centre × bin width

and nll = -logsumexp_k(log softmax(logits)_k + log p_k).

Salimans et al. 2017, "PixelCNN++", eq. 2 and §2.1; the edges and the threshold are those of r9y9/wavenet_vocoder's
discretized_mix_logistic_loss, kept also for 65536 classes, where 33 bins at each end then count as edges and the
last two cases meet with a step.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fastvoc.errors import ConfigError
from fastvoc.losses import _border

EDGE = 0.999
MIN_BIN_PROBABILITY = 1e-5


def mixture_of_logistics_loss(
    params: Tensor,
    target: Tensor,
    n_classes: int = 65536,
    log_scale_min: float = -16.0,
    reduction: str = "none",
    lengths: Tensor | None = None,
) -> Tensor:
    """-log P(bin of target).   params: (B, 3K, T), target: (B, T) -> (B, T), or a scalar if reduced"""
    _border.check_prediction(params, target, reduction)
    _border.check_waveform(params, target)
    _border.check_mixture(params)
    _border.check_log_scale_min(log_scale_min)
    if isinstance(n_classes, bool) or not isinstance(n_classes, int) or n_classes < 2:
        raise ConfigError(f"n_classes must be an integer of at least 2, got {n_classes!r}.",
                          hint="Use the checkpoint's quantize_channels, 65536 for 16-bit audio.")
    mask = _border.valid_mask(lengths, params)
    params, target = _border.clear_padding(mask, params, target)

    logits, means, log_scales = params.chunk(3, dim=1)
    y = target[:, None]
    log_probs = _log_bin_probability(y, means, log_scales.clamp(min=log_scale_min), n_classes)
    nll = -torch.logsumexp(F.log_softmax(logits, dim=1) + log_probs, dim=1)
    return _border.reduce(nll, mask, reduction)


def _log_bin_probability(y: Tensor, means: Tensor, log_scales: Tensor, n_classes: int) -> Tensor:
    """y: (B, 1, T), means, log_scales: (B, K, T) -> (B, K, T)"""
    inv_s = torch.exp(-log_scales)
    centered = y - means
    half_bin = 1 / (n_classes - 1)
    u = centered * inv_s
    log_below_top = F.logsigmoid((centered + half_bin) * inv_s)
    log_above_bottom = F.logsigmoid((half_bin - centered) * inv_s)

    # Not log(sigmoid(p) - sigmoid(m)): that cancels, and loses 3 digits at 65536 classes in float32. The same number is
    # σ(p) σ(-m) (1 - exp(-w)). A scale so wide that w underflows is always in the `centre` branch; the clamp keeps the
    # gradient of the unused branch finite, so that torch.where multiplies 0 by a number and not by infinity.
    w = (2 * half_bin * inv_s).clamp(min=torch.finfo(inv_s.dtype).tiny)
    in_bin = log_below_top + log_above_bottom + torch.log(-torch.expm1(-w))
    centre = F.logsigmoid(u) + F.logsigmoid(-u) - log_scales + math.log(2 * half_bin)

    inner = torch.where(in_bin > math.log(MIN_BIN_PROBABILITY), in_bin, centre)
    return torch.where(y < -EDGE, log_below_top, torch.where(y > EDGE, log_above_bottom, inner))
