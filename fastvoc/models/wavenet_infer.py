"""infer and stream: a WaveNet's generation, its inputs checked at the border."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastvoc
from fastvoc._op import forced_backend
from fastvoc._torch_threads import one_torch_thread
from fastvoc.audio.mulaw import mulaw_encode
from fastvoc.errors import ConfigError, DeviceError, DTypeError, ShapeError
from fastvoc.models.vocoder import (
    Lengths,
    Progress,
    Vocoder,
    check_seed,
    fresh_seed,
    given_numbers,
    real_number,
    whole_numbers,
)
from fastvoc.models.wavenet_streams import WaveNetStream, as_wave, check_finite, generate, samples_at_once
from fastvoc.ops.philox import n_draws
from fastvoc.ops.upsample import StreamingUpsampler, WholeUpsampler
from fastvoc.ops.wavenet_generate import wavenet_generate

Speaker = int | Sequence[int] | Tensor | None  # numbers, or features


class Generation(Vocoder):
    """What WaveNet inherits: everything that generates, nothing that trains."""

    @property
    def samples_per_frame(self) -> int:
        return 1 if self.upsample_net is None else self.upsample_net.scale

    hop_length = samples_per_frame

    @property
    def n_mels(self) -> int:
        return max(self.config.cin_channels, 0)

    @property
    def context_frames(self) -> int:
        """Frames on each side that feed the upsampler's edges and give no samples of their own."""
        return 0 if self.upsample_net is None else self.upsample_net.context

    def upsampler(self) -> StreamingUpsampler | WholeUpsampler:
        """On the CPU, wherever the model is: the upsampler is a small part of the work, and its result moves in chunks."""
        network, n_mels = self.upsample_net, self.config.cin_channels
        if network is None:
            return StreamingUpsampler([], n_mels)
        if next(self.parameters()).device.type != "cpu":
            network = copy.deepcopy(network).cpu()
        stages = network.stages()
        if stages is None or next(network.parameters()).dtype == torch.float64:  # the compiled stages are float32
            return WholeUpsampler(network, n_mels)
        return StreamingUpsampler(stages, n_mels, getattr(network, "indent", 0))

    def plan(self, precision: str | None = None, threads: int | None = None) -> Any:
        """The packed engine for these weights; built on first use and kept until the weights change."""
        precision = self.precision if precision is None else precision
        threads = fastvoc.get_num_threads() if threads is None else threads
        # An inference tensor cannot change in place, and counts no versions
        version = tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in self.parameters())
        key = precision, threads, forced_backend()
        if key not in self._plans or self._plans[key][0] != version:
            device = next(self.parameters()).device
            if device.type not in ("cpu", "cuda"):
                raise DeviceError(f"the model is on {device}; generation runs on cpu and cuda.", hint="Use model.cpu().")
            self._plans[key] = version, wavenet_generate.plan(device, self.weights(), precision, threads)
        return self._plans[key][1]

    def __getstate__(self):
        return {**self.__dict__, "_plans": {}}  # packed weights are made anew where the copy is used

    def stream(
        self,
        *,
        speaker: Speaker = None,
        seed: int = 0,
        stream: int = 0,
        temperature: float | None = None,
        precision: str | None = None,
        threads: int | None = None,
        initial: float | None = None,
        padded: bool = False,
    ) -> WaveNetStream:
        """A new stream: push mel into it and call `generate([stream, …])` (fastvoc.models.wavenet_streams)."""
        return self._streams(
            1,
            None if speaker is None else given_numbers("speaker", speaker)[None],
            seed,
            [stream],
            temperature,
            precision,
            threads,
            initial,
            padded,
        )[0]

    def _streams(self, n, speaker, seed, numbers, temperature, precision, threads, initial, padded):
        if temperature is None:
            temperature = 1.0 if self.preprocessing is None else self.preprocessing.temperature
        temperature = real_number("temperature", temperature)
        if not (math.isfinite(temperature) and temperature >= 0):
            raise ConfigError(f"temperature must be finite and at least 0, got {temperature}")
        if initial is None:
            initial = self.config.start
        if initial is None:
            initial = (
                float(mulaw_encode(torch.zeros(1), self.config.mulaw_classes)) if not self.config.scalar_input else 0.0
            )
        initial = real_number("initial", initial)
        if self.config.scalar_input and not math.isfinite(initial):
            raise ConfigError(f"initial must be finite, got {initial}")
        if not self.config.scalar_input and not (0 <= initial < self.config.out_channels and initial.is_integer()):
            raise ConfigError(f"initial must be a class in 0…{self.config.out_channels - 1}, got {initial:g}")
        numbers = whole_numbers("streams", numbers)
        if len(numbers) != n or not all(0 <= i < 2**32 for i in numbers):
            raise ConfigError(f"streams are {numbers}, expected {n} numbers in 0…{2**32 - 1}")
        plan = self.plan(precision, threads)
        biases = self._speaker_biases(speaker, n)
        return [
            WaveNetStream(
                self,
                plan,
                seed=seed,
                stream=number,
                temperature=temperature,
                speaker=bias,
                initial=initial,
                padded=padded,
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
            raise ConfigError(
                "this WaveNet is conditioned on a speaker: pass speaker=…",
                hint=(
                    f"Speakers are numbered 0…{self.config.n_speakers - 1}."
                    if self.embed_speakers is not None
                    else None
                ),
            )
        g = given_numbers("speaker", speaker).to(next(self.parameters()).device)
        check_finite(g, "speaker")
        if self.embed_speakers is not None and not g.is_floating_point():
            g = g.reshape(-1).expand(n) if g.numel() == 1 else g.reshape(-1)
            if g.numel() != n:
                raise ShapeError(f"got {g.numel()} speakers for a batch of {n}")
            if not ((0 <= g) & (g < self.config.n_speakers)).all():
                raise ConfigError(
                    f"speaker {g.tolist()} is out of range: the model knows 0…{self.config.n_speakers - 1}"
                )
        elif g.numel() != n * self.config.gin_channels:
            raise ShapeError(f"speaker features are {tuple(g.shape)}, expected ({n}, {self.config.gin_channels})")
        features = self._speaker_features(g if not g.is_floating_point() else g.reshape(n, -1))[:, :, 0]
        # One by one: how torch rounds a matrix product depends on the batch, and a stream must not sound of its company
        weights = [layer.conv1x1g.weight[:, :, 0] for layer in self.conv_layers]
        dtype = torch.promote_types(weights[0].dtype, torch.float32)
        return [torch.stack([F.linear(f, w) for w in weights]).to(dtype) for f in features]

    @torch.inference_mode()
    @one_torch_thread()
    def infer(
        self,
        mel: Tensor | None = None,
        speaker: Speaker = None,
        *,
        seed: int | None = None,
        noise: Tensor | dict[str, Tensor] | None = None,
        temperature: float | None = None,
        forced: Tensor | None = None,
        lengths: Lengths = None,
        precision: str | None = None,
        threads: int | None = None,
        initial: float | None = None,
        streams: Sequence[int] | None = None,
        padded: bool = False,
        n_samples: int | None = None,
        layer_conditioning: Tensor | None = None,
        progress: Progress = None,
    ) -> Tensor:
        """Generate: mel (B, n_mels, n_frames) -> (B, n_frames · hop) samples in [-1, 1].

        speaker      (B,) speaker numbers or (B, gin_channels) features, for a model trained with speakers
        seed, streams  name the noise: item b draws from stream streams[b] (default b) of the seed; None takes a fresh seed
        noise        instead, the numbers themselves, by the model's output; uniform ones lie in (0, 1):
                       softmax                {"uniform": (B, n_samples)}, inverted through the cumulated probabilities
                       mixture of logistics   {"mixture": (B, n_samples, K) uniform, component argmax(logit - ln(-ln u));
                                              "logistic": (B, n_samples) uniform, mean + scale · (ln u - ln(1 - u))}
                       mixture of Gaussians   {"mixture": …, "normal": (B, n_samples)}
                       Gaussian               {"normal": (B, n_samples)}
                     or all of a sample side by side, in this order: (B, n_samples, draws)
        temperature  0 takes the most probable value; default: the model's own, else 1
        forced       (B, n_samples) samples (float, [-1, 1]) or classes (int) that are fed back instead of what was drawn;
                     the result is then the network's outputs (B, out_channels, n_samples)
        lengths      (B,) frames of each item; the rest of the mel is padding, the rest of the result zero
        precision    "fp32", "bf16" or "int8" weights and products; sums are float32, or exact. Default: the model's own
        initial      what stands before the first sample: a value, or a class (default: silence)
        padded  the mel already holds the model's context frames on each side; else the edge frames are repeated
        layer_conditioning  (B, layers, gate_channels, n_samples): ready-made conditioning instead of mel
        n_samples    for a model without mel: how many
        progress     called with (samples done, samples in all) now and then

        A model in float64 (on the CPU) takes float64 and generates in plain torch, sample by sample: to measure the others
        against. Its samples are float32 as everyone's, its outputs under `forced` float64.

        Raises ShapeError, DTypeError, DeviceError, FeatureError, ConfigError.
        """
        given = [
            name
            for name, x in (("mel", mel), ("layer_conditioning", layer_conditioning), ("n_samples", n_samples))
            if x is not None
        ]
        if len(given) != 1:
            raise ConfigError(f"pass one of mel, layer_conditioning and n_samples, got {given or 'none'}")
        if mel is not None:
            if self.config.cin_channels <= 0:
                raise ConfigError("this WaveNet was trained without a mel", hint="Pass n_samples=… instead.")
            mel = self.check_mel(mel)
        elif n_samples is not None and self.config.cin_channels > 0:
            raise ConfigError(f"this WaveNet is conditioned on {self.config.cin_channels} mel bands: pass mel")
        if layer_conditioning is not None:
            layer_conditioning = self._checked_layers(layer_conditioning)
        given_input: Any = mel if mel is not None else layer_conditioning
        B = 1 if n_samples is not None else len(given_input)
        margin = 2 * self.context_frames if padded else 0
        if mel is not None:
            frames = mel.shape[2] - margin
            if frames < 1:
                raise ShapeError(f"mel has {mel.shape[2]} frames, expected at least {1 + margin}")
            counts = [frames] * B if lengths is None else whole_numbers("lengths", lengths)
            if len(counts) != B or not all(1 <= n <= frames for n in counts):
                raise ShapeError(f"lengths are {counts}, expected {B} numbers in 1…{frames}")
            counts = [n * self.samples_per_frame for n in counts]
        else:
            if n_samples is not None and whole_numbers("n_samples", [n_samples])[0] < 1:
                raise ConfigError(f"n_samples must be at least 1, got {n_samples}")
            counts = [n_samples or layer_conditioning.shape[3]] * B
        total = max(counts, default=frames * self.samples_per_frame if mel is not None else 0)
        if noise is not None:
            noise = self._checked_noise(noise, B, total)
        if forced is not None:
            forced = self._checked_forced(forced, B, total)
        made = self._streams(
            B,
            speaker,
            fresh_seed() if seed is None else check_seed(seed),
            range(B) if streams is None else streams,
            temperature,
            precision,
            threads,
            initial,
            padded,
        )
        if not made:
            return torch.empty(0, self.config.out_channels, total) if forced is not None else torch.empty(0, total)
        if mel is None:
            waves, params = self._without_mel(made, layer_conditioning, total, noise, forced, progress)
        else:
            for s, m, n in zip(made, mel, counts):
                s.push(m[:, : n // self.samples_per_frame + margin], last=True)
            waves, params = generate(made, counts, noise, forced, forced is not None, progress)
        if forced is not None:
            return torch.stack([F.pad(p.t(), (0, total - len(p))) for p in params])
        waves = [as_wave(self.config, w).float() for w in waves]
        return torch.stack([F.pad(w, (0, total - len(w))) for w in waves])

    def _without_mel(self, streams, layer_conditioning, total, noise, forced, progress):
        """All streams through `total` samples, from conditioning that is there already, or from none."""
        waves, params = [[] for _ in streams], [[] for _ in streams]
        most = samples_at_once(streams[0].plan, len(streams))
        for start in range(0, total, most):
            piece = slice(start, min(start + most, total))
            cond = None if layer_conditioning is None else [x[:, :, piece].permute(2, 0, 1) for x in layer_conditioning]
            out, given = streams[0].plan.run(
                [s.state for s in streams],
                [piece.stop - start] * len(streams),
                cond,
                layer_cond=cond is not None,
                noise=None if noise is None else list(noise[:, piece]),
                forced=None if forced is None else list(forced[:, piece]),
                parameters=forced is not None,
            )
            for i in range(len(streams)):
                waves[i].append(out[i])
                if given:
                    params[i].append(given[i])
            if progress is not None:
                progress(piece.stop, total)
        return [torch.cat(w) for w in waves], [torch.cat(p) for p in params] if forced is not None else None

    @property
    def n_draws(self) -> int:
        """Random numbers that a sample takes."""
        return n_draws(self.config.head, max(self.config.out_channels // 3, 1))

    def _checked_noise(self, noise, B: int, n: int) -> Tensor:
        """(B, n, n_draws) from that or from named draws."""
        last = {"softmax": "uniform", "mol": "logistic"}.get(self.config.head, "normal")
        if isinstance(noise, dict):
            picks = {"mixture": (B, n, self.n_draws - 1)} if self.n_draws > 1 else {}
            shapes = {**picks, last: (B, n)}
            if set(noise) != set(shapes):
                raise ConfigError(f"noise names {sorted(noise)}, this model ({self.config.head}) draws {sorted(shapes)}")
            parts = [self.given_noise(f"noise[{name!r}]", noise[name], shape) for name, shape in shapes.items()]
            noise = torch.cat([part.reshape(B, n, -1) for part in parts], 2)
        else:
            noise = given_numbers("noise", noise)
            if tuple(noise.shape) != (B, n, self.n_draws):
                raise ShapeError(
                    f"noise is {tuple(noise.shape)}, expected (B, n_samples, draws) = ({B}, {n}, {self.n_draws})"
                )
            noise = self.given_noise("noise", noise, noise.shape)
        uniform = noise[..., :-1] if last == "normal" else noise
        if uniform.numel() and not (0 <= float(uniform.min()) and float(uniform.max()) <= 1):
            raise ConfigError(
                f"noise holds {float(uniform.min()):g}…{float(uniform.max()):g} where uniform numbers of 0…1 are drawn",
                hint=f"infer's documentation says what {self.config.head} draws.",
            )
        return noise

    def _checked_forced(self, forced: Tensor, B: int, n: int) -> Tensor:
        forced = given_numbers("forced", forced)
        if tuple(forced.shape) != (B, n):
            raise ShapeError(f"forced is {tuple(forced.shape)}, expected (B, n_samples) = ({B}, {n})")
        check_finite(forced, "forced")
        if self.config.scalar_input:
            return forced.to(torch.promote_types(forced.dtype, torch.float32))
        classes = mulaw_encode(forced, self.config.mulaw_classes) if forced.is_floating_point() else forced
        if classes.numel() and not (0 <= int(classes.min()) and int(classes.max()) < self.config.out_channels):
            raise IndexError(
                f"forced holds classes {int(classes.min())}…{int(classes.max())}, the model has 0…{self.config.out_channels - 1}"
            )
        return classes.float()

    def _checked_layers(self, cond: Any) -> Tensor:
        sizes = self.config.layers, self.config.gate_channels
        cond = given_numbers("layer_conditioning", cond)
        if cond.dim() != 4 or tuple(cond.shape[1:3]) != sizes:
            raise ShapeError(
                f"layer_conditioning is {tuple(cond.shape)}, expected (B, layers, gate_channels, n_samples) with {sizes}"
            )
        if cond.shape[3] < 1:
            raise ShapeError("layer_conditioning has 0 samples, expected at least 1")
        expected = torch.promote_types(self.first_conv.weight.dtype, torch.float32)
        if cond.dtype != expected:
            message = f"layer_conditioning is {cond.dtype}, expected {expected}."
            raise DTypeError(message, hint=f"Convert it with .to({expected}).")
        check_finite(cond, "layer_conditioning")
        return cond
