"""Sampling from a DiffWave: from noise to a waveform, one run of the stack per step of the schedule."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor

from fastvoc._torch_threads import one_torch_thread
from fastvoc.errors import ConfigError, ShapeError
from fastvoc.models.diffwave_schedule import SamplingSteps, checked_betas, sampling_steps
from fastvoc.models.vocoder import Lengths, Progress, Vocoder, check_seed, fresh_seed

STRETCH = 1 << 17  # samples of all items together that the stack sees at once: bounds the memory, whatever the length
SHORTEST = 1 << 15  # of one item; each stretch is computed with the stack's reach on both sides, which comes on top
KEPT_BYTES = 1 << 30  # of conditioning that is kept over the steps, projected for as many layers; beyond, it is made anew in each
PROJECTED_FROM = 4  # steps: to write the projection and read it again costs as much as to compute it two or three times


class Sampling(Vocoder):
    """`infer` of DiffWave."""

    def schedule_steps(self, schedule: str | Sequence[float] = "full") -> SamplingSteps:
        """The sampler's constants. schedule: "full" | "fast" | [β…]. Raises ConfigError for one that cannot be used."""
        config = self.config
        if isinstance(schedule, str):
            if schedule not in ("full", "fast"):
                raise ConfigError(f"schedule: got {schedule!r}, expected 'full', 'fast' or a list of β")
            betas = config.noise_schedule if schedule == "full" else config.fast_schedule
            if betas is None:
                raise ConfigError("this model has no fast schedule.", hint="Pass a list of β as schedule.")
        else:
            betas = checked_betas(schedule)
        return sampling_steps(betas, config.noise_schedule, config.float32_schedule)

    @torch.inference_mode()
    @one_torch_thread()
    def infer(
        self,
        mel: Tensor | None = None,
        *,
        schedule: str | Sequence[float] = "full",
        label: Tensor | None = None,
        n_samples: int | None = None,
        batch: int | None = None,
        lengths: Lengths = None,
        seed: int | None = None,
        noise: tuple[Tensor, Tensor] | None = None,
        precision: str | None = None,
        threads: int | None = None,
        progress: Progress = None,
    ) -> Tensor:
        """Sample: mel (B, n_mels, n_frames) -> (B, n_frames · hop_length).

        schedule   "full": the training schedule; "fast": the model's short one; or β for each step
        label      (B,) classes, for a class-conditional model
        n_samples  fewer samples than the mel covers; for a model without mel: how many. Default: those of the noise where
                   it is given, else what the mel covers or the config's audio_len
        batch      items of a model without mel and label; default: those of the noise, else 1
        lengths    (B,) frames of each item; the rest of the mel is padding, the rest of the result zero
        seed       names the noise; item b's does not depend on the others or on the length
        noise      a pair instead: start (B, n_samples), and the draws (n_steps - 1, B, n_samples) in the order of use
        precision  "fp32" or "bf16"; default: the model's own
        progress   called with (steps done, steps in all)

        Raises ShapeError, DTypeError, DeviceError, FeatureError, ConfigError.
        """
        steps = self.schedule_steps(schedule)
        if mel is not None and self.config.n_mels:
            mel = self.check_mel(mel)
        noise = _pair(noise)
        B, T = self._size(mel, label, n_samples, batch, noise)
        self._check_conditions(mel, label, B, T)
        if lengths is not None and mel is None:
            raise ConfigError("lengths counts mel frames, and this model takes no mel.", hint="Pass n_samples=….")
        frames = None if mel is None else self.check_lengths(lengths, mel)
        start, draw = self._draws(noise, seed, B, T, len(steps))
        # The device of the model, whatever there is beside it
        biases = self.layer_biases(torch.from_numpy(steps.t).to(self.input_projection.weight.device))
        how = {"precision": precision or self.precision, "threads": threads}
        run = partial(self._sample, steps=steps, biases=biases, how=how)
        if frames is None or mel is None:
            return run(start, mel, label, draw=draw, progress=progress).float()
        wave = start.new_zeros(B, T, dtype=torch.float32)
        for b, n_frames in enumerate(frames):  # the stack looks ahead: padding behind an item would be heard in it
            item, n = slice(b, b + 1), min(n_frames * self.hop_length, T)
            labels = None if label is None else label[item]
            own_draw = lambda i, item=item, n=n: draw(i)[item, :n]
            wave[item, :n] = run(start[item, :n], mel[item, :, :n_frames], labels, draw=own_draw, progress=progress)
        return wave

    def _sample(self, x: Tensor, mel, label, *, steps: SamplingSteps, biases, how, draw, progress) -> Tensor:
        """x (B, T) noise -> waveform; draw(i): the noise added after the i-th executed step."""
        B, T = x.shape
        if not x.numel():
            return x
        stretches = self._stretches(mel, label, B, T, len(steps), how)
        stack = partial(self.stack.infer, **how)
        for done, n in enumerate(range(len(steps) - 1, -1, -1)):
            bias = biases[n].expand(B, -1, -1).contiguous()
            eps = torch.cat(
                [
                    self._noise(x[:, low:high], cond(), bias, stack)[:, first - low : last - low]
                    for first, last, low, high, cond in stretches
                ],
                1,
            )
            x = steps.c1[n] * (x - steps.c2[n] * eps)
            if n > 0:
                x = x + steps.sigma[n] * draw(done)
            if self.config.clamp:
                x = x.clamp(-1.0, 1.0)
            if progress is not None:
                progress(done + 1, len(steps))
        return x

    def _stretches(self, mel: Tensor | None, label: Tensor | None, B: int, T: int, n_steps: int, how: dict) -> list[tuple]:
        """(first, last, low, high, cond): samples first … last - 1 depend on low … high - 1, conditioned on cond()."""
        reach, size = self.stack.reach, max(SHORTEST, STRETCH // B)
        size = T if T <= size + 2 * reach else size
        n_conds = max(len(self.upsample), 1)
        spare_bytes = KEPT_BYTES - n_conds * B * T * self.config.cond_channels * 4
        kept, stretches = spare_bytes >= 0, []
        # Whether the conditioning is projected apart changes rounding: it hangs on the schedule alone, never on the batch
        projects = n_steps >= PROJECTED_FROM and self.config.cond_channels > 0
        max_bytes = max(spare_bytes, 0) // -(-T // size)
        project = lambda cond: self.stack.project(cond, max_bytes, **how) if projects else cond
        for first in range(0, T, size):
            last = min(first + size, T)
            low, high = max(first - reach, 0), min(last + reach, T)
            cond: Callable = partial(self.conditioning, mel, label, B, low, high)
            if kept:
                made = cond()
                made = torch.stack(list(made)) if n_conds > 1 else made
                made = project(made)
                cond = lambda made=made: made
            else:
                cond = lambda cond=cond: project(cond())
            stretches.append((first, last, low, high, cond))
        return stretches

    def _size(self, mel, label, n_samples: int | None, batch: int | None, noise) -> tuple[int, int]:
        """Items and samples."""
        for name, value in (("n_samples", n_samples), ("batch", batch)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} must be a positive integer, got {value!r}")
        given = mel if mel is not None else label
        if batch is not None and given is not None:
            raise ConfigError("batch is for a model without mel and label; here they tell it")
        of_noise = (None, None) if noise is None or noise[0].dim() != 2 else noise[0].shape
        B = len(given) if given is not None else batch or of_noise[0] or 1
        T = n_samples or of_noise[1]
        if mel is not None and self.config.n_mels:
            covered = mel.shape[2] * self.hop_length
            if T is not None and T > covered:
                raise ShapeError(f"n_samples is {T}, but {mel.shape[2]} mel frames cover {covered}")
            return B, T or covered
        T = T or self.config.audio_len
        if T is None and not self.config.n_mels:
            raise ConfigError("this model does not tell how long its audio is: pass n_samples=…")
        return B, T or 1

    def _draws(self, noise, seed: int | None, B: int, T: int, n_steps: int):
        """(the start (B, T), a function of i that gives the i-th draw (B, T))."""
        if noise is None:
            seed = fresh_seed() if seed is None else check_seed(seed)
            four = lru_cache(1)(lambda group: self.normal_noise((B, 4, T), seed, group))  # four rows cost as much as one
            return four(0)[:, 0], lambda i: four((i + 1) // 4)[:, (i + 1) % 4]
        if seed is not None:
            raise ConfigError("pass seed or noise, not both")
        start = self.given_noise("noise[0], the start,", noise[0], (B, T))
        draws = self.given_noise("noise[1], the draws,", noise[1], (n_steps - 1, B, T))
        return start, lambda i: draws[i]


def _pair(noise) -> tuple[Tensor, Tensor] | None:
    if noise is None:
        return None
    if not isinstance(noise, list | tuple) or len(noise) != 2:
        raise ConfigError("noise must be a pair: the start (B, n_samples) and the draws (n_steps - 1, B, n_samples)")
    return torch.as_tensor(noise[0]), torch.as_tensor(noise[1])
