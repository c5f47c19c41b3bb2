"""The gated residual stack alone, in the sizes of the five vocoders: our plan on each instruction set, beside its peers.

Everybody starts from the same x and conditioning at the stack's own rate; upsampling, flows and sampling are no part of it.
"""

from collections.abc import Iterator
from functools import partial

import torch

import fastvoc
from benchmarks import timer
from benchmarks.bench_wavenet import say
from benchmarks.stack_peers import PEERS, QUICK, tried
from benchmarks.timer import Contender
from fastvoc.ops.gated_residual_stack import PRECISIONS, CpuPlan, ReferencePlan, StackWeights

COLUMNS = [
    "stack", "contender", "precision", "isa", "threads", "ms", "ms_min", "ms_max", "rtf", "gflop_per_s", "vs_eager",
    "vs_best_fp32_peer", "error", "disturbed_rounds",
]  # fmt: skip
REPORT = {
    "title": "Gated residual stacks", "group": ["stack"], "vary": ["threads"], "metric": "rtf", "unit": "s per s of audio",
    "better": "lower", "baseline": "PyTorch eager", "ours": "fastvoc", "tables": [],
}  # fmt: skip
METHOD = {
    "work": "the stack alone: x and conditioning at its own rate are there, time-major; no upsampling, noise or head",
    "rtf": "seconds computed per second of audio (DiffWave: for one step of its diffusion; WaveGlow: for one of its flows)",
    "gflop_per_s": "2 × multiply-adds as the formulas count them, conditioning included, over the median",
    "error": "largest difference to float64",
    "checked": "fp32: no further from float64 than twice PyTorch eager and one rounding; bf16: twice PyTorch in bf16",
}
# L, R, half gate, S, C, k, dilation cycle, causal, step, rows per second
CASES = {
    "Parallel WaveGAN v1": (30, 64, 64, 64, 80, 3, 10, False, False, 22050),
    "DiffWave 64, one step": (30, 64, 64, 64, 80, 3, 10, False, True, 22050),
    "WaveGlow 256, one flow": (8, 256, 256, 256, 640, 3, 8, False, False, 22050 / 8),
    "ClariNet student, 6 × 10": (60, 64, 64, 64, 80, 3, 10, True, False, 22050),
}
SECONDS = 0.5  # of audio
TINY = {"tiny": (3, 8, 8, 8, 5, 3, 2, False, True, 1000)}


def weights_of(L, R, H, S, C, k, cycle, causal) -> StackWeights:
    """Random, with activations of order one in every layer, as trained ones have."""
    rng = torch.Generator().manual_seed(0)
    rand = lambda *shape, fan: torch.randn(*shape, generator=rng) * 0.7 / fan**0.5
    return StackWeights(
        rand(L, 2 * H, R, k, fan=R * k), rand(L, 2 * H, fan=100), rand(L, 2 * H, C, fan=2 * C), rand(L, R + S, H, fan=H),
        rand(L, R + S, fan=100), tuple(2 ** (l % cycle) for l in range(L)), causal, 0.5**0.5,
    )  # fmt: skip


def inputs_of(L, R, C, has_step, rows) -> tuple:
    rng = torch.Generator().manual_seed(1)
    rand = lambda *shape: torch.randn(*shape, generator=rng)
    return rand(1, rows, R), rand(1, rows, C), rand(1, L, R) if has_step else None


def double(weights: StackWeights) -> StackWeights:
    return StackWeights(**{n: v.double() if isinstance(v, torch.Tensor) else v for n, v in vars(weights).items()})


def ours(weights: StackWeights, args, n_threads: int, quick: bool) -> dict:
    """fp32 on every instruction set of this machine, bf16 on the one that fastvoc chooses."""
    found = {}
    for isa in timer.real_isas():
        for precision in PRECISIONS if isa == fastvoc.cpu_isa() else PRECISIONS[:1]:
            if quick and isa != fastvoc.cpu_isa():
                continue
            plan = CpuPlan(weights, precision, n_threads)
            run = lambda plan=plan: plan.run(*args)
            found["fastvoc", precision, isa] = Contender(run, lambda isa=isa: timer.running_on(isa), threads=n_threads)
    return found


