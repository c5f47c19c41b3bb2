"""How many real-time WaveNet streams a machine holds: mel arrives in ticks, and each tick's samples must be there by the next.

Continuous batching, as a server does it: at every tick all streams run in one call, one of them ends and a new one takes its
place. A number of streams is held where a tick's work is done within the tick in 99 % of the ticks.
"""

import math
import statistics
import time
from collections.abc import Iterator

import torch

import fastvoc
from benchmarks import timer
from benchmarks.bench_wavenet import DEMO, NV, TINY, say, tamed
from benchmarks.timer import DisagreementError
from fastvoc import WaveNet
from fastvoc.models.wavenet_streams import generate
from fastvoc.ops.wavenet_generate import PRECISIONS

COLUMNS = ["model", "precision", "threads", "streams", "realtime", "tick_ms", "p50_ms", "p99_ms", "longest_ms", "samples_per_s",
           "first_audio_ms"]  # fmt: skip
TICK = 0.02  # seconds, rounded up to whole mel frames
TICKS = 60
MOST = 512
RATE = 16000  # of models that name none
METHOD = {
    "work": "mel frames in, samples out: upsampling, conditioning, all layers, drawing; a stream ends and another begins at "
    "every tick",
    "tick_ms": "sound that a tick brings: whole mel frames, at least 20 ms",
    "p50_ms, p99_ms, longest_ms": f"of a tick's work, over {TICKS} ticks: so p99 is nearly the longest",
    "realtime": "p99_ms is within tick_ms",
    "most_streams": "the most streams found that run in real time, between a doubled number that does not and this one, to a tenth",
    "first_audio_ms": "median time from a new stream's first mel frames to its first samples, computed beside the others in one "
    "tick; the context frames that the upsampler waits for come on top",
    "checked": "a stream among others gives the samples that it gives alone, bit for bit, before anything is timed",
}
REPORT = {
    "title": "Real-time WaveNet streams", "group": ["model"], "vary": ["threads", "streams"], "metric": "p99_ms", "unit": "ms",
    "better": "lower", "ours": "fastvoc",
    "curves": [{"title": "A tick's work (99 %) against streams", "x": "streams", "y": "p99_of_tick",
                "series": ["model", "precision"], "x_label": "streams, one thread",
                "y_label": "share of the tick", "where": {"threads": 1}}],
    "tables": [{"title": "Streams held in real time", "rows": "held", "columns": {
        "model": "model", "precision": "precision", "threads": "threads", "sample_rate": "sample rate",
        "most_streams": "streams", "p99_ms": "p99 of a tick, ms", "tick_ms": "tick, ms"}}],
}  # fmt: skip


class Server:
    """B streams of a model that go on for ever, one of them being replaced at every tick."""

    def __init__(self, model, rate: int, precision: str, threads: int, streams: int):
        self.model, self.options = model, {"precision": precision, "threads": threads}
        self.frames = math.ceil(TICK * rate / model.samples_per_frame)
        self.mel = torch.randn(model.n_mels, self.frames, generator=torch.Generator().manual_seed(1)) * 0.5
        self.n_made = 0
        self.streams = [self.new() for _ in range(streams)]
        self.tick()

    def new(self):
        self.n_made += 1
        stream = self.model.stream(seed=1, stream=self.n_made, **self.options)
        if self.model.context_frames:  # the upsampler keeps them back: without them the first tick would have less to do
            stream.push(self.mel[:, :1].expand(-1, self.model.context_frames))
        return stream

    def tick(self) -> int:
        """-> samples made"""
        self.streams[self.n_made % len(self.streams)] = self.new()
        for stream in self.streams:
            stream.push(self.mel)
        waves, _ = generate(self.streams)
        return sum(map(len, waves))


def check(model, rate: int, precision: str, threads: int) -> None:
    """Whoever joins late among others gives what it gives alone."""
    server = Server(model, rate, precision, threads, 3)
    alone = server.new()
    server.n_made -= 1
    beside = server.new()  # the same stream once more
    for stream in (alone, beside, *server.streams):
        stream.push(server.mel)
    (expected,), _ = generate([alone])
    (*_, got), _ = generate([*server.streams, beside])
    if not len(got) or not torch.equal(got, expected):
        raise DisagreementError(f"{precision}: a stream among others gives other samples than alone")


def measured(name: str, model, rate: int, precision: str, threads: int, streams: int, ticks: int) -> dict:
    server = Server(model, rate, precision, threads, streams)
    walls, made = [], 0
    for _ in range(ticks):
        start = time.perf_counter()
        made += server.tick()
        walls.append(time.perf_counter() - start)
    firsts = []
    for _ in range(3):
        server.streams[0] = server.new()
        start = time.perf_counter()
        server.streams[0].push(server.mel)
        generate(server.streams[:1])
        firsts.append(time.perf_counter() - start)
    walls.sort()
    tick, p99 = server.frames * model.samples_per_frame / rate, walls[min(len(walls) - 1, math.ceil(0.99 * len(walls)) - 1)]
    return timer.rounded({
        "model": name, "contender": "fastvoc", "precision": precision, "threads": threads, "streams": streams, "sample_rate": rate,
        "realtime": p99 <= tick, "tick_ms": tick * 1e3, "p50_ms": statistics.median(walls) * 1e3, "p99_ms": p99 * 1e3,
        "longest_ms": walls[-1] * 1e3, "p99_of_tick": p99 / tick, "samples_per_s": made / sum(walls),
        "first_audio_ms": statistics.median(firsts) * 1e3,
    })  # fmt: skip


def search(name: str, model, rate: int, precision: str, threads: int, quick: bool) -> tuple[list[dict], dict]:
    """Doubles until a tick is too short, then halves the gap until it is a tenth."""
    rows, good, bad, streams = [], None, None, 1
    while True:
        row = measured(name, model, rate, precision, threads, streams, 3 if quick else TICKS)
        rows.append(row)
        if row["realtime"]:
            good = row
        else:
            bad = streams
        low, high = good["streams"] if good else 0, bad
        if quick or low >= MOST or (high is not None and high - low <= max(1, low // 10)):
            break
        streams = 2 * low if high is None else (low + high) // 2
    kept = ("model", "precision", "threads", "sample_rate", "p99_ms", "tick_ms")
    held = {k: v for k, v in (good or rows[0]).items() if k in kept}
    return rows, {**held, "most_streams": good["streams"] if good else 0}


def models(quick: bool) -> Iterator[tuple]:
    torch.manual_seed(0)
    if quick:
        yield "tiny", tamed(WaveNet(**TINY["tiny"]).eval()), RATE
        return
    yield "nv-wavenet R64 S256 A256 L20 k2", tamed(WaveNet(**NV).eval()), RATE
    if DEMO.is_dir():
        model = fastvoc.load(DEMO).eval()
        yield "fastvoc/demo/wavenet", model, model.sample_rate


@torch.inference_mode()
def run(quick: bool = False, n_threads: int | None = None, only: str = "") -> Iterator[dict]:
    """A part for each model, precision and number of threads. only: models whose name has this in it."""
    for name, model, rate in models(quick):
        for threads in sorted({1, n_threads or fastvoc.get_num_threads()}):
            for precision in PRECISIONS if only in name else ():
                say(f"{name}, {precision}, {threads} threads")
                with timer.threads(threads), fastvoc.backend("cpu"):
                    check(model, rate, precision, threads)
                    rows, held = search(name, model, rate, precision, threads, quick)
                yield {"rows": rows, "held": [held]}
