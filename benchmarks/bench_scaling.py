"""Time against length, channels, batch and threads: linear where it should be, and no cliffs between neighbouring sizes.

A cliff is found by two rules. A larger size that takes less time than a smaller one: padding would have paid. And a size whose
work takes much longer a piece than it does at the smaller sizes.
"""

import math
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch

import fastvoc
from benchmarks import timer
from benchmarks.bench_ops import accuracy_rule, forced
from benchmarks.bench_stack import inputs_of, weights_of
from benchmarks.bench_wavenet import NV, macs_per_sample, plan_loop, say, tamed
from benchmarks.stack_peers import EagerStack, PeerPlan
from benchmarks.timer import Contender
from fastvoc import WaveNet
from fastvoc._op import OPS
from fastvoc.ops import gated_residual_stack as stacks
from fastvoc.ops import wavenet_generate as generation

COLUMNS = ["kernel", "sweep", "size", "contender", "precision", "threads", "us", "us_min", "us_max", "ns_per_unit", "gflop_per_s",
           "disturbed_rounds"]  # fmt: skip
LENGTHS = [1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000]
CHANNELS = [1, 2, 3, 4, 6, 8, 12, 15, 16, 17, 20, 24, 28, 31, 32, 33, 40, 48, 56, *range(60, 69), 72, 80, 88, 95, 96, 97, 100, 104,
            112, 120, 127, 128, 129, 144, 160, 192, 224, 255, 256, 257]  # fmt: skip
BATCHES = [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 24, 32]
PADDING_PAYS = 1.15  # times longer than a larger size: a cliff
SUPERLINEAR = 1.5  # times longer a piece than the best smaller size of at least SMALLEST of work: a cliff
SMALLEST = 1e-4  # seconds: below, a call's fixed cost is what is measured
EAGER_UP_TO = 10_000  # rows: beyond, PyTorch takes its time and shows nothing new
METHOD = {
    "work": "stack and WaveNet: conditioning 1x1 included, at the kernel's rate, as benchmarks stack and wavenet have it; "
    "operators: one call, fresh outputs",
    "us": "one call, median of interleaved rounds",
    "unit": "ns_per_unit: a row or sample of one item (length, batch, threads), a multiply-add (channels)",
    "cliffs": f"sizes that take over {PADDING_PAYS} times as long as a larger one, or over {SUPERLINEAR} times as long a piece as "
    f"the best smaller one of at least {SMALLEST * 1e6:.0f} us",
    "checked": "stack: 1e-4 of the rms of PyTorch eager's result in fp32, 3 % in bf16; WaveNet: 16 forced samples beside the "
    "reference, 1e-3 in fp32, 3 % in bf16, 6 % in int8; operators: as benchmarks ops",
}


def _curve(title, kernel, sweep, x_label, y="us", y_label="µs a call", **more) -> dict:
    return {"title": title, "x": "size", "y": y, "series": ["contender", "precision", "threads_label"], "x_label": x_label,
            "y_label": y_label, "where": {"kernel": kernel, "sweep": sweep}, **more}  # fmt: skip


STACK, WAVENET = "gated_residual_stack", "wavenet_generate"
REPORT = {
    "title": "Scaling", "group": ["kernel", "sweep"], "vary": ["size", "threads"], "metric": "us", "unit": "µs", "better": "lower",
    "ours": "fastvoc",
    "curves": [
        _curve("Stack, 10 layers of 64: time against length", STACK, "length", "rows"),
        _curve("Stack, 4 layers, 2000 rows: speed against channels", STACK, "channels", "residual, gate and skip channels each",
               "gflop_per_s", "GFLOP/s", axes="linear"),
        _curve("Stack, 10 layers of 64, 500 rows: time against batch", STACK, "batch", "items"),
        _curve("Stack, 10 layers of 64, 20,000 rows: time against threads", STACK, "threads", "threads", axes="linear"),
        _curve("WaveNet R64 S256 L20: time against length", WAVENET, "length", "samples"),
        _curve("WaveNet, 20 layers: speed against channels", WAVENET, "channels", "residual channels; gates of twice as many",
               "gflop_per_s", "GFLOP/s", axes="linear"),
        _curve("WaveNet R64 S256 L20: time against streams, 64 samples each", WAVENET, "batch", "streams"),
        _curve("WaveNet R64 S256 L20, 8 streams: time against threads", WAVENET, "threads", "threads", axes="linear"),
        *(_curve(f"{name}: time against length", name, "length", "samples a channel")
          for name in ("gated_activation", "affine_coupling", "invertible_conv1x1")),
        _curve("invertible_conv1x1, 20,000 samples: time against channels", "invertible_conv1x1", "channels", "channels"),
    ],
    "tables": [{
        "title": "Cliffs", "rows": "cliffs", "empty": "None found.",
        "columns": {"kernel": "kernel", "sweep": "sweep", "series": "who", "size": "size", "next_to": "next to",
                    "factor": "times worse", "rule": "rule"},
    }],
}  # fmt: skip


