"""Parallel WaveNet: a chain of inverse autoregressive flows that turns noise into sound, all samples at once.

    z_0 = noise;   flow f:  (µ, s) = net_f(z < t, mel),   z ← z·s + µ;   x = z_0·s_tot + µ_tot
    µ_tot ← µ_tot·s + µ,   log s_tot ← log s_tot + log s

    van den Oord et al. 2018, "Parallel WaveNet: Fast High-Fidelity Speech Synthesis", section 4
    Ping et al. 2019, "ClariNet: Parallel Wave Generation in End-to-End Text-to-Speech", section 3.2

Each flow's network is a causal WaveNet on the canonical stack. Two ways of not seeing the present sample exist: the
original delays the input by one (delay_input); ClariNet shifts the output, loses the first sample to a zero, and so
conditions sample t on the mel of t - 1. The logistic student of the original and the Gaussian one of ClariNet differ in
the noise and in what stands for the scale. A student learns from a trained WaveNet: fastvoc/losses, fastvoc/training.
"""

import math
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastvoc
from fastvoc._torch_threads import one_torch_thread
from fastvoc.errors import ConfigError, ShapeError
from fastvoc.layers.gated_residual_stack import GatedResidualStack, exact_pointwise
from fastvoc.layers.upsample import (
    NETWORKS,
    DeconvUpsampleNetwork,
    Stretched,
    at_sample_rate,
    projected,
    stretched,
)
from fastvoc.models.vocoder import Lengths, Progress, Vocoder
from fastvoc.models.wavenet import FRONT_ACTIVATIONS
from fastvoc.ops.noise import logistic, normal

UPSAMPLERS = {**NETWORKS, DeconvUpsampleNetwork.__name__: DeconvUpsampleNetwork}
LOG_SCALES = (-9.0, 7.0)  # where the softplus scale of the original is cut off


def doubling(*layers: int, cycle: int = 10) -> list[list[int]]:
    """Dilations of flows with so many layers: 1, 2, 4 … 2^(cycle - 1), and again."""
    return [[2 ** (i % cycle) for i in range(n)] for n in layers]


