"""WaveNet: a causal gated residual stack that generates one sample at a time.

    van den Oord et al. 2016, "WaveNet: A Generative Model for Raw Audio", section 2
    Shen et al. 2018, "Natural TTS Synthesis by Conditioning WaveNet on Mel Spectrogram Predictions", section 2.3

The module has the constructor and the parameter names of r9y9/wavenet_vocoder, so that its state_dict loads as it is.
`forward` is the teacher-forced, parallel form for training; `infer` generates on the engine (fastvoc/ops/wavenet_generate.py).
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastvoc
from fastvoc._op import forced_backend
from fastvoc.audio.mulaw import mulaw_encode
from fastvoc.errors import ConfigError, DeviceError, DTypeError, ShapeError
from fastvoc.layers.upsample import NETWORKS
from fastvoc.models import pretrained
from fastvoc.models.wavenet_streams import WaveNetStream, as_wave, check_finite, generate
from fastvoc.ops.wavenet_generate import WaveNetWeights, wavenet_generate


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

    def __post_init__(self):
        if self.dilations is None:
            if self.stacks < 1 or self.layers % self.stacks:
                raise ConfigError(f"layers must be a multiple of stacks, got layers={self.layers}, stacks={self.stacks}")
            self.dilations = [2 ** (i % (self.layers // self.stacks)) for i in range(self.layers)]
        if len(self.dilations) != self.layers or not self.layers or min(self.dilations) < 1:
            raise ConfigError(f"dilations: got {self.dilations}, expected {self.layers} integers of at least 1")
        if self.gate_channels < 2 or self.gate_channels % 2:
            raise ConfigError(f"gate_channels must be even (tanh half, sigmoid half), got {self.gate_channels}")
        if self.kernel_size < 2:
            raise ConfigError(f"kernel_size must be at least 2, got {self.kernel_size}")
        for name in ("out_channels", "residual_channels", "skip_out_channels"):
            if not 1 <= getattr(self, name) <= 65536:
                raise ConfigError(f"{name} must lie in 1…65536, got {getattr(self, name)}")
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
        return (self.kernel_size - 1) * sum(self.dilations) + 1


class ResidualConv1dGLU(nn.Module):
    """One gated residual layer. Parameter names as r9y9's layer of the same name; time-major inside.

    x (B, T, R), cond (B, T, G) -> x (B, T, R), skip (B, T, S)
    """

    def __init__(self, config: WaveNetConfig, dilation: int):
        super().__init__()
        R, G, S, k = config.residual_channels, config.gate_channels, config.skip_out_channels, config.kernel_size
        self.dilation, self.dropout, self.residual_scale = dilation, config.dropout, config.residual_scale
        self.conv = nn.Conv1d(R, G, k, dilation=dilation)
        self.conv1x1c = nn.Conv1d(config.cin_channels, G, 1, bias=config.conditioning_bias) if config.cin_channels > 0 else None
        self.conv1x1g = nn.Conv1d(config.gin_channels, G, 1, bias=config.conditioning_bias) if config.gin_channels > 0 else None
        self.conv1x1_out = nn.Conv1d(G // 2, R, 1)
        self.conv1x1_skip = nn.Conv1d(G // 2, S, 1)

    def forward(self, x: Tensor, cond: Tensor | None) -> tuple[Tensor, Tensor]:
        T, k, d = x.shape[1], self.conv.kernel_size[0], self.dilation
        dropped = F.dropout(x, self.dropout, self.training)
        past = F.pad(dropped, (0, 0, (k - 1) * d, 0))
        # Time-major, the taps are k views of one array side by side: one matrix product, twice as fast as conv1d here
        taps = torch.cat([past[:, i * d : i * d + T] for i in range(k)], dim=2)
        a = F.linear(taps, self.conv.weight.transpose(1, 2).flatten(1), self.conv.bias)
        if cond is not None:
            a = a + cond
        tanh, sigmoid = a.chunk(2, dim=2)
        z = torch.tanh(tanh) * torch.sigmoid(sigmoid)
        out = F.linear(
            z, torch.cat([self.conv1x1_out.weight[:, :, 0], self.conv1x1_skip.weight[:, :, 0]]),
            torch.cat([self.conv1x1_out.bias, self.conv1x1_skip.bias]),
        )
        r, s = out.split([x.shape[2], out.shape[2] - x.shape[2]], dim=2)
        return (x + r) * self.residual_scale, s


class WaveNet(nn.Module):
    """WaveNet(out_channels=…, layers=…, …): every field of WaveNetConfig is a keyword."""

    Config = WaveNetConfig
    family = "wavenet"

    def __init__(self, *args, **kwargs):
        super().__init__()
        self.preprocessing = None  # set by whoever knows the recording convention: training, loading
        self._plans = {}
        self.config = config = args[0] if args and isinstance(args[0], WaveNetConfig) else WaveNetConfig(*args, **kwargs)
        R, S, A = config.residual_channels, config.skip_out_channels, config.out_channels
        self.first_conv = nn.Conv1d(1 if config.scalar_input else A, R, 1)
        self.conv_layers = nn.ModuleList(ResidualConv1dGLU(config, d) for d in config.dilations)
        self.last_conv_layers = nn.ModuleList([
            nn.ReLU(), nn.Conv1d(S, config.head_channels, 1), nn.ReLU(), nn.Conv1d(config.head_channels, A, 1)
        ])
        self.embed_speakers = nn.Embedding(config.n_speakers, config.gin_channels) if config.use_speaker_embedding else None
        self.upsample_net = None
        if config.upsample_conditional_features:
            params = {"cin_channels": config.cin_channels, **config.upsample_params}
            if config.upsample_net in ("UpsampleNetwork", "ConvInUpsampleNetwork"):
                params.setdefault("cin_pad", config.cin_pad)
            self.upsample_net = NETWORKS[config.upsample_net](**params)
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
        if x.dim() == 2:
            h = F.embedding(x, self.first_conv.weight[:, :, 0].t()) + self.first_conv.bias
        else:
            h = self.first_conv(x).transpose(1, 2)
        T = h.shape[1]
        speaker = self._speaker_features(g)
        skips = 0.0
        for layer, cond in zip(self.conv_layers, self._conditioning(c, T)):
            if speaker is not None:
                global_cond = layer.conv1x1g(speaker).transpose(1, 2)
                cond = global_cond if cond is None else cond + global_cond
            h, s = layer(h, cond)
            skips = skips + s
        h = F.relu(skips * self.config.skip_scale)
        _, first, _, last = self.last_conv_layers
        h = F.linear(F.relu(F.linear(h, first.weight[:, :, 0], first.bias)), last.weight[:, :, 0], last.bias)
        h = h.transpose(1, 2)
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
        if network is not None and getattr(network, "is_linear_in_time", False):
            # W·up(c) = up(W·c): project at frame rate, then stretch; at 200 samples a frame the projection costs nothing
            frames = network.conv_in(c) if hasattr(network, "conv_in") else c
            stretch = getattr(network, "upsample", network).time_matrix(frames.shape[2]).t()  # (T, n_frames)
            self._check_length(stretch.shape[0], T)
            frames = frames.transpose(1, 2)
            return [stretch @ F.linear(frames, w) + (0 if b is None else b) for w, b in zip(weights, biases)]
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

    # ---- generation ------------------------------------------------------------------------------------------------

    @property
    def samples_per_frame(self) -> int:
        return 1 if self.upsample_net is None else self.upsample_net.scale

    @property
    def context_frames(self) -> int:
        """Frames on each side that feed the upsampler's edges and give no samples of their own."""
        return 0 if self.upsample_net is None else self.upsample_net.context

    def upsample_stages(self) -> list:
        return [] if self.upsample_net is None else self.upsample_net.stages()

    @torch.no_grad()
    def weights(self) -> WaveNetWeights:
        """The canonical form that the engine packs: scales folded, biases that meet added up."""
        c, layers = self.config, self.conv_layers
        stack = lambda get: torch.stack([get(layer).float() for layer in layers])
        bias = stack(lambda layer: layer.conv.bias)
        for name in ("conv1x1c", "conv1x1g"):
            if getattr(layers[0], name) is not None and getattr(layers[0], name).bias is not None:
                bias = bias + stack(lambda layer: getattr(layer, name).bias)
        has_mel = c.cin_channels > 0
        first = self.first_conv
        _, hidden, _, logits = self.last_conv_layers
        return WaveNetWeights(
            front=first.weight[:, :, 0].t().float()[None].contiguous(), b_front=first.bias.float(),
            w_in=stack(lambda layer: layer.conv.weight), b_in=bias,
            w_cond=stack(lambda layer: layer.conv1x1c.weight[:, :, 0]) if has_mel else torch.zeros(c.layers, c.gate_channels, 0),
            w_res=stack(lambda layer: layer.conv1x1_out.weight[:, :, 0]), b_res=stack(lambda layer: layer.conv1x1_out.bias),
            w_skip=stack(lambda layer: layer.conv1x1_skip.weight[:, :, 0]) * c.skip_scale,
            b_skip=stack(lambda layer: layer.conv1x1_skip.bias).sum(0) * c.skip_scale,
            w_hidden=hidden.weight[:, :, 0].float(), b_hidden=hidden.bias.float(),
            w_logits=logits.weight[:, :, 0].float(), b_logits=logits.bias.float(),
            dilations=tuple(c.dilations), head=c.head, n_classes=0 if c.scalar_input else c.out_channels,
            n_mix=max(c.out_channels // 3, 1) if c.scalar_input else 1, rho=c.residual_scale,
        )

    def plan(self, precision: str = "fp32", threads: int | None = None):
        """The packed engine for these weights; built on first use and kept until the weights change."""
        threads = fastvoc.get_num_threads() if threads is None else threads
        version = tuple(p._version for p in self.parameters()), tuple(p.data_ptr() for p in self.parameters())
        key = precision, threads, forced_backend()
        if key not in self._plans or self._plans[key][0] != version:
            device = next(self.parameters()).device
            self._plans[key] = version, wavenet_generate.plan(device, self.weights(), precision, threads)
        return self._plans[key][1]

    def __getstate__(self):
        return {**super().__getstate__(), "_plans": {}}  # packed weights are made anew where the copy is used

    def check_mel(self, mel: Tensor, dims: int = 3) -> Tensor:
        """Raise unless mel is a finite float32 (B, n_mels, n_frames) (dims=3) or (n_mels, n_frames) (dims=2) here."""
        bands = self.config.cin_channels
        shape = f"(B, {bands}, n_frames)" if dims == 3 else f"({bands}, n_frames)"
        if not isinstance(mel, Tensor):
            raise DTypeError(f"mel is a {type(mel).__name__}, expected a torch.Tensor {shape}.", hint="Use torch.from_numpy(mel).")
        if mel.dtype != torch.float32:
            raise DTypeError(f"mel is {mel.dtype}, expected torch.float32.", hint="Convert it with .float().")
        device = next(self.parameters()).device
        if mel.device != device:
            raise DeviceError(f"mel is on {mel.device}, the model on {device}.", hint="Move one with .to(device).")
        if mel.dim() != dims:
            hint = "Add a batch axis with mel[None]." if mel.dim() == dims - 1 else None
            raise ShapeError(f"mel is {tuple(mel.shape)}, expected {shape}.", hint=hint)
        if mel.shape[-2] != bands:
            hint = f"{bands} bands were found on the last axis: transpose it." if mel.shape[-1] == bands else (
                "The mel was made for another model.")
            raise ShapeError(f"mel is {tuple(mel.shape)}, expected {shape}: axis {dims - 2} must hold {bands} mel bands.", hint=hint)
        check_finite(mel)
        return mel.detach()

    def stream(
        self, *, speaker=None, seed: int = 0, stream: int = 0, temperature: float | None = None, precision: str = "fp32",
        threads: int | None = None, initial=None, context_given: bool = False,
    ) -> WaveNetStream:
        """A new stream: push mel into it and call `generate([stream, …])` (fastvoc.models.wavenet_streams)."""
        return self._streams(
            1, None if speaker is None else [speaker], seed, [stream], temperature, precision, threads, initial, context_given
        )[0]

    def _streams(self, n, speaker, seed, numbers, temperature, precision, threads, initial, context_given):
        if temperature is None:
            temperature = 1.0 if self.preprocessing is None else self.preprocessing.temperature
        if not (math.isfinite(temperature) and temperature >= 0):
            raise ConfigError(f"temperature must be finite and at least 0, got {temperature}")
        if initial is None:
            initial = float(mulaw_encode(torch.zeros(1), self.config.out_channels)) if not self.config.scalar_input else 0.0
        if not self.config.scalar_input and not 0 <= initial < self.config.out_channels:
            raise ConfigError(f"initial must be a class in 0…{self.config.out_channels - 1}, got {initial}")
        plan = self.plan(precision, threads)
        biases = self._speaker_biases(speaker, n)
        return [
            WaveNetStream(
                self, plan, seed=seed, stream=number, temperature=temperature, speaker=bias, initial=initial,
                context_given=context_given,
            )
            for number, bias in zip(numbers, biases)
        ]

    @torch.no_grad()
    def _speaker_biases(self, speaker, n: int) -> list:
        """Per item the (L, G) that its speaker adds to every layer's gate input."""
        if self.config.gin_channels <= 0:
            if speaker is not None:
                raise ConfigError("this WaveNet was trained without speakers, but a speaker was given")
            return [None] * n
        if speaker is None:
            raise ConfigError("this WaveNet is conditioned on a speaker: pass speaker=…", hint=(
                f"Speakers are numbered 0…{self.config.n_speakers - 1}." if self.embed_speakers is not None else None))
        g = torch.as_tensor(speaker)
        if self.embed_speakers is not None and not g.is_floating_point():
            g = g.reshape(-1).expand(n) if g.numel() == 1 else g.reshape(-1)
            if g.numel() != n:
                raise ShapeError(f"got {g.numel()} speakers for a batch of {n}")
            if not ((0 <= g) & (g < self.config.n_speakers)).all():
                raise ConfigError(f"speaker {g.tolist()} is out of range: the model knows 0…{self.config.n_speakers - 1}")
        elif g.numel() != n * self.config.gin_channels:
            raise ShapeError(f"speaker features are {tuple(g.shape)}, expected ({n}, {self.config.gin_channels})")
        features = self._speaker_features(g if not g.is_floating_point() else g.reshape(n, -1))[:, :, 0]
        biases = torch.stack([F.linear(features, layer.conv1x1g.weight[:, :, 0]) for layer in self.conv_layers], 1)
        return list(biases.float())

    @torch.inference_mode()
    def infer(
        self, mel: Tensor | None = None, speaker=None, *, seed: int = 0, noise: Tensor | None = None,
        temperature: float | None = None, forced: Tensor | None = None, lengths=None, precision: str = "fp32",
        threads: int | None = None, initial=None, streams=None, context_given: bool = False, n_samples: int | None = None,
        layer_conditioning: Tensor | None = None, progress=None,
    ) -> Tensor:
        """Generate: mel (B, n_mels, n_frames) -> (B, n_frames · hop) samples in [-1, 1].

        speaker      (B,) speaker numbers or (B, gin_channels) features, for a model trained with speakers
        seed, streams  name the noise: item b draws from stream streams[b] (default b) of the seed
        noise        (B, n_samples, draws) instead: a uniform number for softmax; for a mixture of K a uniform one each and
                     then one for the sample, uniform (logistics) or normal (Gaussians); a normal one for a Gaussian
        temperature  0 takes the most probable value; default: the model's own, else 1
        forced       (B, n_samples) samples (float, [-1, 1]) or classes (int) that are fed back instead of what was drawn;
                     the result is then the network's outputs (B, out_channels, n_samples)
        lengths      (B,) frames of each item; the rest of the mel is padding, the rest of the result zero
        precision    "fp32" or "bf16" weights and products; sums are float32
        initial      what stands before the first sample: a value, or a class (default: silence)
        context_given  the mel already holds the model's context frames on each side; else the edge frames are repeated
        layer_conditioning  (B, layers, gate_channels, n_samples): ready-made conditioning instead of mel
        n_samples    for a model without mel: how many
        progress     called with (samples done, samples in all) now and then

        Raises ShapeError, DTypeError, DeviceError, FeatureError, ConfigError.
        """
        given = [name for name, x in (("mel", mel), ("layer_conditioning", layer_conditioning), ("n_samples", n_samples)) if x is not None]
        if len(given) != 1:
            raise ConfigError(f"pass one of mel, layer_conditioning and n_samples, got {given or 'none'}")
        if mel is not None:
            if self.config.cin_channels <= 0:
                raise ConfigError("this WaveNet was trained without a mel", hint="Pass n_samples=… instead.")
            mel = self.check_mel(mel)
        elif n_samples is not None and self.config.cin_channels > 0:
            raise ConfigError(f"this WaveNet is conditioned on {self.config.cin_channels} mel bands: pass mel")
        B = 1 if n_samples is not None else len(mel if mel is not None else layer_conditioning)
        margin = 2 * self.context_frames if context_given else 0
        if mel is not None:
            frames = mel.shape[2] - margin
            if frames < 1:
                raise ShapeError(f"mel has {mel.shape[2]} frames, expected at least {1 + margin}")
            counts = [frames] * B if lengths is None else [int(n) for n in lengths]
            if len(counts) != B or min(counts) < 1 or max(counts) > frames:
                raise ShapeError(f"lengths are {counts}, expected {B} numbers in 1…{frames}")
            counts = [n * self.samples_per_frame for n in counts]
        else:
            counts = [n_samples or layer_conditioning.shape[3]] * B
        total = max(counts, default=0)
        if noise is not None and tuple(noise.shape) != (B, total, self.n_draws):
            raise ShapeError(f"noise is {tuple(noise.shape)}, expected (B, n_samples, draws) = ({B}, {total}, {self.n_draws})")
        if forced is not None:
            forced = self._checked_forced(forced, B, total)
        made = self._streams(
            B, speaker, seed, range(B) if streams is None else streams, temperature, precision, threads, initial, context_given
        )
        collect = forced is not None
        if mel is None:
            cond = None if layer_conditioning is None else [x.permute(2, 0, 1) for x in self._checked_layers(layer_conditioning)]
            rows = None if noise is None else list(noise)
            waves, params = made[0].plan.run(
                [s.state for s in made], counts, cond, layer_cond=cond is not None, noise=rows,
                forced=None if forced is None else list(forced), parameters=collect,
            ) if made else ([], [])
        else:
            for s, m, n in zip(made, mel, counts):
                s.push(m[:, : n // self.samples_per_frame + margin], last=True)
            waves, params = self._generate_all(made, counts, noise, forced, collect, progress)
        if collect:
            return torch.stack([F.pad(p.t(), (0, total - len(p))) for p in params])
        waves = [as_wave(self.config, w) for w in waves]
        return torch.stack([F.pad(w, (0, total - len(w))) for w in waves]) if waves else torch.empty(0, total)

    def _generate_all(self, streams, counts, noise, forced, collect, progress):
        """In pieces of some tenths of a second, so that Ctrl-C is heard and progress is shown."""
        piece = max(1, 8192 // len(streams)) if progress is not None else max(counts, default=0)
        waves, params, done = [[] for _ in streams], [[] for _ in streams], 0
        while done < max(counts, default=0):
            n = [min(piece, max(c - done, 0)) for c in counts]
            part = lambda x: None if x is None else [row[done : done + k] for row, k in zip(x, n)]
            out, given = generate(streams, n, part(noise), part(forced), collect)
            for i in range(len(streams)):
                waves[i].append(out[i])
                if collect:
                    params[i].append(given[i])
            done += piece
            if progress is not None:
                progress(min(done, max(counts)), max(counts))
        return [torch.cat(w) for w in waves], [torch.cat(p) for p in params] if collect else None

    @property
    def n_draws(self) -> int:
        """Random numbers that a sample takes."""
        from fastvoc.ops.philox import n_draws

        return n_draws(self.config.head, max(self.config.out_channels // 3, 1))

    def _checked_forced(self, forced: Tensor, B: int, n: int) -> Tensor:
        if tuple(forced.shape) != (B, n):
            raise ShapeError(f"forced is {tuple(forced.shape)}, expected (B, n_samples) = ({B}, {n})")
        if self.config.scalar_input:
            return forced.float()
        classes = mulaw_encode(forced, self.config.out_channels) if forced.is_floating_point() else forced
        if classes.numel() and not (0 <= int(classes.min()) and int(classes.max()) < self.config.out_channels):
            raise IndexError(f"forced holds classes {int(classes.min())}…{int(classes.max())}, the model has 0…{self.config.out_channels - 1}")
        return classes.float()

    def _checked_layers(self, cond: Tensor) -> Tensor:
        expected = self.config.layers, self.config.gate_channels
        if cond.dim() != 4 or tuple(cond.shape[1:3]) != expected:
            raise ShapeError(f"layer_conditioning is {tuple(cond.shape)}, expected (B, layers, gate_channels, n_samples) with {expected}")
        check_finite(cond)
        return cond.permute(0, 1, 2, 3)

    def vocode(self, mel: Tensor, **options) -> list:
        """infer, then undo what stood before the model: mel (B, n_mels, n_frames) -> per item a float32 array."""
        waves = [w.numpy() for w in self.infer(mel, **options)]
        return [self.preprocessing.from_model(w) for w in waves] if self.preprocessing is not None else waves

    # ---- files -----------------------------------------------------------------------------------------------------

    save_pretrained = pretrained.save_pretrained
    from_pretrained = classmethod(pretrained.from_pretrained)
