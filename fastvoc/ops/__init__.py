"""Every operator, one module each; importing this package registers them all."""

from fastvoc.ops import (
    affine_coupling,
    gated_activation,
    gated_residual,
    gated_residual_stack,
    invertible_conv1x1,
    upsample,
    wavenet_generate,
)

__all__ = [
    "affine_coupling",
    "gated_activation",
    "gated_residual",
    "gated_residual_stack",
    "invertible_conv1x1",
    "upsample",
    "wavenet_generate",
]
