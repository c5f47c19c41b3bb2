"""Continuous batching: WaveNet streams join and leave a running batch, each as if it were alone, bit for bit.

    with Batcher(model, precision="bf16", max_streams=16) as batcher:      # one for the process
        speech = batcher.submit(mel, seed=1)                               # from any thread
        for samples in speech:                                             # as they are made
            play(samples)

A worker thread runs the engine in short steps over all streams that have mel to speak and room for samples. A stream joins
at the next step after its submit, and leaves when it ends, fails or is cancelled; the others do not notice. While the engine
runs, other Python threads run too.
"""

import atexit
import itertools
import os
import threading
import time
import weakref
from concurrent.futures import CancelledError

import torch
from torch import Tensor

from fastvoc.errors import ConfigError, ResourceLimitError
from fastvoc.models.vocoder import check_seed, fresh_seed
from fastvoc.models.wavenet_streams import WaveNetStream, as_wave

_batchers: "weakref.WeakSet[Batcher]" = weakref.WeakSet()


class Speech:
    """A stream of a Batcher, made by its `submit`. Every method may be called from any thread.

    Iterating it gives float32 (n,) in [-1, 1], n ≥ 1: what was made since the last time. It stops with the utterance, raises
    CancelledError after cancel() and close(), and the engine's error where that failed. A Speech that nobody holds any
    more is cancelled.
    """

    def __init__(self, batcher: "Batcher", stream: WaveNetStream):
        self._batcher, self._stream = batcher, stream
        self._changed = threading.Condition(batcher._lock)
        self._unread: list[Tensor] = []
        self._n_unread = 0
        self._error: BaseException | None = None
        self._done = False

    @property
    def done(self) -> bool:
        """Nothing more will be made; the last samples may still be unread."""
        return self._done

    def push(self, mel: Tensor | None = None, last: bool = False, timeout: float | None = None) -> None:
        """mel (n_mels, n_frames): the next frames. last: these were all.

        Waits while the engine is `max_behind` samples behind, TimeoutError after `timeout` seconds. After that error, and
        those of WaveNetStream.push, the stream is as it was.
        """
        with self._changed:
            near = lambda: self._done or self._stream.n_ready() < self._batcher.max_behind
            if not self._changed.wait_for(near, timeout):
                raise TimeoutError(f"after {timeout} s the engine is still {self._stream.n_ready()} samples behind")
            if self._error is not None:
                raise self._error
            self._stream.push(mel, last)
            self._batcher._wake.notify()

    def read(self, timeout: float | None = None) -> Tensor | None:
        """What was made since the last time, at least a sample; None at the end. TimeoutError after `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._unread or self._done, timeout):
                raise TimeoutError(f"no sample within {timeout} s; was all mel pushed, the last with last=True?")
            if self._error is not None:
                raise self._error
            unread, self._unread, self._n_unread = self._unread, [], 0
            self._batcher._wake.notify()  # there is room again
        return torch.cat(unread) if unread else None

    def __iter__(self):
        while (samples := self.read()) is not None:
            yield samples

    def result(self) -> Tensor:
        """Waits for the end; every sample that was not read before."""
        return torch.cat([torch.empty(0), *self])

    def cancel(self) -> None:
        """Leaves the batch, unread samples are dropped. Nothing happens where the stream is done."""
        with self._changed:
            if not self._done:
                self._finish(CancelledError("the stream was cancelled"))

    def _finish(self, error: BaseException | None = None) -> None:
        self._done, self._error = True, error
        if error is not None:
            self._unread, self._n_unread = [], 0
        self._changed.notify_all()
        self._batcher._room.notify()


class Batcher:
    """Runs any number of streams of one WaveNet, with a thread of its own.

    precision, threads  as for WaveNet.infer; more threads than streams share the work of one sample
    step_samples        of each stream that a step makes: a new stream waits for the end of a step. Fewer: sooner the first
                        sample; more: less overhead
    max_streams         at the same time; further submits wait
    max_unread          samples that a stream makes ahead of its reader; then it sits out
    max_behind          samples that Speech.push may be ahead of the engine; then it waits

    Memory: per stream its state (plan.state_bytes), the mel that waits, and max_unread samples.
    After os.fork the child has a Batcher without streams, which works; the parent's streams fail there when touched.
    Raises ConfigError.
    """

    def __init__(
        self, model, *, precision: str | None = None, threads: int | None = None, step_samples: int = 128,
        max_streams: int = 64, max_unread: int = 1 << 16, max_behind: int = 1 << 18,
    ):  # fmt: skip
        limits = dict(step_samples=step_samples, max_streams=max_streams, max_unread=max_unread, max_behind=max_behind)
        for name, value in limits.items():
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")
        if model.n_mels == 0:
            raise ConfigError("this WaveNet takes no mel, and its streams have no end.", hint="Use infer(n_samples=…).")
        self.model, self.precision, self.threads = model, precision, threads
        self.step_samples, self.max_streams, self.max_unread, self.max_behind = limits.values()
        model.plan(precision, threads)  # now, not while the first caller waits
        self._closed = False
        self._handles: weakref.WeakSet[Speech] = weakref.WeakSet()
        self._reset()
        _batchers.add(self)

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._wake = threading.Condition(self._lock)  # the worker: there may be work
        self._room = threading.Condition(self._lock)  # submit: a stream has left
        self._running: list[weakref.ref[Speech]] = []
        self._worker: threading.Thread | None = None

    def submit(
        self, mel: Tensor | None = None, *, last: bool = True, timeout: float | None = None, seed: int | None = None, **options
    ) -> Speech:
        """mel (n_mels, n_frames): all frames, or with last=False, or without mel, the first ones: Speech.push takes the rest.

        options: speaker, temperature, stream, initial and padded, as for WaveNet.stream. seed None takes a fresh one.
        Where max_streams run, waits, and raises ResourceLimitError after `timeout` seconds (0: at once).
        Raises what WaveNet.stream and WaveNetStream.push raise, and RuntimeError after close().
        """
        seed = fresh_seed() if seed is None else check_seed(seed)
        stream = self.model.stream(seed=seed, precision=self.precision, threads=self.threads, **options)
        if mel is not None:
            stream.push(mel, last)
        end = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            while not self._closed and self.n_streams >= self.max_streams:
                left = 0.1 if end is None else min(0.1, end - time.monotonic())  # handles that nobody holds tell no one
                if left <= 0:
                    raise ResourceLimitError(
                        f"{self.max_streams} streams are running", hint="Wait longer, or raise max_streams."
                    )
                self._room.wait(left)
            if self._closed:
                raise RuntimeError("this Batcher is closed")
            speech = Speech(self, stream)
            self._handles.add(speech)
            self._running.append(weakref.ref(speech))
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="fastvoc-batcher", daemon=True)
                self._worker.start()
            self._wake.notify()
        return speech

    @property
    def n_streams(self) -> int:
        """Streams that are not done."""
        with self._lock:
            self._running = [ref for ref in self._running if (speech := ref()) is not None and not speech._done]
            return len(self._running)

    def close(self) -> None:
        """Cancels what is not done and ends the worker; what is done can still be read. May be called twice."""
        with self._lock:
            self._closed = True
            self._fail_all(CancelledError("the Batcher was closed"))
            self._wake.notify()
            self._room.notify_all()
            worker = self._worker
        if worker is not None:
            worker.join()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _fail_all(self, error: BaseException) -> None:
        for ref in self._running:
            speech = ref()
            if speech is not None and not speech._done:
                speech._finish(error)

    def _work(self) -> None:
        try:
            while True:
                with self._lock:
                    while not (self._closed or (batch := self._next_batch())):
                        self._wake.wait()
                    if self._closed:
                        return
                self._step(batch)
                del batch  # a Speech that nobody else holds ends here
        except BaseException as fault:  # a bug: nobody may wait for ever
            with self._lock:
                self._closed = True
                self._fail_all(fault)
                self._room.notify_all()
            raise

    def _next_batch(self) -> list[tuple[Speech, Tensor]]:
        """(stream, conditioning of its next samples) of those that have some and room for them."""
        batch = []
        for ref in self._running:
            speech = ref()
            if speech is None or speech._done:
                continue
            stream = speech._stream
            try:
                ready = stream.n_ready()
                n = min(ready, self.step_samples, self.max_unread - speech._n_unread)
                if n > 0:
                    batch.append((speech, stream.upsampler.take(n)))
                    speech._changed.notify_all()  # push may go on
                elif ready == 0 and stream.closed:
                    speech._finish()
            except Exception as fault:
                speech._finish(fault)
        return batch

    def _step(self, batch: list[tuple[Speech, Tensor]]) -> None:
        by_plan = lambda item: id(item[0]._stream.plan)  # one, unless the model's weights were changed
        for _, group in itertools.groupby(sorted(batch, key=by_plan), by_plan):
            members = list(group)
            try:
                self._run(members)
            except Exception as fault:
                if len(members) == 1:
                    with self._lock:
                        members[0][0]._finish(fault)
                    continue
                for member in members:  # whose fault it was; a run that fails has changed no state
                    self._step([member])

    def _run(self, members: list[tuple[Speech, Tensor]]) -> None:
        streams = [speech._stream for speech, _ in members]
        conds = [cond for _, cond in members]
        drawn, _ = streams[0].plan.run([s.state for s in streams], [len(c) for c in conds], conds)
        waves = [as_wave(self.model.config, d).cpu() for d in drawn]
        with self._lock:
            for (speech, _), wave in zip(members, waves):
                if not speech._done:
                    speech._unread.append(wave)
                    speech._n_unread += len(wave)
                    speech._changed.notify_all()


def _after_fork_in_child() -> None:
    """The worker is gone, and locks may be held by threads that are gone."""
    for batcher in list(_batchers):
        batcher._reset()
        with batcher._lock:
            for speech in list(batcher._handles):
                speech._changed = threading.Condition(batcher._lock)
                if not speech._done:
                    speech._finish(RuntimeError("this stream runs in the process that was forked; submit it again"))


def _close_all() -> None:
    for batcher in list(_batchers):
        batcher.close()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_close_all)
