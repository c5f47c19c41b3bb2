"""All five vocoders as a server calls them: precisions, threads, batches and lengths; latencies and memory. Ours alone.

`benchmarks models` and `wavenet` have the peers.
"""

import ctypes
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch

import fastvoc
from benchmarks import timer
from benchmarks.bench_models import CASES as FEED_FORWARD
from benchmarks.bench_models import TINY, Case
from benchmarks.bench_wavenet import NV, say, tamed
from fastvoc import WaveNet
from fastvoc.demo import precisions_of

COLUMNS = ["model", "precision", "threads", "batch", "seconds", "rtf", "samples_per_s", "p50_ms", "p99_ms", "first_audio_ms",
           "peak_mb", "calls"]  # fmt: skip
BATCHES = [(1, 0.1), (1, 1.0), (1, 10.0), (4, 1.0), (8, 0.25)]  # items, seconds of sound each
CALLS, MOST_SECONDS = 30, 1.0  # of a setting: so many calls, or so long, but three at least
LONGEST_CALL = 1.5  # seconds; a longer one is left out
METHOD = {
    "work": "infer: mel in, float samples out; making the noise, upsampling and heads included, packing the weights (first "
    "call) not",
    "rtf": "median seconds computed per second of sound, all items of the batch counted",
    "p50_ms, p99_ms": f"of a call's latency, over `calls` calls, {CALLS} at most; with fewer than 100 p99 is nearly the longest",
    "first_audio_ms": "WaveNet: from the first mel frames of a new stream to its first samples; the others give all samples at "
    "once, so it is p50_ms",
    "peak_mb": "growth of the process's resident memory during a call above what it was before, at most (Linux); weights not "
    "included",
    "checked": "fp32 within 1e-4 rms of plain PyTorch at 0.1 s for the same noise, bf16 within 10 %; WaveNet: see benchmarks "
    "wavenet",
}
REPORT = {
    "title": "Serving", "group": ["model"], "vary": ["threads", "batch", "seconds"], "metric": "rtf", "unit": "s per s of audio",
    "better": "lower", "ours": "fastvoc",
    "curves": [
        {"title": "Latency against length, one item, one thread", "x": "seconds", "y": "p50_ms", "series": ["model", "precision"],
         "x_label": "seconds of sound", "y_label": "ms", "where": {"batch": 1, "threads": 1}},
    ],
    "tables": [{
        "title": "One second of sound, one item", "where": {"batch": 1, "seconds": 1.0}, "columns": {
            "model": "model", "precision": "precision", "threads": "threads", "samples_per_s": "samples/s", "p50_ms": "p50, ms",
            "p99_ms": "p99, ms", "first_audio_ms": "first sound, ms", "peak_mb": "memory, MB", "rtf": "real-time factor"}},
    ],
}  # fmt: skip


def models(quick: bool) -> Iterator[tuple[str, Case | None, torch.nn.Module]]:
    torch.manual_seed(0)
    if not quick:
        yield "WaveNet R64 S256 A256 L20", Case("wavenet", 16000), tamed(WaveNet(**NV).eval())
    for name, case in (TINY if quick else FEED_FORWARD).items():
        yield name, case, case.build()


def check(name: str, model, case: Case) -> None:
    if case.family == "wavenet":
        return
    mel = torch.rand(1, model.n_mels, 4, generator=torch.Generator().manual_seed(1)) * 0.8
    with fastvoc.backend("reference"):
        plain = model.infer(mel, seed=1, precision="fp32", **case.infer)
    for precision in precisions_of(model):
        with fastvoc.backend("cpu"):
            error = model.infer(mel, seed=1, precision=precision, **case.infer) - plain
        share = float(error.pow(2).mean().sqrt() / plain.pow(2).mean().sqrt())
        if not share <= {"fp32": 1e-4, "high": 1e-3}.get(precision, 0.1):
            raise timer.DisagreementError(f"{name} in {precision}: its rms error is {share:.3g} of the signal")


