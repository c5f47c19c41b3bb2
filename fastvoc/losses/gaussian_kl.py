"""Closed-form divergence of two Gaussians: what a Gaussian student is distilled by.

    q, p  (B, 2, T)  [mean | log_scale], float32 | float64
    KL(q ‖ p) = log σ_p - log σ_q + ½ ((σ_q² + (µ_p - µ_q)²)/σ_p² - 1)         log scales at least log_scale_min

Ping et al. 2019, "ClariNet", eq. 6 and 7. With q the student and p the teacher this is the reverse divergence (upstream's
KL_type "qp", its default); exchange them for the forward one ("pq"). Alone it explodes where the teacher's scale is tiny,
so ClariNet adds `log_scale_distance` four times.
"""

import torch
from torch import Tensor

from fastvoc.errors import DTypeError, ShapeError
from fastvoc.losses import _border

REGULARISATION = 4.0  # ClariNet, section 3.2: λ


def gaussian_kl(
    q: Tensor, p: Tensor, log_scale_min: float = -6.0, reduction: str = "none", lengths: Tensor | None = None
) -> Tensor:
    """KL(q ‖ p) of each sample.   q, p: (B, 2, T) -> (B, T), or a scalar if reduced"""
    q, p, mask = _checked(q, p, reduction, lengths)
    _border.check_log_scale_min(log_scale_min)
    (mean_q, log_q), (mean_p, log_p) = q.unbind(1), p.unbind(1)
    log_q, log_p = log_q.clamp(min=log_scale_min), log_p.clamp(min=log_scale_min)
    squares = torch.exp(2 * log_q) + (mean_p - mean_q) ** 2
    return _border.reduce(log_p - log_q + 0.5 * (squares * torch.exp(-2 * log_p) - 1), mask, reduction)


def log_scale_distance(q: Tensor, p: Tensor, reduction: str = "none", lengths: Tensor | None = None) -> Tensor:
    """(log σ_q - log σ_p)² without a floor: ClariNet's regularisation.   q, p: (B, 2, T) -> (B, T), or a scalar"""
    q, p, mask = _checked(q, p, reduction, lengths)
    return _border.reduce((q[:, 1] - p[:, 1]) ** 2, mask, reduction)


def _checked(q, p, reduction, lengths):
    _border.check_prediction(q, p[:, 0] if isinstance(p, Tensor) and p.ndim == 3 else p, reduction, "q", "p")
    if q.shape[1] != 2 or p.shape != q.shape:
        raise ShapeError(f"q and p must both be (B, 2, T) [mean | log_scale], got {tuple(q.shape)} and {tuple(p.shape)}.")
    if q.dtype != p.dtype:
        raise DTypeError(f"q is {q.dtype} but p is {p.dtype}.", hint="Pass p.to(q.dtype).")
    mask = _border.valid_mask(lengths, q)
    if mask is not None:
        q, p = (x.masked_fill(~mask[:, None], 0) for x in (q, p))
    return q, p, mask
