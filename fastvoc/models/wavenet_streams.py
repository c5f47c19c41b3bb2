"""Generation as it happens: mel goes in piece by piece, samples come out as soon as they are determined.

In chunks of any sizes or in one piece, alone or beside other streams: the same samples, bit for bit.
"""
from typing import Any

import torch
from torch import Tensor

from fastvoc.audio.mulaw import mulaw_decode
from fastvoc.errors import ConfigError, FeatureError, ShapeError

CHUNK_SAMPLES = 4096  # whose conditioning is held at once: times 80 bands 1.3 MB
CHUNK_PRODUCTS = 4 << 30  # multiplications of one call of the engine: a tenth of a second or a few. Then Ctrl-C is heard


class WaveNetStream:
    """One utterance in the making. Made by WaveNet.stream(); run by `generate`, alone or together with others.

    state        the engine's memory of it (a tensor)
    upsampler    the mel frames that are still needed

    state_dict() is the whole of it: saved with torch.save and given to load_state_dict of a new stream of the same model,
    precision and conditioning, the generation goes on as if it had never paused.
    """

    def __init__(self, model, plan, *, seed, stream, temperature, speaker, initial, padded=False) -> None:
        config = model.config
        self.model, self.plan = model, plan
        self.state = plan.begin(seed, stream, temperature, initial, speaker)
        self.upsampler: Any = None
        if config.cin_channels > 0:
            self.upsampler = model.upsampler()
        self.context = 0 if padded else model.context_frames
        self.started = self.closed = False
        self._last_frame: Tensor | None = None

    def state_dict(self) -> dict:
        frames = None if self.upsampler is None else self.upsampler.mark()
        return {
            "state": self.state.clone(),
            "frames": None if frames is None else (frames[0].clone(), *frames[1:]),  # of a view, the rest stays behind
            "ends": (self.started, self.closed, self._last_frame),
        }

    def load_state_dict(self, saved: dict) -> None:
        if saved["state"].shape != self.state.shape:
            raise ShapeError(
                f"the saved state has {len(saved['state'])} bytes, this stream's has {len(self.state)}",
                hint="Resume with the same model and precision.",
            )
        self.state.copy_(saved["state"])
        self.started, self.closed, self._last_frame = saved["ends"]
        if self.upsampler is not None:
            self.upsampler.rewind(saved["frames"])

    def checkpoint(self) -> tuple:
        """Where the generation stands now: `restore` takes this stream back there."""
        state = dict(self.state) if isinstance(self.state, dict) else self.state.clone()
        return state, None if self.upsampler is None else self.upsampler.mark()

    def restore(self, checkpoint: tuple) -> None:
        state, mark = checkpoint
        if isinstance(self.state, dict):
            self.state.update(state)
        else:
            self.state.copy_(state)
        if mark is not None:
            self.upsampler.rewind(mark)

    def push(self, mel: Tensor | None = None, last: bool = False) -> None:
        """mel (n_mels, n_frames): the next frames of the utterance. last: these were all."""
        if self.closed:
            raise RuntimeError("this stream has ended; make a new one with model.stream()")
        if self.upsampler is None:
            raise ConfigError("this WaveNet takes no mel; generate with infer(n_samples=…)")
        if mel is not None:
            mel = self.model.check_mel(mel, dims=2)
            if not self.started and mel.shape[1]:
                # The edge frame stands for what was before
                mel = torch.cat([mel[:, :1].expand(-1, self.context), mel], 1)
                self.started = True
            if mel.shape[1]:
                self._last_frame = mel[:, -1:]
        if last:
            if self._last_frame is None:
                raise ShapeError("the stream ended without a mel frame", hint="Push at least one frame.")
            mel = torch.cat([x for x in (mel, self._last_frame.expand(-1, self.context)) if x is not None], 1)
            self.closed = True
        self.upsampler.push(mel if mel is None else mel.cpu(), last)

    def n_ready(self) -> int:
        """Samples that can be generated from the mel so far."""
        return self.upsampler.n_ready()


def generate(
    streams: list[WaveNetStream],
    n_samples: list[int] | None = None,
    noise=None,
    forced=None,
    parameters=False,
    progress=None,
):
    """Generates every stream's ready samples (or n_samples of each), all in one batch of the engine.

    noise, forced: per stream tensors of at least that length, or None.   progress(done, total) of the longest stream
    -> per stream (n,) samples as drawn (classes for a softmax model), and with parameters=True (n, out_channels)

    All or nothing: after an exception, Ctrl-C included, every stream stands where it stood before the call.
    """
    ready = [s.n_ready() for s in streams]
    wanted = ready if n_samples is None else n_samples
    if any(n > r for n, r in zip(wanted, ready)):
        raise ShapeError(f"asked for {wanted} samples, the mel so far determines {ready}", hint="Push more mel first.")
    if not streams:
        return [], [] if parameters else None
    plan = streams[0].plan
    waves = [torch.empty(0)] * len(streams)
    given: list = list(waves)
    done = [0] * len(streams)
    before = [s.checkpoint() for s in streams]
    try:
        while active := [i for i in range(len(streams)) if done[i] < wanted[i]]:
            most = samples_at_once(plan, len(active))
            parts = [slice(done[i], min(done[i] + most, wanted[i])) for i in active]
            of = lambda x: None if x is None else [x[i][part] for i, part in zip(active, parts)]
            out, params = plan.run(
                [streams[i].state for i in active],
                [part.stop - part.start for part in parts],
                [streams[i].upsampler.take(part.stop - part.start) for i, part in zip(active, parts)],
                noise=of(noise),
                forced=of(forced),
                parameters=parameters,
            )
            for k, i in enumerate(active):
                if not done[i]:
                    waves[i] = out[k].new_empty(wanted[i])
                    given[i] = params[k].new_empty(wanted[i], plan.n_out) if parameters else None
                waves[i][parts[k]] = out[k]
                if parameters:
                    given[i][parts[k]] = params[k]
                done[i] = parts[k].stop
            if progress is not None:
                progress(max(done), max(wanted))
        return waves, given if parameters else None
    except BaseException:
        for stream, checkpoint in zip(streams, before):
            stream.restore(checkpoint)
        raise


def samples_at_once(plan, n_streams: int) -> int:
    """Samples of each stream that one call of the engine may make: it hears no Ctrl-C, and holds all their conditioning."""
    w = plan.weights
    products = sum(m.numel() for m in (w.w_in, w.w_cond, w.w_res, w.w_skip, w.w_hidden, w.w_logits))
    return max(16, min(CHUNK_SAMPLES, CHUNK_PRODUCTS // (products * n_streams)))


def as_wave(config, drawn: Tensor) -> Tensor:
    """What the engine drew as sample values in [-1, 1]."""
    return mulaw_decode(drawn.long(), config.mulaw_classes) if config.head == "softmax" else drawn


def check_finite(values: Tensor, name: str = "the mel") -> None:
    finite = torch.isfinite(values)
    if not finite.all():
        at = tuple(int(i) for i in (~finite).nonzero()[0])
        hint = "Look for silence that met a logarithm of 0." if name == "the mel" else None
        raise FeatureError(f"{name} holds {float(values[at])} at index {at}", hint=hint)
