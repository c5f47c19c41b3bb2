"""Probability density distillation: how far a logistic student is from a teacher with a mixture of logistics.

    student  (B, 2, T)   [mean | log_scale] of each sample, given the noise before it
    teacher  (B, 3K, T)  [logits | means | log_scales] of the same samples, given the student's samples before them
    uniform  (n, B, T)   in (0, 1), at some distance from both

    KL(P_S ‖ P_T) = H(P_S, P_T) - H(P_S)                                          eq. 6
    H(P_S)        = log s + 2                                                     eq. 7
    H(P_S, P_T)   ≈ -1/n Σ_i log p_T(µ + s·(ln u_i - ln(1 - u_i)))                eq. 8, the integral by n draws

van den Oord et al. 2018, "Parallel WaveNet", section 4. All draws of a sample share one run of the teacher: that is
what makes n = 100 cheap. log p_T is the discretised likelihood of mixture_of_logistics.py divided by the bin's width,
so that the result is a divergence of densities; upstream (bfs18/nsynth_wavenet) leaves that constant in.
"""

import math

import torch
from torch import Tensor

from fastvoc.errors import ShapeError
from fastvoc.losses import _border
from fastvoc.losses.mixture_of_logistics import mixture_of_logistics_loss


def logistic_kl(
    student: Tensor,
    teacher: Tensor,
    uniform: Tensor,
    n_classes: int = 65536,
    log_scale_min: float = -16.0,
    reduction: str = "none",
    lengths: Tensor | None = None,
) -> Tensor:
    """Monte-Carlo KL(student ‖ teacher) of each sample -> (B, T), or a scalar if reduced. Not below 0 but for the draws."""
    _border.check_prediction(student, teacher[:, 0], reduction, "student", "teacher")
    _border.check_waveform(student, teacher)
    B, channels, T = student.shape
    if channels != 2:
        raise ShapeError(f"student must be (B, 2, T) [mean | log_scale], got {tuple(student.shape)}.")
    if uniform.dim() != 3 or uniform.shape[1:] != (B, T) or not len(uniform):
        raise ShapeError(f"uniform is {tuple(uniform.shape)}, expected (n, B, T) = (n, {B}, {T}).")
    mask = _border.valid_mask(lengths, student)
    if mask is not None:
        student, teacher = (x.masked_fill(~mask[:, None], 0) for x in (student, teacher))
    mean, log_scale = student.unbind(1)
    drawn = mean + log_scale.exp() * torch.logit(uniform.to(student))
    n = len(drawn)
    every = teacher.expand(n, *teacher.shape).reshape(n * B, -1, T)
    nll = mixture_of_logistics_loss(every, drawn.reshape(n * B, T), n_classes, log_scale_min)
    cross_entropy = nll.reshape(n, B, T).mean(0) + math.log(2 / (n_classes - 1))
    return _border.reduce(cross_entropy - (log_scale + 2), mask, reduction)
