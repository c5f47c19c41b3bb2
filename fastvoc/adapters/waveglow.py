"""NVIDIA/waveglow's WaveGlow: `infer(spect, sigma)` and `forward((spect, audio))`; DeepLearningExamples' too, with
`infer_onnx(spect, z, sigma)`.

glow_old.WaveGlow moves the other half of the channels in every second flow. The name of the class's module tells; where
it has another name, coupling="alternating" does.
"""

from torch import Tensor, nn

from fastvoc.adapters.becoming import become, in_dtype_of
from fastvoc.checkpoints import waveglow
from fastvoc.checkpoints.rewriting import rewritten
from fastvoc.checkpoints.weight_norm import fold_weight_norm
from fastvoc.errors import ConfigError, IncompatibleCheckpointError, ShapeError
from fastvoc.models.pretrained import load_weights
from fastvoc.models.waveglow import WaveGlow

UPSTREAM = "NVIDIA/waveglow's WaveGlow"


class NvidiaWaveGlow(WaveGlow):
    """WaveGlow that is called as the upstream's: one pair of arguments, and sigma 1 where none is given."""

    def forward(self, forward_input) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        spect, audio = (in_dtype_of(self, x) for x in forward_input)
        return super().forward(audio, spect)

    def infer(self, spect: Tensor, sigma: float = 1.0, **options) -> Tensor:
        return super().infer(in_dtype_of(self, spect), sigma=sigma, **options)

    def infer_onnx(self, spect: Tensor, z: Tensor, sigma: float = 0.9) -> Tensor:
        """DeepLearningExamples' export: z (B, n_group, n_groups) normal numbers, the last flows' first; sigma scales these
        alone, while early outputs come in as they are. Exports have z with a last axis of 1 too.
        """
        sizes = [channels for _, channels, _ in self.noise_shapes(1, 1)]
        if z.dim() == 4 and z.shape[3] == 1:
            z = z[..., 0]
        if z.dim() != 3 or z.shape[1] != sum(sizes):
            raise ShapeError(f"z is {tuple(z.shape)}, expected (B, {sum(sizes)}, n_groups)")
        first, *early = z.split(sizes, 1)
        return self.infer(spect, 1.0, noise=[sigma * first, *early])

    @staticmethod
    def remove_weightnorm(model):
        """For the upstream's callers: the weights have no weight norm any more."""
        return model


def matches(module: nn.Module, names: set[str]) -> bool:
    return waveglow.matches(dict.fromkeys(names), None)


def adapt(module: nn.Module, state: dict[str, Tensor], coupling: str | None = None) -> NvidiaWaveGlow:
    """coupling: "standard" or "alternating"; default: as the name of the class's module says"""
    name = type(module).__name__
    if coupling not in (None, *waveglow.COUPLINGS):
        raise ConfigError(f"coupling: got {coupling!r}, expected one of {list(waveglow.COUPLINGS)}")
    if coupling is None:
        alternating = any("glow_old" in cls.__module__.split(".") for cls in type(module).__mro__)
        coupling = "alternating" if alternating else "standard"
    said = {key: value for key, value in vars(module).items() if type(value) is int}
    try:
        hop = int(module.upsample.stride[0])
    except (AttributeError, TypeError) as fault:
        raise IncompatibleCheckpointError(f"{name} lacks what a WaveGlow has: {fault}") from None
    state = {key: w for key, w in fold_weight_norm(state).items() if not waveglow.is_unused(key, state)}
    model = WaveGlow(waveglow.config_of(state, said, hop, coupling == "alternating", name))
    load_weights(model, rewritten(waveglow.rewrite, state, name), name)
    return become(NvidiaWaveGlow, model)