def measured(name: str, model, case: Case, precision: str, threads: int, batch: int, seconds: float, quick: bool) -> dict | str:
    """A row, or in words why there is none."""
    hop = model.hop_length
    frames = max(2, round(seconds * case.rate / hop))
    mel = torch.rand(batch, model.n_mels, frames, generator=torch.Generator().manual_seed(1)) * 0.8

    def call(mel=mel):
        start = time.perf_counter()
        model.infer(mel, seed=1, precision=precision, threads=threads, **case.infer)
        return time.perf_counter() - start

    few = mel[:1, :, : max(2, round(0.05 * case.rate / hop))]
    call(few)  # packs the weights
    estimate = call(few) * batch * frames / few.shape[2]
    if estimate > LONGEST_CALL:
        return f"a call would take {estimate:.0f} s"
    peak, walls, end = peak_memory(call), [], time.perf_counter() + (0.02 if quick else MOST_SECONDS)
    while len(walls) < 3 or (len(walls) < CALLS and time.perf_counter() < end):
        walls.append(call())
    walls.sort()
    p50 = statistics.median(walls)
    audio = batch * frames * hop / case.rate
    first = first_audio(model, mel[0], precision, threads) if case.family == "wavenet" else p50
    return timer.rounded({
        "model": name, "contender": "fastvoc", "precision": precision, "threads": threads, "batch": batch, "seconds": seconds,
        "rtf": p50 / audio, "rtf_min": walls[0] / audio, "rtf_max": walls[-1] / audio, "samples_per_s": batch * frames * hop / p50,
        "p50_ms": p50 * 1e3, "p99_ms": walls[min(len(walls) - 1, int(0.99 * len(walls)))] * 1e3, "first_audio_ms": first * 1e3,
        "peak_mb": None if peak is None else peak / 1e6, "calls": len(walls),
    })  # fmt: skip


def first_audio(model, mel: torch.Tensor, precision: str, threads: int) -> float:
    """Seconds until a stream that gets its mel a frame at a time has samples, and they are made; median of five."""
    from fastvoc.models.wavenet_streams import generate

    walls = []
    for seed in range(5):
        start = time.perf_counter()
        stream = model.stream(seed=seed, precision=precision, threads=threads)
        for t in range(mel.shape[1]):
            stream.push(mel[:, t : t + 1], last=t == mel.shape[1] - 1)
            if stream.n_ready():
                break
        generate([stream])
        walls.append(time.perf_counter() - start)
    return statistics.median(walls)


def peak_memory(call) -> int | None:
    """Bytes by which the resident memory grows during a call, at most; None where the system does not tell."""
    status = Path("/proc/self/status")
    figure = lambda name: int(next(line for line in status.read_text().splitlines() if line.startswith(name)).split()[1]) * 1024
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not hide what is used now
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = figure("VmRSS")
        call()
        return max(figure("VmHWM") - before, 0)
    except (AttributeError, OSError):
        return None


@torch.inference_mode()
def run(quick: bool = False, n_threads: int | None = None, only: str = "") -> Iterator[dict]:
    """A part for each model, precision and number of threads. only: models whose name has this in it."""
    for name, case, model in models(quick):
        if only not in name:
            continue
        check(name, model, case)
        for precision in precisions_of(model):
            for threads in sorted({1, n_threads or fastvoc.get_num_threads()}):
                say(f"{name}, {precision}, {threads} threads")
                part = {"rows": [], "skipped": {}}
                for batch, seconds in [(1, 0.05), (2, 0.05)] if quick else BATCHES:
                    with timer.threads(threads), fastvoc.backend("cpu"):
                        row = measured(name, model, case, precision, threads, batch, seconds, quick)
                    if isinstance(row, str):
                        part["skipped"][f"{name}, {precision}, {threads} threads, {batch} × {seconds} s"] = row
                    else:
                        part["rows"].append(row)
                yield part
