"""Continuous batching: whoever joins or leaves when, each stream has the bits that it has alone."""

import gc
import random
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress

import pytest
import torch

from fastvoc.errors import ConfigError, FeatureError, ResourceLimitError, ShapeError
from fastvoc.models.wavenet_batcher import Batcher
from tests.test_ops import run_python
from tests.test_wavenet_generate import mel_of, model_of

pytestmark = pytest.mark.usefixtures("one_torch_thread")
WAIT = 30  # seconds: what takes longer hangs


def batcher_of(model, **limits):
    return Batcher(model, threads=limits.pop("threads", 1), **limits)


def alone(model, mel, precision="fp32", **options):
    return model.infer(mel[None], precision=precision, threads=1, streams=[options.pop("stream", 0)], **options)[0]


@pytest.mark.parametrize("head, precision, threads", [("mol", "bf16", 1), ("softmax", "int8", 2), ("gaussian", "fp32", 2)])
def test_random_joins_and_leaves_change_no_bit(head, precision, threads):
    """40 streams of any length from 6 threads: whole mels and pieces, read at once, late or not to the end."""
    model, frames = model_of(head=head, speakers=True), mel_of(40, 30)
    lengths = [random.Random(7).randint(1, 30) for _ in range(40)]
    want = [
        alone(model, frames[i, :, :n], precision, seed=i % 3, stream=i, speaker=torch.tensor([i % 4]))
        for i, n in enumerate(lengths)
    ]
    assert torch.cat(want).std() > 0.01
    left_early = []

    def client(i):
        rng, mel = random.Random(i), frames[i, :, : lengths[i]]
        options = dict(seed=i % 3, stream=i, speaker=i % 4, timeout=WAIT)
        if rng.random() < 0.5:
            speech = batcher.submit(mel, **options)
        else:
            speech = batcher.submit(**options)
            at = 0
            while at < lengths[i]:
                n = rng.randint(1, 9)
                speech.push(mel[:, at : at + n], last=at + n >= lengths[i], timeout=WAIT)
                at += n
                time.sleep(rng.random() * 0.002)
        pieces = []
        stop_at = rng.randint(1, len(want[i])) if rng.random() < 0.3 else None
        for piece in speech:
            pieces.append(piece)
            time.sleep(rng.random() * 0.002)
            if stop_at is not None and sum(map(len, pieces)) >= stop_at:
                speech.cancel()
                left_early.append(i)
                break
        got = torch.cat(pieces)
        assert torch.equal(got, want[i][: len(got)]), i
        return len(got)

    with batcher_of(model, precision=precision, threads=threads, step_samples=5, max_streams=7, max_unread=60) as batcher:
        with ThreadPoolExecutor(6) as clients:
            made = list(clients.map(client, range(40)))
        assert batcher.n_streams == 0
    whole = [i for i in range(40) if i not in left_early]
    assert len(whole) >= 20 and len(left_early) >= 3 and all(made[i] == len(want[i]) for i in whole)


def test_they_do_run_together():
    """Seven streams join while the first one's first step is made; from then on each step makes all of them."""
    model, all_there = model_of(), threading.Event()
    with batcher_of(model, step_samples=8) as batcher:
        sizes, run = [], batcher._run
        batcher._run = lambda members: (sizes.append(len(members)), all_there.wait(WAIT), run(members))
        speeches = [batcher.submit(mel_of(1, 20, seed=i)[0], seed=0) for i in range(8)]
        all_there.set()
        for i, speech in enumerate(speeches):
            assert torch.equal(speech.result(), alone(model, mel_of(1, 20, seed=i)[0], seed=0))
        assert max(sizes[:2]) == 8 and sum(sizes) == 8 * 120 // 8


def test_one_sample_at_a_time():
    model, mel = model_of(), mel_of(1, 4)[0]
    with batcher_of(model, step_samples=1) as batcher:
        speeches = [batcher.submit(mel, seed=3) for _ in range(3)]
        assert all(torch.equal(s.result(), alone(model, mel, seed=3)) for s in speeches)


def test_a_stream_that_nobody_reads_sits_out():
    model, mel = model_of(), mel_of(1, 300)[0]
    with batcher_of(model, step_samples=16, max_unread=64) as batcher:
        slow = batcher.submit(mel, seed=1)
        quick = batcher.submit(mel, seed=2)
        assert len(quick.result()) == 1800
        assert slow._n_unread == 64 and not slow.done
        assert torch.equal(slow.result(), alone(model, mel, seed=1))


def test_push_waits_for_the_engine():
    model = model_of()
    with batcher_of(model, max_unread=16, max_behind=100, step_samples=16) as batcher:
        speech = batcher.submit(seed=0)
        speech.push(mel_of(1, 40)[0])  # six samples a frame; 16 of them are made, then the reader is waited for
        with pytest.raises(TimeoutError, match="2[0-9][0-9] samples behind"):
            speech.push(mel_of(1, 1)[0], timeout=0.05)
        reader = threading.Thread(target=speech.result)
        reader.start()
        speech.push(mel_of(1, 1)[0], last=True, timeout=WAIT)
        reader.join(WAIT)
        assert not reader.is_alive() and speech.done


def test_the_number_of_streams_is_limited():
    model, mel = model_of(), mel_of(1, 300)[0]
    with batcher_of(model, max_streams=2, max_unread=16) as batcher:
        first, second = batcher.submit(mel, seed=0), batcher.submit(mel, seed=0)
        with pytest.raises(ResourceLimitError, match="2 streams are running"):
            batcher.submit(mel, timeout=0)
        first.cancel()
        third = batcher.submit(mel, seed=0, timeout=WAIT)
        assert batcher.n_streams == 2
        del third  # nobody will ever read it
        gc.collect()
        fourth = batcher.submit(mel, seed=0, timeout=WAIT)
        assert torch.equal(fourth.result(), second.result())