def in_words(n: int) -> str:
    return f"{n} thread{'s' if n > 1 else ''}"


class Sweep:
    """One kernel along one axis: rows, and the cliffs in them."""

    def __init__(self, kernel: str, sweep: str, quick: bool):
        self.kernel, self.sweep, self.rows = kernel, sweep, []
        self.how = dict(rounds=2 if quick else 3, min_time=0.002 if quick else 0.01, retries=1)
        say(f"{kernel}: {sweep}")

    def measure(self, size: int, contenders: dict, units: float, macs: float | None, check: Callable) -> None:
        """contenders: (name, precision, threads) -> Contender, the first one the yardstick of `check(key, output, first)`.

        units: what ns_per_unit counts
        """
        for key, c in contenders.items():  # told apart by `check`, which must know whose output it sees
            c.output = lambda key=key, run=c.output or c.run: (key, run())
        times = timer.interleave(contenders, check=lambda output, first: check(output[0], output[1], first[1]), **self.how)
        for (name, precision, threads), t in times.items():
            self.rows.append(timer.rounded({
                "kernel": self.kernel, "sweep": self.sweep, "size": size, "contender": name, "precision": precision,
                "threads": threads, "threads_label": "" if self.sweep == "threads" else in_words(threads),
                "us": t.median * 1e6, "us_min": t.min * 1e6, "us_max": t.max * 1e6, "ns_per_unit": t.median / units * 1e9,
                "gflop_per_s": None if macs is None else 2 * macs / t.median / 1e9, **t.facts(),
            }))  # fmt: skip

    def part(self) -> dict:
        return {"rows": self.rows, "cliffs": cliffs(self.rows)}


def cliffs(rows: list[dict]) -> list[dict]:
    """Where our contenders break the two rules of METHOD, worst first. Judged by the minima: a neighbour's noise is no cliff."""
    series: dict = {}
    for r in rows:
        if r["contender"] == "fastvoc" and r["sweep"] != "threads":
            series.setdefault((r["kernel"], r["sweep"], r["precision"], r["threads"]), []).append(r)
    found = []
    for (kernel, sweep, precision, threads), some in series.items():
        some = sorted(some, key=lambda r: r["size"])
        who = {"kernel": kernel, "sweep": sweep, "series": f"{precision}, {in_words(threads)}"}
        for here, larger in pairwise(some):
            factor = here["us_min"] / larger["us_min"]
            if factor > PADDING_PAYS and here["us_min"] > 10:
                where = {"size": here["size"], "next_to": larger["size"]}
                found.append({**who, **where, "factor": factor, "rule": "padding would pay"})
        best = None
        for r in some:
            cost = r["ns_per_unit"] * r["us_min"] / r["us"]
            if best is not None and cost > SUPERLINEAR * best[0]:
                found.append({**who, "size": r["size"], "next_to": best[1], "factor": cost / best[0], "rule": "dearer a piece"})
            if r["us_min"] >= SMALLEST * 1e6 and (best is None or cost < best[0]):
                best = cost, r["size"]
    return sorted((timer.rounded(f) for f in found), key=lambda f: -f["factor"])


