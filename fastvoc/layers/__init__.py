"""Drop-in modules with the originals' constructors and parameter names."""

from fastvoc.layers.causal_conv1d import CausalConv1d
from fastvoc.layers.gated_activation import GatedActivation
from fastvoc.layers.gated_residual_stack import GatedResidualStack
from fastvoc.layers.residual_block import ResidualBlock, SpectrogramUpsampler
from fastvoc.layers.upsample import (
    ConvInUpsampleNetwork,
    ConvTranspose1dUpsampleNetwork,
    ConvTranspose2dUpsampleNetwork,
    Stretch2d,
    UpsampleNetwork,
)
from fastvoc.layers.wavenet_residual_block import WaveNetResidualBlock, WaveNetStack

__all__ = [
    "CausalConv1d",
    "ConvInUpsampleNetwork",
    "ConvTranspose1dUpsampleNetwork",
    "ConvTranspose2dUpsampleNetwork",
    "GatedActivation",
    "GatedResidualStack",
    "ResidualBlock",
    "SpectrogramUpsampler",
    "Stretch2d",
    "UpsampleNetwork",
    "WaveNetResidualBlock",
    "WaveNetStack",
]
