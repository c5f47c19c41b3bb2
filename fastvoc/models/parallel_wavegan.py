"""Parallel WaveGAN: noise in, waveform out, one pass through a non-causal gated residual stack.

    c' = up((c - mean)/scale)         the mel, normalised, its edge frames repeated, stretched to sample rate
    x  = W_first·z + b                z standard normal, one number per sample
    s  = Σ_l skip_l / √L              the stack, with ρ = √½ and dilations 1, 2, 4 … in every cycle
    y  = W_2·relu(W_1·relu(s) + b_1) + b_2

    Yamamoto, Song & Kim 2020, "Parallel WaveGAN", section 3.1 and figure 1

The configuration has the names of kan-bayashi/ParallelWaveGAN's ParallelWaveGANGenerator. The weights are in the stack's
canonical form, 1/√L in its skip rows: checkpoints/parallel_wavegan.py rewrites the public checkpoints. The discriminators
are in parallel_wavegan_discriminator.py.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvoc._torch_threads import one_torch_thread
from fastvoc.errors import ConfigError, ShapeError
from fastvoc.layers.gated_residual_stack import GatedResidualStack, exact_pointwise
from fastvoc.layers.melgan import MelGANGenerator
from fastvoc.layers.upsample import ConvInUpsampleNetwork, UpsampleNetwork, at_frame_rate, at_sample_rate, stretched
from fastvoc.models.vocoder import Lengths, Progress, Vocoder
from fastvoc.ops.gated_residual_stack import Interpolated

MAX_CHANNELS = 65536
PIECE_SAMPLES = 1 << 16
UPSAMPLE_NETS = {cls.__name__: cls for cls in (ConvInUpsampleNetwork, MelGANGenerator, UpsampleNetwork)}


@dataclass
class ParallelWaveGANConfig:
    """ParallelWaveGANGenerator's arguments and defaults, but for use_weight_norm: weights are kept folded."""

    in_channels: int = 1
    out_channels: int = 1
    kernel_size: int = 3
    layers: int = 30
    stacks: int = 3
    residual_channels: int = 64
    gate_channels: int = 128
    skip_channels: int = 64
    aux_channels: int = 80  # mel bands; 0 or less: an unconditional model
    aux_context_window: int = 2  # frames on each side of a frame that its conditioning sees
    dropout: float = 0.0
    bias: bool = True  # of the residual layers
    use_causal_conv: bool = False
    upsample_conditional_features: bool = True
    upsample_net: str = "ConvInUpsampleNetwork"
    upsample_params: dict = field(default_factory=lambda: {"upsample_scales": [4, 4, 4, 4]})

    def __post_init__(self):
        sizes = "in_channels", "out_channels", "residual_channels", "gate_channels", "skip_channels"
        for name in (*sizes, "kernel_size", "layers", "stacks"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= MAX_CHANNELS:
                raise ConfigError(f"{name} must be a whole number in 1…{MAX_CHANNELS}, got {value!r}")
        if type(self.aux_channels) is not int or self.aux_channels > MAX_CHANNELS:
            raise ConfigError(f"aux_channels must be a whole number up to {MAX_CHANNELS}, got {self.aux_channels!r}")
        if type(self.aux_context_window) is not int or not 0 <= self.aux_context_window <= 1024:
            raise ConfigError(f"aux_context_window must be a whole number in 0…1024, got {self.aux_context_window!r}")
        if self.layers % self.stacks or self.layers // self.stacks > 24:
            raise ConfigError(
                f"layers={self.layers}, stacks={self.stacks}: expected a multiple, at most 24 layers in a stack"
            )
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must lie in 0…1, got {self.dropout!r}")
        if not isinstance(self.upsample_params, dict):
            raise ConfigError(f"upsample_params must be an object, got {self.upsample_params!r}")

    @property
    def dilations(self) -> list[int]:
        return [2 ** (layer % (self.layers // self.stacks)) for layer in range(self.layers)]


class ParallelWaveGAN(Vocoder):
    """ParallelWaveGAN(layers=…, …): every field of ParallelWaveGANConfig is a keyword.

    mean, scale (n_mels,): the training set's statistics, which `infer` applies; 0 and 1 where there are none.
    """

    Config = ParallelWaveGANConfig
    family = "parallel_wavegan"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.config = c = (
            args[0] if args and isinstance(args[0], ParallelWaveGANConfig) else ParallelWaveGANConfig(*args, **kwargs)
        )
        self.first_conv = nn.Conv1d(c.in_channels, c.residual_channels, 1)
        self.upsample_net: Any = _upsample_net(c) if c.upsample_conditional_features and self.n_mels else None
        self.stack = GatedResidualStack(
            c.residual_channels,
            c.gate_channels,
            c.skip_channels,
            self.n_mels,
            c.kernel_size,
            c.dilations,
            causal=c.use_causal_conv,
            rho=math.sqrt(0.5),
            dropout=c.dropout,
        )
        self.last_conv_layers: Any = nn.ModuleList(
            [nn.ReLU(), nn.Conv1d(c.skip_channels, c.skip_channels, 1), nn.ReLU(), nn.Conv1d(c.skip_channels, c.out_channels, 1)]
        )
        # Upstream puts weight norm on Conv1d and Conv2d alone
        self.without_weight_norm = tuple(n for n, m in self.named_modules() if isinstance(m, nn.ConvTranspose1d))
        self.register_buffer("mean", torch.zeros(self.n_mels))
        self.register_buffer("scale", torch.ones(self.n_mels))
        self._initialise()

    @torch.no_grad()
    def _initialise(self):
        for conv in self.modules():
            if isinstance(conv, nn.Conv1d):
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)
        for layer in self.stack.layers:
            layer.out.weight[self.config.residual_channels :] *= math.sqrt(1 / self.config.layers)
            layer.conv.bias.requires_grad_(self.config.bias)
            layer.out.bias.requires_grad_(self.config.bias)

    @property
    def n_mels(self) -> int:
        return max(self.config.aux_channels, 0)

    @property
    def hop_length(self) -> int:
        return 1 if self.upsample_net is None else self.upsample_net.scale

    @property
    def context_frames(self) -> int:
        """Frames on each side that feed the edges and give no samples of their own."""
        return 0 if self.upsample_net is None else self.upsample_net.context

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """z (B, in_channels, T) noise, c (B, n_mels, n_frames + 2·context_frames) normalised mel -> (B, out_channels, T).

        T = n_frames · hop_length. A model without an upsampler takes c at sample rate, an unconditional one none.
        """
        x = self._first(z)
        cond: Any = None if c is None else stretched(self.upsample_net, c)
        if c is not None and cond is None:
            cond = self._at_sample_rate(c)
        if cond is not None and cond.shape[1] != z.shape[2]:
            raise ShapeError(
                f"the mel covers {cond.shape[1]} samples, z has {z.shape[2]}",
                hint=f"Pass {self.context_frames} context frames on each side, and {self.hop_length} samples for every "
                "other frame.",
            )
        return self._head(self.stack(x, cond))

    def _first(self, z: Tensor) -> Tensor:
        """(B, in_channels, T) -> (B, T, R)"""
        if z.dim() != 3 or z.shape[1] != self.config.in_channels:
            raise ShapeError(f"z is {tuple(z.shape)}, expected (B, {self.config.in_channels}, T)")
        return F.linear(z.transpose(1, 2), self.first_conv.weight[:, :, 0], self.first_conv.bias)

    def _at_sample_rate(self, c: Tensor) -> Tensor:
        """(B, n_mels, n_frames + 2·context_frames) -> (B, T, n_mels)"""
        return at_sample_rate(self.upsample_net, c)

    def _head(self, skips: Tensor) -> Tensor:
        """(B, T, S) -> (B, out_channels, T)"""
        for conv in self.last_conv_layers[1::2]:
            skips = exact_pointwise(F.relu(skips), conv)
        return skips.transpose(1, 2)

    @torch.inference_mode()
    @one_torch_thread()
    def infer(
        self,
        mel: Tensor | None = None,
        *,
        lengths: Lengths = None,
        seed: int | None = None,
        noise: Tensor | None = None,
        n_samples: int | None = None,
        normalised: bool = False,
        padded: bool = False,
        precision: str | None = None,
        threads: int | None = None,
        progress: Progress = None,
    ) -> Tensor:
        """mel (B, n_mels, n_frames) -> waves (B, n_samples), n_samples = n_frames · hop_length, not clipped.

        mel         as `mel_config` says, without the statistics; an unconditional model takes None and n_samples
        lengths     (B,) frames of each item; the rest of the mel is padding, the rest of the result zero
        seed        names the noise; item b's does not depend on the others or on the length
        noise       (B, n_samples) standard normal numbers instead; with in_channels > 1 (B, in_channels, n_samples)
        normalised  the statistics are applied to the mel already
        padded      context_frames frames on each side come with the mel; else its edge frames are repeated
        precision   "fp32" or "bf16"; default: the model's own
        progress    called with (samples done, samples in all)

        For out_channels > 1 the result is (B, out_channels, n_samples). Long utterances are made in pieces that overlap
        by what the network sees: memory is bounded, and the pieces' seams are rounding. Raises ShapeError, DTypeError,
        ConfigError and their kin.
        """
        c, batch, n_frames = self._conditioning(mel, noise, n_samples, normalised, padded)
        n_samples, channels = n_frames * self.hop_length, self.config.in_channels
        shape = (batch, n_samples) if channels == 1 else (batch, channels, n_samples)
        z = self.normal_noise(shape, seed) if noise is None else self.given_noise("noise", noise, shape)
        z = z.reshape(batch, channels, n_samples)
        waves = z.new_zeros(batch, self.config.out_channels, n_samples)
        frames = self.check_lengths(lengths, z[:, :, :n_frames])
        items = [(slice(None), n_frames)] if frames is None else [(slice(b, b + 1), n) for b, n in enumerate(frames)]
        how, done, total = {"precision": precision or self.precision, "threads": threads}, 0, sum(n for _, n in items)
        for item, n in items:  # the stack looks ahead: padding behind an item would be heard in it
            mine = None if c is None else self._edges(c[item], n, padded)
            length = max(PIECE_SAMPLES, 4 * self.stack.reach) // self.hop_length + 1
            for start in range(0, n, length):
                stop = min(start + length, n)
                piece = slice(start * self.hop_length, stop * self.hop_length)
                waves[item, :, piece] = self._piece(z[item], mine, start, stop, n, how)
                done += stop - start
                if progress is not None:
                    progress(done * self.hop_length, total * self.hop_length)
        return (waves[:, 0] if self.config.out_channels == 1 else waves).float()

    def _piece(self, z: Tensor, c: Tensor | None, start: int, stop: int, n_frames: int, how: dict) -> Tensor:
        """Frames start … stop - 1 of the result, computed from no more than these depend on."""
        hop, halo = self.hop_length, -(-self.stack.reach // self.hop_length)
        low, high = max(start - halo, 0), min(stop if self.config.use_causal_conv else stop + halo, n_frames)
        cond: Tensor | Interpolated | None = None if c is None else at_frame_rate(self.upsample_net, c, low, high)
        if c is not None and cond is None:
            margin = 0 if self.upsample_net is None else self.upsample_net.reach
            first, last = max(low - margin, 0), min(high + margin, n_frames)
            samples = self._at_sample_rate(c[:, :, first : last + 2 * self.context_frames])
            cond = samples[:, (low - first) * hop : (high - first) * hop]
        skips = self.stack.infer(self._first(z[:, :, low * hop : high * hop]), cond, **how)
        return self._head(skips[:, (start - low) * hop : (stop - low) * hop])

    def _conditioning(self, mel, noise, n_samples, normalised, padded) -> tuple[Tensor | None, int, int]:
        """The normalised mel, the batch size and the number of frames without context."""
        if not self.n_mels:
            if mel is not None or (n_samples is None) == (noise is None):
                raise ConfigError("this Parallel WaveGAN is unconditional: it takes n_samples or noise, and no mel")
            return (None, 1, n_samples) if noise is None else (None, len(noise), noise.shape[-1])
        if n_samples is not None:
            raise ConfigError(f"n_samples follows from the mel, {self.hop_length} for a frame: do not pass it")
        if mel is None:
            raise ConfigError(f"this Parallel WaveGAN is conditioned on {self.n_mels} mel bands: mel is missing")
        mel, context = self.check_mel(mel), 2 * self.context_frames
        n_frames = mel.shape[2] - (context if padded else 0)
        if n_frames < 1:
            raise ShapeError(f"mel has {mel.shape[2]} frames; with padded=True {context} of them are context")
        return mel if normalised else (mel - self.mean[:, None]) / self.scale[:, None], len(mel), n_frames

    def _edges(self, c: Tensor, n_frames: int, padded: bool) -> Tensor:
        """The first n_frames frames with their context: what came with them, or the edge frames repeated."""
        context = self.context_frames
        if padded or not context:
            return c[:, :, : n_frames + 2 * context]
        return F.pad(c[:, :, :n_frames], (context, context), mode="replicate")


def _upsample_net(c: ParallelWaveGANConfig) -> nn.Module:
    if c.upsample_net not in UPSAMPLE_NETS:
        raise ConfigError(f"upsample_net: got {c.upsample_net!r}, expected one of {sorted(UPSAMPLE_NETS)}")
    params = {**c.upsample_params, "use_causal_conv": c.use_causal_conv}
    if c.upsample_net == "ConvInUpsampleNetwork":
        params |= {"aux_channels": c.aux_channels, "aux_context_window": c.aux_context_window}
    if c.upsample_net == "MelGANGenerator":
        params["use_final_nonlinear_activation"] = False
        params.pop("use_weight_norm", None)
        if params.get("in_channels", 80) != c.aux_channels or params.get("out_channels", 1) != c.aux_channels:
            raise ConfigError(f"upsample_params: in_channels and out_channels must be aux_channels, {c.aux_channels}")
    try:
        return UPSAMPLE_NETS[c.upsample_net](**params)
    except TypeError as fault:
        raise ConfigError(f"upsample_params do not fit {c.upsample_net}: {fault}") from None
