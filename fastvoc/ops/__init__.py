"""Every operator, one module each; importing this package registers them all."""

from fastvoc.ops import gated_activation, upsample, wavenet_generate

__all__ = ["gated_activation", "upsample", "wavenet_generate"]
