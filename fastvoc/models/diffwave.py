"""DiffWave: a non-causal gated residual stack that predicts the noise in a waveform, run once per denoising step.

    x = relu(W·audio)      e_t = silu(W₂·silu(W₁·embedding(t)))      y = stack(x, mel at sample rate, W_l·e_t)
    ε = W_out·relu(W_skip·y)

Kong et al. 2021, "DiffWave: A Versatile Diffusion Model for Audio Synthesis", figure 2 and section 5.3.

`forward` predicts the noise, for training; `infer` (diffwave_infer.py) samples. What the public implementations do
differently is in DiffWaveConfig, so far as no rewriting of weights removes it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvoc.errors import ConfigError, DTypeError, ShapeError
from fastvoc.layers.gated_residual_stack import GatedResidualStack, exact_pointwise
from fastvoc.layers.upsample import ConvTranspose2dUpsampleNetwork, at_sample_rate
from fastvoc.models.diffwave_infer import Sampling
from fastvoc.models.diffwave_schedule import checked_betas, fast_schedule, linear_schedule, noise_levels

LIMIT = 65536  # of any number of channels, layers or steps


@dataclass
class DiffWaveConfig:
    """Defaults: lmnt's DiffWave. philsyn's: one upsampler per layer, step_in_residual, no clamp, "decreasing"."""

    n_mels: int = 80  # 0: not conditioned on a mel
    residual_channels: int = 64
    gate_channels: int | None = None  # both halves; None: 2·residual_channels
    skip_channels: int | None = None  # None: residual_channels
    layers: int = 30
    dilation_cycle: int = 10  # dilations 2^(i mod dilation_cycle)
    kernel_size: int = 3
    upsample_scales: list[int] = field(default_factory=lambda: [16, 16])  # their product is the hop
    upsample_freq_kernel: int = 3
    shared_upsampler: bool = True  # else one for each layer
    step_embedding: str = "increasing"  # frequencies 10^(4d/(D-1)) in a float32 table; "decreasing": 10^(-4d/(D-1))
    step_channels: int = 128  # of the embedding: D sines and D cosines
    step_hidden_channels: int = 512
    step_out_channels: int = 512
    step_in_residual: bool = False  # the residual path carries the step's bias too
    clamp: bool = True  # samples to [-1, 1] after every step
    noise_schedule: list[float] = field(default_factory=lambda: linear_schedule(1e-4, 0.05, 50))
    float32_schedule: bool = False  # ᾱ rounded to float32 after every step
    fast_schedule: list[float] | None = None  # None: the paper's six steps, where they fit
    n_labels: int = 0  # classes of a class-conditional model
    label_channels: int = 128
    audio_len: int | None = None  # samples that a model without mel generates, where the call does not tell

    def __post_init__(self):
        if self.gate_channels is None:
            self.gate_channels = 2 * self.residual_channels
        if self.skip_channels is None:
            self.skip_channels = self.residual_channels
        self.noise_schedule = checked_betas(self.noise_schedule, "noise_schedule")
        if self.fast_schedule is None:
            self.fast_schedule = fast_schedule(self.noise_schedule)
        else:
            self.fast_schedule = checked_betas(self.fast_schedule, "fast_schedule")
        for name in (
            "residual_channels", "gate_channels", "skip_channels", "layers", "dilation_cycle", "kernel_size", "step_channels",
            "step_hidden_channels", "step_out_channels", "label_channels", "upsample_freq_kernel",
        ):  # fmt: skip
            _check_whole(name, getattr(self, name), 1)
        for name in ("n_mels", "n_labels"):
            _check_whole(name, getattr(self, name), 0)
        if self.audio_len is not None:
            _check_whole("audio_len", self.audio_len, 1, 1 << 31)
        if not isinstance(self.upsample_scales, list | tuple) or not self.upsample_scales:
            raise ConfigError(f"upsample_scales: got {self.upsample_scales!r}, expected a list of integers")
        for scale in self.upsample_scales:
            _check_whole("upsample_scales", scale, 1)
        if self.dilation_cycle > 24:
            raise ConfigError(f"dilation_cycle must lie in 1…24, got {self.dilation_cycle}")
        if self.step_channels % 2 or self.step_channels < 4:
            raise ConfigError(f"step_channels must be even and at least 4 (sines and cosines), got {self.step_channels}")
        if self.step_embedding not in ("increasing", "decreasing"):
            raise ConfigError(f"step_embedding: got {self.step_embedding!r}, expected 'increasing' or 'decreasing'")

    @property
    def dilations(self) -> list[int]:
        return [2 ** (i % self.dilation_cycle) for i in range(self.layers)]

    @property
    def cond_channels(self) -> int:
        return self.n_mels + (self.label_channels if self.n_labels else 0)


def _check_whole(name: str, value, low: int, high: int = LIMIT) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name} must be an integer in {low}…{high}, got {value!r}")


class LayerConditioning(Sequence[Tensor]):
    """Layer l's (B, T, C) from its own upsampler, made when asked: only one exists at a time."""

    def __init__(self, model: "DiffWave", *how) -> None:
        self.model, self.how = model, how

    def __len__(self) -> int:
        return self.model.config.layers

    def __getitem__(self, layer: Any) -> Any:
        return self.model._upsampled(self.model.upsample[layer], *self.how)