def peers(weights: StackWeights, args, n_threads: int, quick: bool) -> tuple[dict, dict]:
    found, skipped = {}, {}
    around = lambda: timer.threads(n_threads)
    for name, (precision, make) in PEERS.items():
        if name == "torch.compile" or (quick and name not in QUICK):
            skipped[name] = "minutes of compilation: see `benchmarks models`" if name == "torch.compile" else "--quick"
            continue
        run, reason = tried(lambda make=make: partial(make(weights).run, *args), around)
        if run is None:
            skipped[name] = reason
            continue
        found[name.removesuffix(", bf16"), precision, None] = Contender(run, around, threads=n_threads)
    return found, skipped


def bench(name: str, case, n_threads: int, seconds: float, quick: bool) -> tuple[list[dict], dict]:
    L, R, H, S, C, k, cycle, causal, has_step, rate = case
    say(f"{name}, {n_threads} threads")
    weights, args = weights_of(L, R, H, S, C, k, cycle, causal), inputs_of(L, R, C, has_step, int(rate * seconds))
    with timer.threads(n_threads):
        exact = ReferencePlan(double(weights)).run(*[None if a is None else a.double() for a in args])
    contenders, skipped = peers(weights, args, n_threads, quick)
    contenders |= ours(weights, args, n_threads, quick)
    errors = {}
    for key, c in contenders.items():
        with c.around():
            errors[key] = float((c.run().double() - exact).abs().max())
    yardstick = {
        "fp32": errors["PyTorch eager", "fp32", None] + torch.finfo(torch.float32).eps / 2 * float(exact.abs().max()),
        "bf16": max(error for key, error in errors.items() if key[0].startswith("PyTorch") and key[1] == "bf16"),
    }
    for key, error in errors.items():
        if not error <= 2 * yardstick[key[1]]:
            raise timer.DisagreementError(f"{name}: {key} is off by {error:.3g}, allowed are {2 * yardstick[key[1]]:.3g}")
    for c in contenders.values():
        c.output = lambda: None  # all were checked just now
    times = timer.interleave(contenders, 2 if quick else 3, min_time=0, retries=1, check=lambda *_: None)
    flop = 2 * int(rate * seconds) * (weights.w_in.numel() + weights.w_cond.numel() + weights.w_out.numel())
    best = min(t.median for key, t in times.items() if key[1] == "fp32" and key[0] != "fastvoc")
    rows = []
    for (contender, precision, isa), t in times.items():
        rows.append(timer.rounded({
            "stack": name, "contender": contender, "precision": precision, "isa": isa, "threads": n_threads,
            "ms": t.median * 1e3, "ms_min": t.min * 1e3, "ms_max": t.max * 1e3, "rtf": t.median / seconds,
            "gflop_per_s": flop / t.median / 1e9, "vs_eager": times["PyTorch eager", "fp32", None].median / t.median,
            "vs_best_fp32_peer": best / t.median, "error": errors[contender, precision, isa], **t.facts(),
        }))  # fmt: skip
    return rows, {f"{name}, {what}": reason for what, reason in skipped.items()}


@torch.inference_mode()
def run(quick: bool = False, n_threads: int | None = None, only: str = "") -> Iterator[dict]:
    """A part for each stack and number of threads. only: stacks whose name has this in it."""
    for name, case in (TINY if quick else CASES).items():
        for threads in sorted({1, n_threads or fastvoc.get_num_threads()}):
            if only in name:
                rows, skipped = bench(name, case, threads, 1.0 if quick else SECONDS, quick)
                yield {"rows": rows, "skipped": skipped}
