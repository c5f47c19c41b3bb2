"""The feed-forward vocoders whole: mel in, samples out. Our plans beside what else runs the same stacks.

A contender of ours is the model as users call it. A peer is the same model with another implementation of its stacks
(stack_peers.py): upsampling, flows and sampling loop are common to all, and so is the noise, which is given.
"""

import importlib.util
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

import fastvoc
from benchmarks import stack_peers, timer
from benchmarks.bench_wavenet import say
from benchmarks.timer import Contender
from fastvoc.demo.random_weights import random_model

COLUMNS = [
    "model", "contender", "precision", "threads", "batch", "seconds", "rtf", "rtf_min", "rtf_max", "vs_eager", "gflop_per_s",
    "error_db", "disturbed_rounds",
]
REPORT = {
    "title": "Feed-forward vocoders", "group": ["model"], "vary": ["threads", "batch", "seconds"], "metric": "rtf",
    "unit": "s per s of audio", "better": "lower", "baseline": "PyTorch eager", "ours": "fastvoc",
    "realtime": {"column": "rtf", "where": {"batch": 1}},
    "tables": [{
        "title": "Error against float64", "where": {"threads": 1},
        "columns": {"model": "model", "contender": "contender", "precision": "precision", "error_db": "error, dB below the signal"},
    }],
}  # fmt: skip
METHOD = {
    "rtf": "seconds computed per second of audio, all items of the batch counted; median of interleaved rounds",
    "work": "infer: mel in, float samples out; upsampling, flows or denoising steps and heads included; the noise is given",
    "peers": "the same model with other implementations of its gated residual stacks; see benchmarks/stack_peers.py",
    "error_db": "rms of the difference to the model in float64 (PyTorch), relative to the rms of its output",
    "checked": "fp32: no further from float64 than twice PyTorch eager (+ 1e-6 of the peak); bf16: 20 dB below the signal",
    "gflop_per_s": "2 × multiply-adds of all stacks, conditioning included, over the whole time of the model",
}


@dataclass
class Case:
    """options: of the config;  infer: of the call"""

    family: str
    rate: int
    options: dict = field(default_factory=dict)
    infer: dict = field(default_factory=dict)
    seconds: float = 1.0  # of audio; less where PyTorch takes its time

    def build(self) -> torch.nn.Module:
        return random_model(self.family, **self.options)


CASES = {
    "Parallel WaveGAN v1": Case("parallel_wavegan", 22050, seconds=0.5),
    "DiffWave, 6 steps": Case("diffwave", 22050, infer={"schedule": "fast"}, seconds=0.125),
    "WaveGlow, 256 channels": Case("waveglow", 22050, infer={"sigma": 0.6}, seconds=0.25),
    "ClariNet student, 6 × 10": Case("parallel_wavenet", 22050, seconds=0.5),
}
COMPILE_SECONDS = 240  # from the start; models that begin later are timed without torch.compile
TINY = {
    "tiny": Case(
        "parallel_wavegan", 22050,
        {"layers": 4, "stacks": 2, "residual_channels": 8, "gate_channels": 16, "skip_channels": 8},
    )
}  # fmt: skip


