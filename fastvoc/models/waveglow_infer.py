"""WaveGlow from noise to a waveform: the flows backwards, a stretch of time after the other."""

import math
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvoc._torch_threads import one_torch_thread
from fastvoc.errors import ConfigError, ShapeError
from fastvoc.models.vocoder import Lengths, Progress, Vocoder

STRETCH = 16384  # groups of all items together that a network sees at once: bounds the memory, whatever the length
SHORTEST = 4096  # of one item; each stretch is computed with the network's reach on both sides, which comes on top


class Generation(Vocoder):
    """`infer` of WaveGlow."""

    _upsampler: tuple | None  # the stamp of the weights, and what `_phases` made of them

    @torch.no_grad()
    @one_torch_thread()
    def infer(
        self,
        mel: Tensor,
        *,
        sigma: float = 0.6,
        lengths: Lengths = None,
        seed: int | None = None,
        noise: list[Tensor] | None = None,
        precision: str | None = None,
        threads: int | None = None,
        progress: Progress = None,
    ) -> Tensor:
        """mel (B, n_mels, n_frames) -> (B, n_frames · hop_length) float32, cut to whole groups.

        sigma      of the noise. Models are trained with 1, and sound best below: 0.6 is what NVIDIA's README uses (its
                   script says 1.0, DeepLearningExamples 0.9 in scripts and 0.6 in exports, Tacotron 2's notebooks 0.666)
        lengths    (B,) frames of each item; the rest of the mel is padding, the rest of the result zero
        seed       names the noise; item b's does not depend on the others or on the length
        noise      instead, the normal draws in NVIDIA's order, before sigma: (B, channels of the last flow, n_groups),
                   then (B, n_early_size, n_groups) for each early output, the last one first
        precision  "fp32" or "bf16"; default: the model's own
        progress   called with (flows done, flows in all)

        Raises ShapeError, DTypeError, DeviceError, FeatureError, ConfigError.
        """
        mel, sigma = self.check_mel(mel), _checked_sigma(sigma)
        n_groups = mel.shape[2] * self.hop_length // self.config.n_group
        if not n_groups:
            raise ShapeError(f"{mel.shape[2]} mel frames make less than one group of {self.config.n_group} samples")
        draws = self._draws(noise, seed, mel.shape[0], n_groups)
        how = {"precision": precision or self.precision, "threads": threads}
        frames = self.check_lengths(lengths, mel)
        total, done = self.config.n_flows * (1 if frames is None else len(frames)), count(1)
        step = (lambda: progress(next(done), total)) if progress is not None else (lambda: None)
        if frames is None:
            return self._generate(mel, [draw * sigma for draw in draws], how, step).float()
        wave = mel.new_zeros(mel.shape[0], n_groups * self.config.n_group, dtype=torch.float32)
        for b, n_frames in enumerate(frames):  # the networks look ahead: padding behind an item would be heard in it
            item, n = slice(b, b + 1), n_frames * self.hop_length // self.config.n_group
            own = [draw[item, :, :n] * sigma for draw in draws]
            wave[item, : n * self.config.n_group] = self._generate(mel[item, :, :n_frames], own, how, step)
        return wave

    def noise_shapes(self, batch: int, n_groups: int) -> list[tuple[int, int, int]]:
        """Of the draws of one call, in order."""
        n_early = sum(self.config.is_early(k) for k in range(self.config.n_flows))
        return [(batch, c, n_groups) for c in [self.config.channels[-1]] + [self.config.n_early_size] * n_early]

    def _draws(self, noise, seed: int | None, batch: int, n_groups: int) -> list[Tensor]:
        shapes = self.noise_shapes(batch, n_groups)
        if noise is None:
            every = self.normal_noise((batch, self.config.n_group, n_groups), seed)
            return list(every.split([c for _, c, _ in shapes], 1))
        if seed is not None:
            raise ConfigError("pass seed or noise, not both")
        if not isinstance(noise, list | tuple) or len(noise) != len(shapes):
            got = f"{len(noise)} of them" if isinstance(noise, list | tuple) else f"a {type(noise).__name__}"
            raise ShapeError(f"noise is {got}, expected a list of {len(shapes)} tensors {shapes}")
        return [self.given_noise(f"noise[{i}]", draw, shape) for i, (draw, shape) in enumerate(zip(noise, shapes))]

    def _generate(self, mel: Tensor, draws: list[Tensor], how: dict, step) -> Tensor:
        """(B, n_groups · n_group). step is called after each flow."""
        x, *early = draws
        stretches = self._stretches(mel, x.shape[2])
        for k, flow in reversed([*enumerate(self.flows)]):
            a, b = flow.coupling.halves(x)
            params = x.new_empty(x.shape)
            for first, last, low, high, cond in stretches:
                out = flow.coupling.net.infer(a[:, :, low:high], cond(), **how)
                params[:, :, first:last] = out[:, :, first - low : last - low]
            x = flow.convinv.inverse(flow.coupling.undone(a, b, params))
            if self.config.is_early(k):
                x = torch.cat([early.pop(0), x], 1)
            step()
        return x.transpose(1, 2).flatten(1)

    def _stretches(self, mel: Tensor, n_groups: int) -> list[tuple]:
        """(first, last, low, high, cond): groups first … last - 1 depend on low … high - 1, conditioned on cond().

        A conditioning that is needed once a flow is kept where it is the only one, and else made anew.
        """
        reach = self.flows[0].coupling.net.stack.reach
        size = max(SHORTEST, STRETCH // mel.shape[0])
        if n_groups <= size + 2 * reach:
            whole = self._conditioning(mel, 0, n_groups)
            return [(0, n_groups, 0, n_groups, lambda: whole)]
        stretches = []
        for first in range(0, n_groups, size):
            last = min(first + size, n_groups)
            low, high = max(first - reach, 0), min(last + reach, n_groups)
            stretches.append((first, last, low, high, lambda low=low, high=high: self._conditioning(mel, low, high)))
        return stretches

    def _conditioning(self, mel: Tensor, low: int, high: int) -> Tensor:
        """Groups low … high - 1 of `conditioning`, from the frames that they depend on."""
        hop, group = self.hop_length, self.config.n_group
        weight, bias = self._phases()
        first, last = low * group // hop, -(-high * group // hop)
        c = F.linear(self._seen(mel, first, last), weight.t(), bias).reshape(mel.shape[0], -1, self.n_mels)
        skipped = low * group - first * hop  # samples that frame `first` makes before group `low`
        return c[:, skipped : skipped + (high - low) * group].unflatten(1, (high - low, group)).transpose(2, 3).flatten(2)

    def _phases(self) -> tuple[Tensor, Tensor]:
        """The upsampler as one matrix for whole frames: (n_taps · n_mels, hop · n_mels), and its bias (hop · n_mels).

        The hop samples of a frame depend on it and the n_taps - 1 frames before. Made anew when the upsampler has changed.
        """
        w, hop = self.upsample.weight, self.hop_length
        stamp = tuple((p.data_ptr(), 0 if p.is_inference() else p._version, p.dtype) for p in (w, self.upsample.bias))
        if self._upsampler is None or self._upsampler[0] != stamp:
            weight = self._taps(w.detach()).transpose(2, 3).flatten(2).flatten(0, 1)
            self._upsampler = stamp, weight.contiguous(), self.upsample.bias.detach().repeat(hop)
        return self._upsampler[1:]

    def _taps(self, weight: Tensor) -> Tensor:
        """The upsampler's weight (n_mels, n_mels, kernel) by the frame it meets, newest first: (n_taps, n_mels, n_mels, hop)."""
        n_taps = -(-weight.shape[2] // self.hop_length)
        padded = F.pad(weight, (0, n_taps * self.hop_length - weight.shape[2]))
        return padded.unflatten(2, (n_taps, self.hop_length)).permute(2, 0, 1, 3)

    def _seen(self, mel: Tensor, first: int, last: int) -> Tensor:
        """Frames first … last - 1, each before the n_taps - 1 older ones, zeros outside: (B, last - first, n_taps · n_mels)."""
        n_taps = -(-self.upsample.kernel_size[0] // self.hop_length)
        frames = F.pad(mel, (n_taps - 1, n_taps - 1)).transpose(1, 2)
        return torch.cat([frames[:, first + q : last + q] for q in reversed(range(n_taps))], 2)

    def __getstate__(self):
        return {**self.__dict__, "_upsampler": None}  # made anew where the copy is used


def _checked_sigma(sigma) -> float:
    try:
        value = math.nan if isinstance(sigma, bool | str) else float(sigma)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value < math.inf:
        raise ConfigError(f"sigma must be a number of at least 0, got {sigma!r}")
    return value