def near(limits: dict[str, float]) -> Callable:
    """A check: the rms of the difference, as a share of the first contender's rms, by precision."""

    def check(key, output, first):
        error, signal = (float(t.double().pow(2).mean().sqrt()) for t in (output - first, first))
        limit = limits[key[1]]
        return None if error <= limit * signal else f"its rms error is {error / signal:.3g} of the signal, allowed are {limit:.3g}"

    return check


# ---- the stack -------------------------------------------------------------------------------------------------------


def stack_contenders(shape, B: int, rows: int, threads: list[int], eager: bool) -> tuple[dict, float]:
    """shape: as weights_of takes it. -> contenders, multiply-adds"""
    L, R, _, _, C, *_ = shape
    weights = weights_of(*shape)
    x, cond, _ = (None if t is None else t.expand(B, -1, -1).contiguous() for t in inputs_of(L, R, C, False, rows))
    found = {}
    peer = PeerPlan(EagerStack(weights).eval())
    if eager:
        found["PyTorch eager", "fp32", 1] = Contender(lambda: peer.run(x, cond), lambda: timer.threads(1))
    for precision in stacks.PRECISIONS:
        for n in threads:
            plan = stacks.CpuPlan(weights, precision, n)
            found["fastvoc", precision, n] = Contender(lambda plan=plan: plan.run(x, cond), threads=n)
    macs = weights.w_in.numel() + weights.w_cond.numel() + weights.w_out.numel()
    return found, float(macs) * B * rows


NEAR_STACK = near({"fp32": 1e-4, "high": 1e-3, "bf16": 0.03})


def sweep_stack(most: int, quick: bool) -> Iterator[dict]:
    layers = (10, 64, 64, 64, 80, 3, 10, False)
    counts = sorted({1, most})
    sweep = Sweep(STACK, "length", quick)
    for rows in pick(LENGTHS, quick, 2000):
        found, macs = stack_contenders(layers, 1, rows, counts, rows <= EAGER_UP_TO)
        sweep.measure(rows, found, rows, macs, NEAR_STACK)
    yield sweep.part()
    sweep = Sweep(STACK, "channels", quick)
    for c in pick(CHANNELS, quick, 17):
        found, macs = stack_contenders((4, c, c, c, 80, 3, 4, False), 1, 100 if quick else 2000, [1], True)
        sweep.measure(c, found, macs, macs, NEAR_STACK)
    yield sweep.part()
    sweep, rows = Sweep(STACK, "batch", quick), 50 if quick else 500
    for B in pick(BATCHES, quick, 3):
        found, macs = stack_contenders(layers, B, rows, counts, True)
        sweep.measure(B, found, B * rows, macs, NEAR_STACK)
    yield sweep.part()
    sweep, rows = Sweep(STACK, "threads", quick), 100 if quick else 20_000
    for n in range(1, most + 1):
        found, macs = stack_contenders(layers, 1, rows, [n], n == 1)
        sweep.measure(n, found, rows, macs, NEAR_STACK)
    yield sweep.part()


# ---- WaveNet ---------------------------------------------------------------------------------------------------------

NEAR_WAVENET = near({"fp32": 1e-3, "bf16": 0.03, "int8": 0.06})
N_FORCED = 16


def wavenet_contenders(model: WaveNet, streams: int, samples: int, threads: list[int], loop: bool) -> tuple[dict, float]:
    weights = model.weights()
    rng = torch.Generator().manual_seed(1)
    n = max(samples, N_FORCED)
    cond = list(torch.randn(streams, n, weights.w_cond.shape[2], generator=rng) * 0.5)
    forced = list(torch.randint(weights.n_classes, (streams, N_FORCED), generator=rng).float())
    found = {}

    def add(name, precision, threads, plan):
        run = plan_loop(plan)
        found[name, precision, threads] = Contender(
            lambda: run(samples, cond), lambda: timer.threads(threads), lambda: run(N_FORCED, cond, forced), threads
        )

    if loop:
        add("PyTorch loop", "fp32", 1, generation.ReferencePlan(weights))
    for precision in generation.PRECISIONS:
        for t in threads:
            add("fastvoc", precision, t, generation.CpuPlan(weights, precision, t))
    return found, float(macs_per_sample(weights)) * streams * samples


