"""WaveGlow: a normalising flow between groups of samples and noise, conditioned on a mel.

    x_0 = the waveform as (n_group, n_samples / n_group)
    x   ← W_k·x;   a, b = halves of x;   t, log_s = network_k(a, mel);   b ← b·exp(log_s) + t          for each flow k
    before every n_early_every-th flow the first n_early_size channels leave as a part of z

Prenger et al. 2019, "WaveGlow: A Flow-based Generative Network for Speech Synthesis".

`forward` is the training direction, `infer` (waveglow_infer.py) the other; waveglow_denoiser.py takes the hum away.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastvoc.errors import ConfigError, DTypeError, ShapeError
from fastvoc.layers.affine_coupling import AffineCoupling
from fastvoc.layers.gated_residual_stack import GatedResidualStack, exact_pointwise
from fastvoc.layers.invertible_conv1x1 import Invertible1x1Conv
from fastvoc.models.waveglow_infer import Generation
from fastvoc.models.waveglow_reversible import reversible_flows

LIMIT = 65536  # of any number of channels, taps or layers

PRESETS = {
    "256": {},  # NVIDIA/waveglow's config.json and its published 256-channel models
    "512": {"n_channels": 512},  # DeepLearningExamples, and the model of the paper
}


@dataclass
class WaveGlowConfig:
    """Names and defaults of NVIDIA's constructor, with its WN_config laid flat; the last block is ours."""

    n_mel_channels: int = 80
    n_flows: int = 12
    n_group: int = 8  # samples that are one step of the flow
    n_early_every: int = 4
    n_early_size: int = 2
    n_layers: int = 8  # of each flow's network; dilations 1, 2, 4 …
    n_channels: int = 256
    kernel_size: int = 3

    upsample_kernel: int = 1024
    upsample_stride: int = 256  # the hop
    alternating: bool = False  # glow_old: in flows 1, 3, 5 … the second half of the channels moves the first

    def __post_init__(self):
        for name, value in asdict(self).items():
            kind = bool if name == "alternating" else int
            if type(value) is not kind:
                raise ConfigError(f"{name} must be {'true or false' if kind is bool else 'an integer'}, got {value!r}")
            least = 0 if name == "n_early_size" else 1  # 0: nothing leaves early
            if kind is int and not least <= value <= LIMIT:
                raise ConfigError(f"{name} must lie in {least}…{LIMIT}, got {value}")
        for name in ("n_group", "n_early_size", "n_channels"):
            if getattr(self, name) % 2:
                raise ConfigError(f"{name} must be even, got {getattr(self, name)}")
        if self.kernel_size % 2 == 0:
            raise ConfigError(f"kernel_size must be odd, got {self.kernel_size}")
        if self.n_layers > 20:
            raise ConfigError(f"n_layers must lie in 1…20, got {self.n_layers}: the last dilation is 2^(n_layers - 1)")
        if self.upsample_kernel < self.upsample_stride:
            raise ConfigError(
                f"upsample_kernel must be at least upsample_stride, got {self.upsample_kernel} and {self.upsample_stride}"
            )
        if self.channels[-1] < 2:
            raise ConfigError(
                f"n_group={self.n_group} leaves {self.channels[-1]} channels for the last flow: {self.n_early_size} go "
                f"before every {self.n_early_every} of {self.n_flows} flows"
            )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "WaveGlowConfig":
        """ "256" or "512", the channels of the published models, with fields changed."""
        if name not in PRESETS:
            raise ConfigError(f"there is no WaveGlow preset {name!r}; there are {list(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})

    @property
    def channels(self) -> list[int]:
        """Channels that each flow works on."""
        return [self.n_group - self.n_early_size * (k // self.n_early_every) for k in range(self.n_flows)]

    def is_early(self, k: int) -> bool:
        """Whether channels leave before flow k."""
        return k > 0 and k % self.n_early_every == 0


class FlowNetwork(nn.Module):
    """What t and log_s of one coupling come from: forward((audio (B, h, T), cond (B, T, C))) -> (B, 2h, T).

    The canonical form of layers/wn.py's WN.
    """

    def __init__(self, config: WaveGlowConfig, half: int) -> None:
        super().__init__()
        C, cond = config.n_channels, config.n_mel_channels * config.n_group
        self.start = nn.Conv1d(half, C, 1)
        self.stack = GatedResidualStack(C, 2 * C, C, cond, config.kernel_size, [2**i for i in range(config.n_layers)])
        self.end = nn.Conv1d(C, 2 * half, 1)
        # As if every coupling did nothing, from where the training goes well
        nn.init.zeros_(self.end.weight)
        nn.init.zeros_(self.end.bias)  # type: ignore[arg-type]  # torch: it may be None

    def forward(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        audio, cond = inputs
        y = self.stack(self._first(audio), cond)
        return exact_pointwise(y, self.end).transpose(1, 2)

    def infer(self, audio: Tensor, cond: Tensor, **how) -> Tensor:
        """The same without gradients. `end` is part of the plan: the stack's skips have 2h channels, not n_channels."""
        return self.stack.infer(self._first(audio), cond, head=self.end, **how).transpose(1, 2)

    def _first(self, audio: Tensor) -> Tensor:
        return F.linear(audio.transpose(1, 2), self.start.weight[:, :, 0], self.start.bias)


class Flow(nn.Module):
    """One step of the flow: 1×1 convolution, then coupling.  x (B, C, T), cond (B, T, …) -> y, log_s (B, C/2, T), log_det"""

    def __init__(self, config: WaveGlowConfig, k: int) -> None:
        super().__init__()
        self.convinv = Invertible1x1Conv(config.channels[k])
        self.coupling = AffineCoupling(FlowNetwork(config, config.channels[k] // 2), config.alternating and k % 2 == 1)

    def forward(self, x: Tensor, cond: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, log_det = self.convinv(x)
        y, log_s = self.coupling(x, cond)
        return y, log_s, log_det


class WaveGlow(Generation):
    """WaveGlow(n_flows=…, n_channels=…, …): every field of WaveGlowConfig is a keyword."""

    Config = WaveGlowConfig
    family = "waveglow"
    without_weight_norm = "upsample", ".end", ".convinv.conv"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        given = args[0] if args and isinstance(args[0], WaveGlowConfig) else None
        self.config = config = given or WaveGlowConfig(*args, **kwargs)
        M = config.n_mel_channels
        self.upsample = nn.ConvTranspose1d(M, M, config.upsample_kernel, config.upsample_stride)
        self.flows = nn.ModuleList(Flow(config, k) for k in range(config.n_flows))
        self._upsampler = None

    @property
    def n_mels(self) -> int:
        return self.config.n_mel_channels

    @property
    def hop_length(self) -> int:
        return self.config.upsample_stride

    def forward(
        self, wave: Tensor, mel: Tensor, memory_efficient: bool = False
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The latent of a waveform, and what its likelihood needs (losses/waveglow.py).

        wave  (B, n_samples) in [-1, 1]; samples beyond the last whole group are left out
        mel   (B, n_mels, n_frames), covering the samples: n_frames · hop + kernel - hop of them are made
        memory_efficient  the backward pass computes the flows' inputs back from their outputs (waveglow_reversible.py):
                          a training step has the memory of one flow, and one more run of each network
        -> z (B, n_group, n_samples / n_group), early outputs first;
           log_s of each flow (B, channels / 2, n_samples / n_group);
           log_det of each flow's convolution, B · n_samples / n_group · log|det W|

        Raises ShapeError, DTypeError, DeviceError.
        """
        x = self.groups(wave)
        cond = self.conditioning(mel, x.shape[0], x.shape[2])
        if memory_efficient:
            log_det = [flow.convinv.log_det(x) for flow in self.flows]
            return *reversible_flows(self, x, cond), log_det
        z, log_s, log_det = [], [], []
        for k, flow in enumerate(self.flows):
            if self.config.is_early(k):
                early, x = x.tensor_split([self.config.n_early_size], 1)
                z.append(early)
            x, s, d = flow(x, cond)
            log_s.append(s)
            log_det.append(d)
        return torch.cat([*z, x], 1), log_s, log_det

    def groups(self, wave: Tensor) -> Tensor:
        """(B, n_samples) -> (B, n_group, n_samples / n_group)"""
        if wave.dim() != 2 or wave.shape[1] < self.config.n_group:
            raise ShapeError(f"wave is {tuple(wave.shape)}, expected (B, n_samples) of at least {self.config.n_group} samples")
        if wave.dtype != self.upsample.weight.dtype:
            dtype = self.upsample.weight.dtype
            raise DTypeError(f"wave is {wave.dtype}, expected {dtype}.", hint=f"Convert it with .to({dtype}).")
        n = wave.shape[1] // self.config.n_group
        return wave[:, : n * self.config.n_group].unflatten(1, (n, self.config.n_group)).transpose(1, 2)

    def conditioning(self, mel: Tensor, batch: int, n_groups: int) -> Tensor:
        """(B, n_mels, n_frames) -> (B, n_groups, n_mels · n_group): the mel at the sample rate, a group's samples side by
        side in each band.
        """
        n = n_groups * self.config.n_group
        if mel.dim() != 3 or mel.shape[:2] != (batch, self.n_mels):
            raise ShapeError(f"mel is {tuple(mel.shape)}, expected ({batch}, {self.n_mels}, n_frames)")
        covered = (mel.shape[2] - 1) * self.hop_length + self.config.upsample_kernel
        if covered < n:
            raise ShapeError(f"{mel.shape[2]} mel frames cover {covered} samples, but there are {n}")
        c = self._upsampled(mel)[:, :, :n].unflatten(2, (n_groups, self.config.n_group))
        return c.transpose(1, 2).flatten(2)

    def _upsampled(self, mel: Tensor) -> Tensor:
        """`upsample` by one product of each frame and those before it, (B, n_mels, (n_frames + n_taps - 1) · hop): beside
        torch's own transposed convolution it takes half of the time or less.
        """
        hop, M = self.hop_length, self.n_mels
        taps = self._taps(self.upsample.weight)
        seen = self._seen(mel, 0, mel.shape[2] + len(taps) - 1)
        c = (seen @ taps.reshape(-1, M * hop)).unflatten(2, (M, hop)).transpose(1, 2)
        return (c + self.upsample.bias[:, None, None]).flatten(2)
