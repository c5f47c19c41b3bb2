"""WaveNet: a causal gated residual stack that generates one sample at a time.

    van den Oord et al. 2016, "WaveNet: A Generative Model for Raw Audio", section 2
    Shen et al. 2018, "Natural TTS Synthesis by Conditioning WaveNet on Mel Spectrogram Predictions", section 2.3

The module has the constructor and the parameter names of r9y9/wavenet_vocoder, so that its state_dict loads as it is.
`forward` is the teacher-forced, parallel form for training; `infer` (wavenet_infer.py) generates on the engine.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvoc.errors import ConfigError, ShapeError
from fastvoc.layers.gated_residual_stack import exact_pointwise
from fastvoc.layers.residual_conv1d_glu import ResidualConv1dGLU
from fastvoc.layers.upsample import NETWORKS, stretched
from fastvoc.models.wavenet_infer import Generation
from fastvoc.ops.wavenet_generate import WaveNetWeights

FRONT_ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "tanh": torch.tanh}


@dataclass
class WaveNetConfig:
    """Names and defaults of r9y9's constructor; the last block is ours and describes the other public layouts."""

    out_channels: int = 256
    layers: int = 20
    stacks: int = 2
    residual_channels: int = 512
    gate_channels: int = 512
    skip_out_channels: int = 512
    kernel_size: int = 3
    dropout: float = 0.0
    cin_channels: int = -1
    gin_channels: int = -1
    n_speakers: int | None = None
    upsample_conditional_features: bool = False
    upsample_net: str = "ConvInUpsampleNetwork"
    upsample_params: dict = field(default_factory=lambda: {"upsample_scales": [4, 4, 4, 4]})
    scalar_input: bool = False
    use_speaker_embedding: bool = False
    output_distribution: str = "Logistic"
    cin_pad: int = 0

    dilations: list[int] | None = None  # None: 2^(i mod layers/stacks)
    residual_scale: float = math.sqrt(0.5)  # ρ in x ← (x + r)·ρ; nv-wavenet: 1
    skip_scale: float | None = None  # of the summed skips; None: √(1/layers); nv-wavenet: 1
    conditioning_bias: bool = False  # nv-wavenet and r9y9 2018: the conditioning 1×1 has a bias
    head_channels: int | None = None  # between the two last 1×1; None: skip_out_channels; nv-wavenet: out_channels
    start: float | None = None  # what stands before the first sample: a value, or a class; None: silence
    mulaw_classes: int | None = None  # µ + 1 of a softmax model's µ-law; None: out_channels; r9y9 2018: one more
    front_kernel: int = 1  # samples that the first convolution sees; nv-wavenet: up to 2, ClariNet: 32
    front_activation: str = "none"  # "none", "relu" (ClariNet) or "tanh" (nv-wavenet) behind it

    def __post_init__(self):
        for name in ("layers", "stacks", "kernel_size", "residual_channels", "gate_channels", "skip_out_channels"):
            if not isinstance(getattr(self, name), int):
                raise ConfigError(f"{name} must be an integer, got {getattr(self, name)!r}")
        if self.dilations is None:
            if self.stacks < 1 or self.layers % self.stacks:
                raise ConfigError(
                    f"layers must be a multiple of stacks, got layers={self.layers}, stacks={self.stacks}"
                )
            self.dilations = [2 ** (i % (self.layers // self.stacks)) for i in range(self.layers)]
        whole = all(isinstance(d, int) and 1 <= d <= 1 << 20 for d in self.dilations)
        if len(self.dilations) != self.layers or not self.layers or not whole:
            raise ConfigError(f"dilations: got {self.dilations}, expected {self.layers} integers in 1…{1 << 20}")
        if self.gate_channels < 2 or self.gate_channels % 2:
            raise ConfigError(f"gate_channels must be even (tanh half, sigmoid half), got {self.gate_channels}")
        if self.kernel_size < 1:
            raise ConfigError(f"kernel_size must be at least 1, got {self.kernel_size}")
        for name in ("out_channels", "residual_channels", "skip_out_channels"):
            if not 1 <= getattr(self, name) <= 65536:
                raise ConfigError(f"{name} must lie in 1…65536, got {getattr(self, name)}")
        if not 1 <= self.front_kernel <= 64:
            raise ConfigError(f"front_kernel must lie in 1…64, got {self.front_kernel}")
        if self.front_activation not in FRONT_ACTIVATIONS:
            raise ConfigError(
                f"front_activation: got {self.front_activation!r}, expected one of {list(FRONT_ACTIVATIONS)}"
            )
        if self.output_distribution not in ("Logistic", "Normal"):
            raise ConfigError(f"output_distribution: got {self.output_distribution!r}, expected 'Logistic' or 'Normal'")
        if self.scalar_input and self.out_channels % 3 and not (self.out_channels == 2 and self.head == "gaussian"):
            raise ConfigError(
                f"out_channels={self.out_channels} fits no scalar output: 3 per mixture component, or 2 for one Gaussian"
            )
        if self.upsample_conditional_features and self.upsample_net not in NETWORKS:
            raise ConfigError(f"upsample_net: got {self.upsample_net!r}, expected one of {sorted(NETWORKS)}")
        if self.use_speaker_embedding and (self.gin_channels < 1 or not self.n_speakers):
            raise ConfigError("use_speaker_embedding needs gin_channels and n_speakers")
        if self.skip_scale is None:
            self.skip_scale = math.sqrt(1.0 / self.layers)
        if self.head_channels is None:
            self.head_channels = self.skip_out_channels
        if self.mulaw_classes is None:
            self.mulaw_classes = self.out_channels

    @property
    def head(self) -> str:
        """How a sample is drawn: "softmax", "mol" (mixture of logistics), "gaussian" or "mog" (mixture of Gaussians)."""
        if not self.scalar_input:
            return "softmax"
        if self.output_distribution == "Logistic":
            return "mol"
        return "gaussian" if self.out_channels in (2, 3) else "mog"

    @property
    def receptive_field(self) -> int:
        return (self.kernel_size - 1) * sum(self.dilations or ()) + self.front_kernel


class WaveNet(Generation):
    """WaveNet(out_channels=…, layers=…, …): every field of WaveNetConfig is a keyword."""

    Config = WaveNetConfig
    family = "wavenet"
    without_weight_norm = ("upsample_net.conv_in",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self._plans: dict = {}
        self.config = config = (
            args[0] if args and isinstance(args[0], WaveNetConfig) else WaveNetConfig(*args, **kwargs)
        )
        R, S, A = config.residual_channels, config.skip_out_channels, config.out_channels
        D: Any = config.head_channels  # a number: the config filled it in
        n_speakers: Any = config.n_speakers
        self.first_conv = nn.Conv1d(1 if config.scalar_input else A, R, config.front_kernel)
        self.conv_layers: Any = nn.ModuleList(
            ResidualConv1dGLU(
                R, config.gate_channels, config.kernel_size, S, config.cin_channels, config.gin_channels, config.dropout,
                dilation=d, conditioning_bias=config.conditioning_bias, residual_scale=config.residual_scale,
            )  # fmt: skip
            for d in config.dilations
        )
        self.last_conv_layers: Any = nn.ModuleList(
            [nn.ReLU(), nn.Conv1d(S, D, 1), nn.ReLU(), nn.Conv1d(D, A, 1)]
        )
        self.embed_speakers = (
            nn.Embedding(n_speakers, config.gin_channels) if config.use_speaker_embedding else None
        )
        self.upsample_net: Any = None
        if config.upsample_conditional_features:
            params = {"cin_channels": config.cin_channels, **config.upsample_params}
            if config.upsample_net in ("UpsampleNetwork", "ConvInUpsampleNetwork"):
                params.setdefault("cin_pad", config.cin_pad)
            try:
                self.upsample_net = NETWORKS[config.upsample_net](**params)
            except TypeError as fault:
                raise ConfigError(f"upsample_params do not fit {config.upsample_net}: {fault}") from None
        self._initialise()

    def _initialise(self):
        for module in (self.first_conv, *self.conv_layers, *self.last_conv_layers):
            for conv in module.modules():
                if isinstance(conv, nn.Conv1d):
                    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
                    if conv.bias is not None:
                        nn.init.zeros_(conv.bias)
        if not self.config.scalar_input:  # one of the columns is picked, none are summed: the fan-in is 1
            nn.init.normal_(self.first_conv.weight, std=0.5)
        if self.embed_speakers is not None:
            nn.init.normal_(self.embed_speakers.weight, std=0.1)

    def forward(self, x: Tensor, c: Tensor | None = None, g: Tensor | None = None, softmax: bool = False) -> Tensor:
        """Teacher-forced: the distribution of sample t + 1 from samples 0 … t, for all t at once.

        x  (B, 1, T) samples, or for a softmax model (B, T) int64 classes or (B, out_channels, T) one-hot
        c  (B, cin_channels, n_frames) mel, cin_pad context frames on each side included; at sample rate where the
           model has no upsampler
        g  (B,) or (B, 1) speaker numbers, or (B, gin_channels) or (B, gin_channels, 1) features
        -> (B, out_channels, T) logits or distribution parameters; probabilities with softmax=True
        """
        T, K = x.shape[-1], self.config.front_kernel
        if K > 1:  # what generation starts from: silence, or one and the same class in all places of the past
            before = x.new_full((1,), self.config.start or 0.0) if self.config.scalar_input else x[..., :1]
            x = torch.cat([before.expand(*x.shape[:-1], K - 1), x], -1)
        if x.dim() == 2:
            tables = self.first_conv.weight.permute(2, 1, 0)
            h = sum(F.embedding(x[:, j : j + T], table) for j, table in enumerate(tables)) + self.first_conv.bias
        else:
            h = self.first_conv(x).transpose(1, 2)
        h = FRONT_ACTIVATIONS[self.config.front_activation](h)
        speaker = self._speaker_features(g)
        skips, wide = 0.0, torch.is_autocast_enabled(h.device.type)  # a sum of dozens of terms
        for layer, cond in zip(self.conv_layers, self._conditioning(c, T)):
            if speaker is not None:
                global_cond = layer.conv1x1g(speaker).transpose(1, 2)
                cond = global_cond.expand(-1, T, -1) if cond is None else cond + global_cond
            h, s = layer.time_major(h, cond)
            skips = skips + (s.float() if wide else s)
        _, first, _, last = self.last_conv_layers
        h = exact_pointwise(F.relu(skips * self.config.skip_scale), first)
        h = exact_pointwise(F.relu(h), last).transpose(1, 2)
        return h.softmax(1) if softmax else h

    def _conditioning(self, c: Tensor | None, T: int):
        """Per layer its (B, T, G) share of the mel, or None."""
        config = self.config
        if config.cin_channels <= 0:
            return [None] * config.layers
        if c is None:
            raise ShapeError(f"this WaveNet is conditioned on {config.cin_channels} mel bands: c is missing")
        weights = [layer.conv1x1c.weight[:, :, 0] for layer in self.conv_layers]
        biases = [layer.conv1x1c.bias for layer in self.conv_layers]
        network = self.upsample_net
        at_frame_rate = stretched(network, c)
        if at_frame_rate is not None:
            self._check_length(at_frame_rate.shape[1], T)
            return [at_frame_rate.linear(w) + (0 if b is None else b) for w, b in zip(weights, biases)]
        samples = c if network is None else network(c)
        self._check_length(samples.shape[2], T)
        return [F.linear(samples.transpose(1, 2), w, b) for w, b in zip(weights, biases)]

    def _check_length(self, got: int, T: int):
        if got != T:
            raise ShapeError(
                f"the mel covers {got} samples, x has {T}",
                hint=f"pass {self.config.cin_pad} context frames on each side and hop_length samples for every other frame",
            )

    def _speaker_features(self, g: Tensor | None) -> Tensor | None:
        """(B, gin_channels, 1), or None for a model without speakers."""
        if self.config.gin_channels <= 0:
            return None
        if g is None:
            raise ShapeError("this WaveNet is conditioned on a speaker: g is missing")
        if self.embed_speakers is not None and not g.is_floating_point():
            return self.embed_speakers(g.reshape(-1, 1)).transpose(1, 2)
        return g.reshape(g.shape[0], self.config.gin_channels, 1)

    @torch.no_grad()
    def weights(self) -> WaveNetWeights:
        """The canonical form that the engine packs: scales folded, biases that meet added up. float64 stays, else float32."""
        c, layers = self.config, self.conv_layers
        dtype = torch.promote_types(self.first_conv.weight.dtype, torch.float32)
        stack = lambda get: torch.stack([get(layer).to(dtype) for layer in layers])
        bias = stack(lambda layer: layer.conv.bias)
        for name in ("conv1x1c", "conv1x1g"):
            if getattr(layers[0], name) is not None and getattr(layers[0], name).bias is not None:
                bias = bias + stack(lambda layer: getattr(layer, name).bias)
        # The engine's layers look back: of one tap it makes two, the past one of zeros, which adds nothing
        w_in = F.pad(stack(lambda layer: layer.conv.weight), (max(2 - c.kernel_size, 0), 0))
        has_mel = c.cin_channels > 0
        first = self.first_conv
        _, hidden, _, logits = self.last_conv_layers
        return WaveNetWeights(
            front=first.weight.permute(2, 1, 0).flip(0).to(dtype).contiguous(),
            b_front=first.bias.to(dtype),
            w_in=w_in,
            b_in=bias,
            w_cond=stack(lambda layer: layer.conv1x1c.weight[:, :, 0])
            if has_mel
            else torch.zeros(c.layers, c.gate_channels, 0, dtype=dtype),
            w_res=stack(lambda layer: layer.conv1x1_out.weight[:, :, 0]),
            b_res=stack(lambda layer: layer.conv1x1_out.bias),
            w_skip=stack(lambda layer: layer.conv1x1_skip.weight[:, :, 0]) * c.skip_scale,
            b_skip=stack(lambda layer: layer.conv1x1_skip.bias).sum(0) * c.skip_scale,
            w_hidden=hidden.weight[:, :, 0].to(dtype),
            b_hidden=hidden.bias.to(dtype),
            w_logits=logits.weight[:, :, 0].to(dtype),
            b_logits=logits.bias.to(dtype),
            dilations=tuple(c.dilations) if c.kernel_size > 1 else (1,) * c.layers,
            head=c.head,
            n_classes=0 if c.scalar_input else c.out_channels,
            n_mix=max(c.out_channels // 3, 1) if c.scalar_input else 1,
            rho=c.residual_scale,
            front_activation=c.front_activation,
        )