def noise_of(model, family: str, B: int, n: int, steps: int, seed: int = 0):
    """The noise that `infer` takes, standard normal."""
    rng = torch.Generator().manual_seed(seed)
    rand = partial(torch.randn, generator=rng)
    if family == "diffwave":
        return rand(B, n), rand(steps - 1, B, n)
    if family == "waveglow":
        return [rand(*shape) for shape in model.noise_shapes(B, n // model.config.n_group)]
    return rand(B, n)


def contenders_of(model, case: Case, mel: Tensor, noise, n_threads: int, quick: bool, with_compile: bool):
    """name -> (precision, Contender), and what was left out and why."""
    stacks = stack_peers.stacks_of(model)
    infer = partial(model.infer, mel, noise=noise, **case.infer)
    around = lambda: timer.threads(n_threads)
    found, skipped = {}, {}
    for name, (precision, make) in stack_peers.PEERS.items():
        if quick and name not in stack_peers.QUICK:
            skipped[name] = "--quick"
            continue
        if name == "torch.compile" and not with_compile:
            skipped[name] = "it takes minutes to compile: with the most threads only, and while COMPILE_SECONDS last"
            continue

        def made(make=make):
            plans = [make(stack.weights()) for stack in stacks]

            def run():
                with stack_peers.running(stacks, plans):
                    return infer()

            return run

        run, reason = stack_peers.tried(made, around)
        if run is None:
            skipped[name] = reason
            continue
        found[name] = precision, Contender(run, around, threads=n_threads)
    for precision in ("fp32", "bf16"):

        def ours(precision=precision):
            with fastvoc.backend("cpu"):
                return infer(precision=precision, threads=n_threads)

        found[f"fastvoc {precision}"] = precision, Contender(ours, around, threads=n_threads)
    if "avx2" in timer.real_isas()[:-1]:  # what older machines have, beside a torch that uses what this one has

        def on_avx2():
            with fastvoc.backend("cpu"), timer.running_on("avx2"):
                return infer(precision="fp32", threads=n_threads)

        found["fastvoc, AVX2 alone"] = "fp32", Contender(on_avx2, around, threads=n_threads)
    if (package := upstream(model, case, mel, noise)) is not None:
        found["the upstream's package"] = "fp32", Contender(package, around, threads=n_threads)
    return found, skipped


def upstream(model, case: Case, mel: Tensor, noise):
    """The public package's own model and inference with these weights, where it is installed; else None."""
    if case.family == "parallel_wavegan" and importlib.util.find_spec("parallel_wavegan") and not case.options:
        from benchmarks.upstreams import parallel_wavegan

        return parallel_wavegan(model, mel, noise)
    if case.family == "diffwave" and importlib.util.find_spec("diffwave") and not case.options:
        from benchmarks.upstreams import diffwave

        return diffwave(model, mel, noise, case.infer["schedule"])
    return None


def macs_per_sample(model, case: Case, steps: int) -> float:
    """Multiply-adds of the stacks per output sample."""
    group = getattr(model.config, "n_group", 1)
    per_row = 0
    for stack in stack_peers.stacks_of(model):
        w = stack.weights()
        per_row += w.w_in.numel() + w.w_cond.numel() + w.w_out.numel() - w.w_out[-1, : w.w_in.shape[2]].numel()
    return per_row * steps / group


def bench(
    name: str, case: Case, B: int, seconds: float, n_threads: int, quick: bool, with_compile: bool
) -> tuple[list[dict], dict]:
    model = case.build()
    frames = max(2, round(seconds * case.rate / model.hop_length))
    n = frames * model.hop_length
    steps = len(model.config.fast_schedule) if case.family == "diffwave" else 1
    rng = torch.Generator().manual_seed(1)
    mel = torch.rand(B, model.n_mels, frames, generator=rng) * 0.8
    noise = noise_of(model, case.family, B, n, steps)
    say(f"{name}, batch {B}, {seconds} s, {n_threads} threads")
    double = lambda x: x.double() if isinstance(x, Tensor) else type(x)(double(y) for y in x)
    with timer.threads(n_threads), fastvoc.backend("reference"):
        exact = case.build().double().infer(mel.double(), noise=double(noise), **case.infer).double()
    contenders, skipped = contenders_of(model, case, mel, noise, n_threads, quick, with_compile)
    if "PyTorch eager" not in contenders:  # what all others are compared with
        raise RuntimeError(f"{name}: PyTorch eager does not run: {skipped['PyTorch eager']}")
    errors = {}
    for contender, (_, c) in contenders.items():
        with c.around():
            errors[contender] = c.run().double() - exact
    signal, peak = float(exact.pow(2).mean().sqrt()), float(exact.abs().max())
    eager = float(errors["PyTorch eager"].abs().max())
    for contender, (precision, _) in contenders.items():
        worst, rms = float(errors[contender].abs().max()), float(errors[contender].pow(2).mean().sqrt())
        if not (worst <= 2 * eager + 1e-6 * peak if precision == "fp32" else rms <= 0.1 * signal):
            raise timer.DisagreementError(f"{name}: {contender} is off by {worst:.3g} (rms {rms:.3g}, signal {signal:.3g})")
    for _, c in contenders.values():
        c.output = lambda: None  # all were checked just now
    times = timer.interleave(
        {k: c for k, (_, c) in contenders.items()}, 2 if quick else 3, min_time=0, retries=1, check=lambda *_: None
    )
    audio, rows = B * n / case.rate, []
    macs = macs_per_sample(model, case, steps) * B * n
    for contender, (precision, _) in contenders.items():
        t, rms = times[contender], float(errors[contender].pow(2).mean().sqrt())
        rows.append(timer.rounded({
            "model": name, "contender": contender.removesuffix(" fp32").removesuffix(", bf16").removesuffix(" bf16"),
            "precision": precision, "threads": n_threads, "batch": B, "seconds": seconds, "rtf": t.median / audio,
            "rtf_min": t.min / audio, "rtf_max": t.max / audio, "samples_per_s": B * n / t.median,
            "vs_eager": times["PyTorch eager"].median / t.median, "gflop_per_s": 2 * macs / t.median / 1e9,
            "error_db": 20 * math.log10(max(rms, 1e-30) / signal), **t.facts(),
        }))  # fmt: skip
    return rows, {f"{name}, {what}": reason for what, reason in skipped.items()}


@torch.inference_mode()
def run(quick: bool = False, n_threads: int | None = None, only: str = "") -> Iterator[dict]:
    """A part for each model and number of threads. only: models whose name has this in it."""
    most, start = n_threads or fastvoc.get_num_threads(), time.monotonic()
    for name, case in (TINY if quick else CASES).items():
        for threads in sorted({1, most}):
            if only in name:
                with_compile = threads == most and time.monotonic() - start < COMPILE_SECONDS
                rows, skipped = bench(name, case, 1, 0.05 if quick else case.seconds, threads, quick, with_compile)
                yield {"rows": rows, "skipped": skipped}

