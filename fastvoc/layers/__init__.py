"""Drop-in modules with the originals' constructors and parameter names."""

from fastvoc.layers.affine_coupling import AffineCoupling
from fastvoc.layers.causal_conv1d import CausalConv1d
from fastvoc.layers.gated_activation import GatedActivation
from fastvoc.layers.gated_residual_stack import GatedResidualStack
from fastvoc.layers.invertible_conv1x1 import Invertible1x1Conv
from fastvoc.layers.residual_block import ResidualBlock, SpectrogramUpsampler
from fastvoc.layers.residual_conv1d_glu import ResidualConv1dGLU
from fastvoc.layers.upsample import (
    ConvInUpsampleNetwork,
    ConvTranspose1dUpsampleNetwork,
    ConvTranspose2dUpsampleNetwork,
    Stretch2d,
    UpsampleNetwork,
)
from fastvoc.layers.wavenet_residual_block import WaveNetResidualBlock, WaveNetStack
from fastvoc.layers.wn import WN

__all__ = [
    "WN",
    "AffineCoupling",
    "CausalConv1d",
    "ConvInUpsampleNetwork",
    "ConvTranspose1dUpsampleNetwork",
    "ConvTranspose2dUpsampleNetwork",
    "GatedActivation",
    "GatedResidualStack",
    "Invertible1x1Conv",
    "ResidualBlock",
    "ResidualConv1dGLU",
    "SpectrogramUpsampler",
    "Stretch2d",
    "UpsampleNetwork",
    "WaveNetResidualBlock",
    "WaveNetStack",
]