def sweep_wavenet(most: int, quick: bool) -> Iterator[dict]:
    def build(**changes):
        torch.manual_seed(0)
        return tamed(WaveNet(**NV | changes).eval())

    model, counts = build(), sorted({1, most})
    sweep = Sweep(WAVENET, "length", quick)
    for samples in pick([n for n in LENGTHS if n <= 20_000], quick, 50):
        found, macs = wavenet_contenders(model, 1, samples, counts, samples <= 50)
        sweep.measure(samples, found, samples, macs, NEAR_WAVENET)
    yield sweep.part()
    sweep = Sweep(WAVENET, "channels", quick)
    for c in pick(CHANNELS, quick, 17):
        found, macs = wavenet_contenders(build(residual_channels=c, gate_channels=2 * c), 1, 64, [1], False)
        sweep.measure(c, found, macs, macs, NEAR_WAVENET)
    yield sweep.part()
    sweep = Sweep(WAVENET, "batch", quick)
    for streams in pick(BATCHES, quick, 3):
        found, macs = wavenet_contenders(model, streams, 64, counts, streams in (1, 8, 32) and not quick)
        sweep.measure(streams, found, streams * 64, macs, NEAR_WAVENET)
    yield sweep.part()
    sweep, samples = Sweep(WAVENET, "threads", quick), 16 if quick else 200
    for n in range(1, most + 1):
        found, macs = wavenet_contenders(model, 8, samples, [n], False)
        sweep.measure(n, found, 8 * samples, macs, NEAR_WAVENET)
    yield sweep.part()


# ---- operators -------------------------------------------------------------------------------------------------------

CASES = {"gated_activation": (1, 64), "affine_coupling": (1, 4), "invertible_conv1x1": (1, 8)}


def op_contenders(name: str, case: tuple, threads: list[int], dtype: torch.dtype = torch.float32) -> tuple[dict, Callable]:
    op, precision = OPS[name], "bf16" if dtype == torch.bfloat16 else "fp32"
    args = op.make_args(case, dtype, "cpu")
    rule = accuracy_rule(op, args)
    found = {("PyTorch eager", precision, 1): Contender(lambda: op.reference(*args), lambda: timer.threads(1))}
    for n in threads:
        found["fastvoc", precision, n] = Contender(lambda: op(*args), forced("cpu", fastvoc.cpu_isa(), n), threads=n)
    return found, lambda key, output, first: rule(output, first)


def sweep_ops(most: int, quick: bool) -> Iterator[dict]:
    for name, (B, C) in CASES.items():
        sweep = Sweep(name, "length", quick)
        for length in pick(LENGTHS, quick, 1000):
            found, check = op_contenders(name, (B, C, length), sorted({1, most}))
            sweep.measure(length, found, length, None, check)
        yield sweep.part()
    sweep = Sweep("invertible_conv1x1", "channels", quick)
    length = 1000 if quick else 20_000
    for C in pick([c for c in range(1, 33)], quick, 9):
        found, check = op_contenders("invertible_conv1x1", (1, C, length), [1])
        sweep.measure(C, found, C * C * length, float(C * C * length), check)
    yield sweep.part()


def pick(sizes: list[int], quick: bool, most: int) -> list[int]:
    """With --quick the first, a middle one and `most`."""
    small = [s for s in sizes if s <= most]
    return sorted({small[0], small[len(small) // 2], small[-1]}) if quick else sizes


@torch.inference_mode()
def run(quick: bool = False, n_threads: int | None = None, only: str = "") -> Iterator[dict]:
    """A part for each sweep. only: kernels whose name has this in it."""
    start, most = time.monotonic(), n_threads or fastvoc.get_num_threads()
    yield {"cliffs": []}
    for name, sweeps in ((STACK, sweep_stack), (WAVENET, sweep_wavenet), (" ".join(CASES), sweep_ops)):
        if only in name:
            yield from sweeps(most, quick)
    yield {"seconds": math.ceil(time.monotonic() - start)}
