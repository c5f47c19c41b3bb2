"""Contrastive distillation: near to the teacher that hears the same text, far from the one that hears another.

    KL(P_S(c₁) ‖ P_T(c₁)) - γ·KL(P_S(c₁) ‖ P_T(c₂))

van den Oord et al. 2018, "Parallel WaveNet", section 5, "Contrastive loss". bfs18/nsynth_wavenet uses γ = 0.3.
"""

from torch import Tensor


def contrastive_loss(matched: Tensor, mismatched: Tensor, gamma: float = 0.3) -> Tensor:
    """matched, mismatched: the divergence from the teacher with the student's conditioning, and with another's."""
    return matched - gamma * mismatched
