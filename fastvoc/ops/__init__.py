"""Every operator, one module each; importing this package registers them all."""

from fastvoc.ops import gated_activation, gated_residual, gated_residual_stack, upsample, wavenet_generate

__all__ = ["gated_activation", "gated_residual", "gated_residual_stack", "upsample", "wavenet_generate"]