class DiffWave(Sampling):
    """DiffWave(DiffWaveConfig(…)), or DiffWave(layers=…, …): every field of the config is a keyword."""

    Config = DiffWaveConfig
    family = "diffwave"
    without_weight_norm = ("output_projection",)

    def __init__(self, config: DiffWaveConfig | None = None, **kwargs: Any) -> None:
        super().__init__()
        self.config = config = config if config is not None else DiffWaveConfig(**kwargs)
        assert config.skip_channels is not None and config.gate_channels is not None  # the config filled them in
        R, S, L = config.residual_channels, config.skip_channels, config.layers
        self.input_projection = nn.Conv1d(1, R, 1)
        self.step_projection1 = nn.Linear(config.step_channels, config.step_hidden_channels)
        self.step_projection2 = nn.Linear(config.step_hidden_channels, config.step_out_channels)
        self.step_biases = nn.Linear(config.step_out_channels, L * R)
        n_upsamplers = 0 if not config.n_mels else 1 if config.shared_upsampler else L
        self.upsample = nn.ModuleList(
            ConvTranspose2dUpsampleNetwork(config.upsample_scales, freq_axis_kernel_size=config.upsample_freq_kernel)
            for _ in range(n_upsamplers)
        )
        self.label_embedding = nn.Embedding(config.n_labels, config.label_channels) if config.n_labels else None
        self.stack = GatedResidualStack(
            R,
            config.gate_channels,
            S,
            config.cond_channels,
            config.kernel_size,
            config.dilations,
            rho=math.sqrt(0.5),
            step_in_residual=config.step_in_residual,
            cond_per_layer=n_upsamplers > 1,
        )
        self.skip_projection = nn.Conv1d(S, S, 1)
        self.output_projection = nn.Conv1d(S, 1, 1)
        if config.step_embedding == "increasing":
            self.register_buffer("step_table", _increasing_table(len(config.noise_schedule), config.step_channels), False)
        self._initialise()

    def _initialise(self):
        for conv in (self.input_projection, self.skip_projection, *(layer.conv for layer in self.stack.layers)):
            nn.init.kaiming_normal_(conv.weight)
        with torch.no_grad():
            self.skip_projection.weight /= math.sqrt(self.config.layers)  # the skips are a sum over the layers
        nn.init.zeros_(self.output_projection.weight)

    @property
    def n_mels(self) -> int:
        return self.config.n_mels

    @property
    def hop_length(self) -> int:
        return math.prod(self.config.upsample_scales)

    def forward(self, audio: Tensor, step: Tensor, mel: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        """The noise that is in a noisy waveform.

        audio  (B, T) or (B, 1, T)
        step   (), (B,) or (B, 1) training steps from 0, integer or fractional
        mel    (B, n_mels, n_frames), covering T samples at least
        label  (B,) int64 classes, for a class-conditional model
        -> (B, 1, T)

        Raises ShapeError, DTypeError, ConfigError.
        """
        return self._predicted(audio, step, mel, label, self.stack)

    def _predicted(self, audio: Tensor, step: Tensor, mel: Tensor | None, label: Tensor | None, stack) -> Tensor:
        if audio.dim() == 3 and audio.shape[1] == 1:
            audio = audio[:, 0]
        if audio.dim() != 2:
            raise ShapeError(f"audio is {tuple(audio.shape)}, expected (B, T) or (B, 1, T)")
        B, T = audio.shape
        step = torch.as_tensor(step, device=audio.device)
        if step.numel() not in (1, B) or step.dim() > 2:
            raise ShapeError(f"step is {tuple(step.shape)}, expected one for each of {B} items")
        self._check_conditions(mel, label, B, T)
        cond = self.conditioning(mel, label, B, 0, T)
        return self._noise(audio, cond, self.layer_biases(step.reshape(-1)).expand(B, -1, -1), stack)[:, None]

    def _noise(self, audio: Tensor, cond, step: Tensor, stack) -> Tensor:
        """audio (B, T), step (B, L, R) -> ε (B, T). stack: the stack itself, or its `infer`."""
        first = self.input_projection
        x = F.relu(F.linear(audio[..., None], first.weight[:, :, 0], first.bias))
        y = F.relu(exact_pointwise(stack(x, cond, step), self.skip_projection))
        return exact_pointwise(y, self.output_projection)[..., 0]

    def noise_level(self, step: Tensor) -> Tensor:
        """(…) int64 training steps -> their ᾱ, what losses/diffwave.py's `diffused` takes."""
        levels = noise_levels(self.config.noise_schedule, self.config.float32_schedule)
        return torch.from_numpy(levels).to(self.step_biases.weight)[step]

    def layer_biases(self, step: Tensor) -> Tensor:
        """(N,) training steps -> what each layer adds to its input (N, layers, residual_channels)."""
        e = F.silu(self.step_projection2(F.silu(self.step_projection1(self.embed_step(step)))))
        return self.step_biases(e).unflatten(1, (self.config.layers, self.config.residual_channels))

    def embed_step(self, step: Tensor) -> Tensor:
        """(N,) training steps, integer or fractional -> (N, step_channels).

        The table of increasing frequencies is made in float32, and its angles reach 5e5: what it holds is partly rounding,
        but that is what the networks were trained with. Between two steps it is interpolated, as lmnt does.
        """
        top = len(self.config.noise_schedule) - 1
        if step.numel() and not (0 <= float(step.min()) and float(step.max()) <= top):
            raise ConfigError(f"step runs from {float(step.min()):g} to {float(step.max()):g}, the model has 0…{top}")
        dtype = self.step_projection1.weight.dtype
        if self.config.step_embedding == "increasing":
            if not step.is_floating_point():
                return self.step_table[step.long()]
            low, high = self.step_table[step.floor().long()], self.step_table[step.ceil().long()]
            return low + (high - low) * (step - step.floor()).to(dtype)[:, None]
        half = self.config.step_channels // 2
        frequencies = torch.exp(torch.arange(half, dtype=dtype, device=step.device) * -(math.log(10000) / (half - 1)))
        angles = step.to(dtype)[:, None] * frequencies
        return torch.cat([torch.sin(angles), torch.cos(angles)], 1)

    def conditioning(
        self, mel: Tensor | None, label: Tensor | None, B: int, first: int, last: int
    ) -> Tensor | LayerConditioning | None:
        """What the stack takes as cond at samples first … last - 1: (B, T, C), or a sequence with that for each layer; None
        where there is none.
        """
        features = None if label is None or self.label_embedding is None else self.label_embedding(label)
        if len(self.upsample) > 1:
            return LayerConditioning(self, mel, first, last, features)
        if mel is None:
            return None if features is None else features[:, None].expand(B, last - first, -1)
        return self._upsampled(self.upsample[0], mel, first, last, features)

    def _upsampled(self, network: nn.Module, mel: Tensor, first: int, last: int, label: Tensor | None) -> Tensor:
        hop = self.hop_length
        margin = len(self.config.upsample_scales) + 1  # frames: a stage looks one of its inputs to each side
        low, high = max(first // hop - margin, 0), min(-(-last // hop) + margin, mel.shape[2])
        c = at_sample_rate(network, mel[:, :, low:high])[:, first - low * hop : last - low * hop].contiguous()
        # The label's 1×1 and the mel's add up: one matrix with the two side by side
        return c if label is None else torch.cat([c, label[:, None].expand(-1, last - first, -1)], 2)

    def _check_conditions(self, mel: Tensor | None, label: Tensor | None, B: int, T: int) -> None:
        c = self.config
        for name, value, has in (("mel", mel, c.n_mels), ("label", label, c.n_labels)):
            if value is None and has:
                raise ConfigError(f"this DiffWave is conditioned on a {name}: pass {name}=…")
            if value is not None and not has:
                raise ConfigError(f"this DiffWave was trained without a {name}: {name} must be None")
        if mel is not None:
            if mel.dim() != 3 or mel.shape[:2] != (B, c.n_mels):
                raise ShapeError(f"mel is {tuple(mel.shape)}, expected ({B}, {c.n_mels}, n_frames)")
            if mel.shape[2] * self.hop_length < T:
                raise ShapeError(
                    f"{mel.shape[2]} mel frames cover {mel.shape[2] * self.hop_length} samples, but there are {T}"
                )
        if label is not None:
            if not isinstance(label, Tensor) or label.dtype not in (torch.int64, torch.int32):
                got = label.dtype if isinstance(label, Tensor) else type(label).__name__
                raise DTypeError(f"label must be an int64 tensor (B,), got {got}")
            if tuple(label.shape) != (B,):
                raise ShapeError(f"label is {tuple(label.shape)}, expected one class for each of {B} items")
            if B and not (0 <= int(label.min()) and int(label.max()) < c.n_labels):
                raise ConfigError(f"label holds {int(label.min())}…{int(label.max())}, the model has 0…{c.n_labels - 1}")


def _increasing_table(n_steps: int, channels: int) -> Tensor:
    """(n_steps, channels) float32 sines and cosines of t·10^(4d/(D-1)), rounded where lmnt's code rounds."""
    half = channels // 2
    dims = torch.arange(half, dtype=torch.float32)
    angles = torch.arange(n_steps, dtype=torch.float32)[:, None] * 10.0 ** (dims * 4.0 / (half - 1.0))
    return torch.cat([torch.sin(angles), torch.cos(angles)], 1)