@dataclass
class ParallelWaveNetConfig:
    """The defaults are ClariNet's student; `ParallelWaveNetConfig.original()` is the logistic one."""

    dilations: list[list[int]] = field(default_factory=lambda: doubling(*[10] * 6))  # of each flow
    residual_channels: int = 64
    gate_channels: int = 256  # tanh and sigmoid half together
    skip_channels: int = 64  # 0: no skips, the stack's last x goes on
    kernel_size: int = 3
    residual_scale: float = math.sqrt(0.5)
    front_kernel: int = 32
    front_activation: str = "relu"
    head_channels: int | None = None  # between the two last 1×1; None: as many as enter
    head_conditioning: bool = False  # the mel is added there too
    distribution: str = "gaussian"  # or "logistic": of the noise, hence of a sample
    scale: str = "exp"  # or "softplus": of what the network says about the scale
    delay_input: bool = False
    quantise: int | None = None  # levels that `infer` rounds its samples down to
    cin_channels: int = 80
    cond_channels: int | None = None  # bands behind the upsampler; None: cin_channels
    upsample_net: str = "ConvTranspose2dUpsampleNetwork"
    upsample_params: dict = field(default_factory=lambda: {"upsample_scales": [16, 16]})

    @classmethod
    def original(cls, **changes: Any) -> "ParallelWaveNetConfig":
        """Four logistic flows of 10, 10, 10 and 30 layers without skips, as in bfs18/nsynth_wavenet's configuration."""
        values = {
            "dilations": doubling(10, 10, 10, 30), "gate_channels": 64, "skip_channels": 0, "residual_scale": 1.0,
            "front_kernel": 3, "front_activation": "none", "head_conditioning": True, "distribution": "logistic",
            "scale": "softplus", "delay_input": True, "quantise": 65536, "cond_channels": 256,
            "upsample_net": "DeconvUpsampleNetwork",
            "upsample_params": {"kernels": [40, 80], "strides": [10, 20], "channels": 256},
        }  # fmt: skip
        return cls(**{**values, **changes})

    def __post_init__(self):
        if not self.dilations or not all(isinstance(flow, list) and flow for flow in self.dilations):
            raise ConfigError(f"dilations: got {self.dilations}, expected a list of dilations for each flow")
        choices = {
            "front_activation": FRONT_ACTIVATIONS, "distribution": ("gaussian", "logistic"), "scale": ("exp", "softplus"),
            "upsample_net": UPSAMPLERS,
        }  # fmt: skip
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"{name}: got {getattr(self, name)!r}, expected one of {sorted(known)}")
        for name in ("front_kernel", "cin_channels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.quantise is not None and self.quantise < 2:
            raise ConfigError(f"quantise must be at least 2 levels, or None, got {self.quantise}")
        if self.cond_channels is None:
            self.cond_channels = self.cin_channels
        if self.head_channels is None:
            self.head_channels = self.skip_channels or self.residual_channels

    @property
    def first_sample(self) -> int:
        """How many samples at the start have no distribution: ClariNet's first one is a zero."""
        return 0 if self.delay_input else 1

    @property
    def receptive_field(self) -> int:
        return sum((self.kernel_size - 1) * sum(flow) + self.front_kernel for flow in self.dilations) + 1


class Flow(nn.Module):
    """x (B, T), cond (B, T, C) -> mean (B, T), log_scale (B, T); each sees x up to and with its own position."""

    def __init__(self, config: ParallelWaveNetConfig, dilations: list[int]) -> None:
        super().__init__()
        assert config.head_channels is not None and config.cond_channels is not None  # the config filled them in
        self.config = config
        R, S, C = config.residual_channels, config.skip_channels, config.cond_channels
        self.front = nn.Conv1d(1, R, config.front_kernel)
        self.stack = GatedResidualStack(
            R, config.gate_channels, S, C, config.kernel_size, dilations, causal=True, rho=config.residual_scale
        )
        self.hidden = nn.Conv1d(S or R, config.head_channels, 1)
        self.hidden_cond = nn.Conv1d(C, config.head_channels, 1, bias=False) if config.head_conditioning else None
        self.last = nn.Conv1d(config.head_channels, 2, 1)

    def forward(self, x: Tensor, cond: Tensor | Stretched, run=None) -> tuple[Tensor, Tensor]:
        """run: what stands for the stack, (h, cond) -> (B, T, S)"""
        h = self.front(F.pad(x[:, None], (self.config.front_kernel - 1, 0))).transpose(1, 2)
        h = FRONT_ACTIVATIONS[self.config.front_activation](h).contiguous()
        h = F.relu((run or self.stack)(h, cond))
        h = F.linear(h, self.hidden.weight[:, :, 0], self.hidden.bias)
        if self.hidden_cond is not None:
            h = h + projected(cond, self.hidden_cond.weight[:, :, 0])
        mean, scale = exact_pointwise(F.relu(h), self.last).unbind(2)
        if self.config.scale == "exp":
            return mean, scale
        low, high = (math.exp(bound) for bound in LOG_SCALES)
        return mean, F.softplus(scale).clamp(low, high).log()


class ParallelWaveNet(Vocoder):
    """ParallelWaveNet(dilations=…, …): every field of ParallelWaveNetConfig is a keyword."""

    Config = ParallelWaveNetConfig
    family = "parallel_wavenet"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        given = args[0] if args and isinstance(args[0], ParallelWaveNetConfig) else None
        self.config = config = given or ParallelWaveNetConfig(*args, **kwargs)
        params = {"cin_channels": config.cin_channels, **config.upsample_params}
        try:
            self.upsample_net = UPSAMPLERS[config.upsample_net](**params)
        except TypeError as fault:
            raise ConfigError(f"upsample_params do not fit {config.upsample_net}: {fault}") from None
        self.flows = nn.ModuleList(Flow(config, dilations) for dilations in config.dilations)
        self._initialise()

    def _initialise(self):
        """Every flow near the identity with a scale below 1, so that a new student neither explodes nor is silent."""
        for flow in self.flows:
            for conv in flow.modules():
                if isinstance(conv, nn.Conv1d):
                    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
                    if conv.bias is not None:
                        nn.init.zeros_(conv.bias)
            nn.init.normal_(flow.last.weight, std=0.01)
            # softplus(-0.3) = 0.55, the start that bfs18's students were trained from
            nn.init.constant_(flow.last.bias[1:], -0.3)

    @property
    def hop_length(self) -> int:
        return self.upsample_net.scale

    @property
    def n_mels(self) -> int:
        return self.config.cin_channels

    @property
    def context_frames(self) -> int:
        """Frames on each side that feed the upsampler's edges and give no samples of their own."""
        return self.upsample_net.context

    @property
    def first_sample(self) -> int:
        return self.config.first_sample

    def forward(self, z: Tensor, mel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noise to sound, with gradients.

        z    (B, T) standard normal (or logistic) numbers
        mel  (B, n_mels, n_frames), context frames included
        -> x (B, T);  mean, log_scale (B, T - first_sample): of each sample but ClariNet's first, given the noise before it
        """
        cond = stretched(self.upsample_net, mel)
        return self._flow(z, self.conditioning(mel) if cond is None else cond)

    def conditioning(self, mel: Tensor) -> Tensor:
        """(B, n_mels, n_frames) -> (B, T, cond_channels)"""
        return at_sample_rate(self.upsample_net, mel)

    def _flow(self, z: Tensor, cond: Tensor | Stretched, progress=None, **options) -> tuple[Tensor, Tensor, Tensor]:
        """options: of the stacks' `infer`, where nothing is to be trained; progress: called after each flow"""
        if z.dim() != 2 or z.shape[1] != cond.shape[1]:
            raise ShapeError(f"z is {tuple(z.shape)}, the mel covers {cond.shape[1]} samples; expected (B, T) of them")
        x: Tensor = z
        mean_tot: Any = 0.0
        log_tot: Any = 0.0
        for flow in self.flows:
            run = (lambda h, c, stack=flow.stack: stack.infer(h, c, **options)) if options else None
            if self.config.delay_input:
                mean, log_scale = flow(F.pad(x[:, :-1], (1, 0)), cond, run)
                x = x * log_scale.exp() + mean
            else:
                mean, log_scale = (y[:, :-1] for y in flow(x, cond, run))
                x = F.pad(x[:, 1:] * log_scale.exp() + mean, (1, 0))
            mean_tot = mean_tot * log_scale.exp() + mean
            log_tot = log_tot + log_scale
            if progress is not None:
                progress()
        if self.config.scale == "softplus":
            log_tot = log_tot.clamp(max=LOG_SCALES[1])
            x = F.pad(z[:, self.first_sample :] * log_tot.exp() + mean_tot, (self.first_sample, 0))
        return x, mean_tot, log_tot

    @torch.inference_mode()
    @one_torch_thread()
    def infer(
        self,
        mel: Tensor,
        *,
        lengths: Lengths = None,
        seed: int | None = None,
        noise: Tensor | None = None,
        temperature: float | None = None,
        precision: str | None = None,
        threads: int | None = None,
        padded: bool = False,
        progress: Progress = None,
    ) -> Tensor:
        """Generate: mel (B, n_mels, n_frames) -> (B, n_frames · hop) float32.

        lengths      (B,) frames of each item; the rest of the mel is padding, the rest of the result zero
        seed         names the noise; item b's does not depend on the others or on the length. None takes a fresh one
        noise        (B, n_samples) instead: standard normal numbers, or logistic ones for a logistic student
        temperature  factor of the noise; default: the model's own, else 1
        precision    "fp32" or "bf16" of the stacks. Default: the model's own
        padded       the mel already holds the model's context frames on each side; else the edge frames are repeated
        progress     called with (flows done, flows in all)

        Raises ShapeError, DTypeError, DeviceError, FeatureError, ConfigError.
        """
        mel, context = self.check_mel(mel), self.context_frames
        if temperature is None:
            temperature = 1.0 if self.preprocessing is None else self.preprocessing.temperature
        if not (math.isfinite(temperature) and temperature >= 0):
            raise ConfigError(f"temperature must be finite and at least 0, got {temperature}")
        margin = 2 * context if padded else 0
        if mel.shape[2] <= margin:
            raise ShapeError(f"mel has {mel.shape[2]} frames, expected at least {1 + margin}")
        frames = self.check_lengths(lengths, mel[:, :, margin:])
        shape = len(mel), (mel.shape[2] - margin) * self.hop_length
        if noise is None:
            z = self.normal_noise(shape, seed, transform=logistic if self.config.distribution == "logistic" else normal)
        else:
            z = self.given_noise("noise", noise, shape)
        if not shape[0]:
            return torch.empty(shape)
        precision = self.precision if precision is None else precision
        threads = fastvoc.get_num_threads() if threads is None else threads
        x, done = torch.zeros_like(z), count(1)
        whole = [(slice(None), shape[1] // self.hop_length)]
        items = whole if frames is None else [(slice(b, b + 1), n) for b, n in enumerate(frames)]
        step = None if progress is None else lambda: progress(next(done), len(items) * len(self.flows))
        for item, n in items:  # the upsampler looks ahead: padding behind an item would be heard in it
            mine, own = mel[item, :, : n + margin], z[item, : n * self.hop_length] * temperature
            if context and not padded:
                mine = F.pad(mine, (context, context), mode="replicate")
            how = {"precision": precision, "threads": threads, "progress": step}
            x[item, : n * self.hop_length] = self._flow(own, self.conditioning(mine), **how)[0]
        if self.config.quantise:
            half = self.config.quantise / 2
            x = (x.clamp(-1, 1 - 1 / half) * half).floor() / half
        return x.float()
