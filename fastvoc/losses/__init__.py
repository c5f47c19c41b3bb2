"""Training objectives.

A loss of the autoregressive vocoders is -log p of the next sample. It takes parameters (B, channels, T) and a target
(B, T); params[:, :, t] describes target[:, t], so the shift by one sample between a teacher-forced network's input and
its target is the caller's.
"""

from fastvoc.losses.adversarial import discriminator_adversarial_loss, generator_adversarial_loss
from fastvoc.losses.contrastive import contrastive_loss
from fastvoc.losses.cross_entropy import mulaw_cross_entropy
from fastvoc.losses.density_distillation import logistic_kl
from fastvoc.losses.diffwave import diffused, diffwave_loss
from fastvoc.losses.feature_matching import feature_matching_loss
from fastvoc.losses.frame_loss import frame_loss
from fastvoc.losses.gaussian import gaussian_loss
from fastvoc.losses.gaussian_kl import gaussian_kl, log_scale_distance
from fastvoc.losses.mixture_of_gaussians import mixture_of_gaussians_loss
from fastvoc.losses.mixture_of_logistics import mixture_of_logistics_loss
from fastvoc.losses.power_loss import power_loss
from fastvoc.losses.stft import multi_resolution_stft_loss, stft_loss
from fastvoc.losses.waveglow import waveglow_loss

__all__ = [
    "contrastive_loss",
    "diffused",
    "diffwave_loss",
    "discriminator_adversarial_loss",
    "feature_matching_loss",
    "frame_loss",
    "gaussian_kl",
    "gaussian_loss",
    "generator_adversarial_loss",
    "log_scale_distance",
    "logistic_kl",
    "mixture_of_gaussians_loss",
    "mixture_of_logistics_loss",
    "mulaw_cross_entropy",
    "multi_resolution_stft_loss",
    "power_loss",
    "stft_loss",
    "waveglow_loss",
]