def test_cancelled_while_somebody_waits_for_it():
    with batcher_of(model_of()) as batcher, ThreadPoolExecutor(1) as pool:
        speech = batcher.submit(seed=0)  # no mel will come
        reader = pool.submit(speech.result)
        time.sleep(0.02)
        speech.cancel()
        with pytest.raises(CancelledError, match="cancelled"):
            reader.result(WAIT)
        with pytest.raises(CancelledError):
            speech.push(mel_of(1, 2)[0])
        with pytest.raises(TimeoutError, match="last=True"):
            batcher.submit(seed=0).read(timeout=0.01)


def test_one_streams_fault_is_its_own():
    """Refused at the border, failing in the upsampler, failing in the engine: its neighbour does not notice."""
    model, mel = model_of(), mel_of(1, 60)[0]
    want = alone(model, mel, seed=0)
    with batcher_of(model, step_samples=8) as batcher:
        good, bad, worse = (batcher.submit(mel[:, :10], last=False, seed=0) for _ in range(3))
        with pytest.raises(FeatureError, match="nan"):
            bad.push(torch.full((5, 3), float("nan")))
        with pytest.raises(ShapeError, match="transpose"):
            bad.push(mel[:, 10:].t())
        with pytest.raises(ConfigError, match="temperature"):
            batcher.submit(mel, temperature=-1.0)

        def broken(n):
            raise OverflowError("no such frame")

        plan_run = good._stream.plan.run

        def run(states, counts, cond):
            if any(s is worse._stream.state for s in states):
                raise MemoryError("no room")
            return plan_run(states, counts, cond)

        bad._stream.upsampler.take = broken
        good._stream.plan.run = run
        try:
            good.push(mel[:, 10:], last=True)
            for speech in (bad, worse):
                with suppress(OverflowError, MemoryError):  # it may have met its fault in the first ten frames already
                    speech.push(mel[:, 10:], last=True)
            assert torch.equal(good.result(), want)
            with pytest.raises(OverflowError, match="no such frame"):
                bad.result()
            with pytest.raises(MemoryError, match="no room"):
                worse.result()
        finally:
            del good._stream.plan.run
        assert torch.equal(batcher.submit(mel, seed=0).result(), want)


def test_weights_may_change_while_streams_run():
    """A stream keeps the weights that it began with."""
    model, mel = model_of(), mel_of(1, 40)[0]
    with batcher_of(model, step_samples=8) as batcher:
        before = alone(model, mel, seed=0)
        old = batcher.submit(mel[:, :10], last=False, seed=0)
        with torch.no_grad():
            model.last_conv_layers[3].bias += 0.1
        new = batcher.submit(mel, seed=0)
        old.push(mel[:, 10:], last=True)
        assert torch.equal(old.result(), before)
        assert torch.equal(new.result(), alone(model, mel, seed=0)) and not torch.equal(before, alone(model, mel, seed=0))


def test_closing():
    model, mel = model_of(), mel_of(1, 20)[0]
    batcher = batcher_of(model)
    finished, waiting = batcher.submit(mel, seed=0), batcher.submit(seed=0)
    while not finished.done:
        time.sleep(0.001)
    batcher.close()
    batcher.close()
    assert not batcher._worker.is_alive()
    assert torch.equal(finished.result(), alone(model, mel, seed=0))
    with pytest.raises(CancelledError, match="closed"):
        waiting.result()
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(mel)


def test_a_fault_of_the_worker_reaches_everybody(monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    batcher = batcher_of(model_of())
    speech = batcher.submit(seed=0)
    batcher._step = lambda batch: 1 / 0
    speech.push(mel_of(1, 20)[0], last=True)
    with pytest.raises(ZeroDivisionError):
        speech.result()
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(mel_of(1, 20)[0])
    batcher.close()


def test_what_it_refuses():
    with pytest.raises(ConfigError, match="step_samples must be a whole number of at least 1, got 0"):
        batcher_of(model_of(), step_samples=0)
    from fastvoc import WaveNet

    model = WaveNet(out_channels=16, layers=2, stacks=1, residual_channels=4, gate_channels=8, skip_out_channels=4)
    with pytest.raises(ConfigError, match="takes no mel.*n_samples"):
        batcher_of(model)


def test_after_fork_and_at_exit():
    """The child's Batcher starts anew, the parent's goes on; and a process that forgets to close one ends."""
    run_python("""
        import os, signal, torch
        torch.set_num_threads(1)
        from fastvoc.models.wavenet_batcher import Batcher
        from tests.test_wavenet_generate import mel_of, model_of
        model, mel = model_of(), mel_of(1, 20)[0]
        want = model.infer(mel[None], seed=0, threads=1)[0]
        batcher = Batcher(model, threads=2, step_samples=8)
        running = [batcher.submit(mel_of(1, 20000)[0], seed=0) for _ in range(3)]  # longer than this test
        for _ in range(6):  # at whatever the worker is doing
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                try:
                    running[0].result()
                    os._exit(3)
                except RuntimeError as error:
                    if "forked" not in str(error):
                        os._exit(4)
                again = batcher.submit(mel, seed=0)
                same = torch.equal(again.result(), want)
                batcher.close()
                os._exit(0 if same else 5)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0, status
        assert torch.equal(batcher.submit(mel, seed=0).result(), want) and not any(r.done for r in running)
    """)
