"""Every CPU kernel under the ceilings of this machine: operations per second over operations per byte, all of one run."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

import fastvoc
from benchmarks import ceilings, timer
from benchmarks.bench_models import CASES as MODELS
from benchmarks.bench_scaling import NEAR_STACK, NEAR_WAVENET, op_contenders, stack_contenders, wavenet_contenders
from benchmarks.bench_stack import CASES as STACKS
from benchmarks.bench_wavenet import NV, macs_per_sample, say, tamed
from benchmarks.timer import Contender
from fastvoc import WaveNet
from fastvoc._memory import keep_freed_memory
from fastvoc._op import OPS
from fastvoc.ops import wavenet_generate as generation
from fastvoc.ops.upsample import Fir, upsample_reference, upsample_samples

COLUMNS = ["kernel", "case", "precision", "threads", "us", "gflop_per_s", "flop_per_byte", "gb_per_s", "bound", "of_bound",
           "disturbed_rounds"]  # fmt: skip
METHOD = {
    "work": "one call on data that is there, conditioning 1x1 included in stack and WaveNet; outputs get the same memory in every "
    "call, as that of the copy does: pages that the system must clear are no part of a kernel (benchmarks ops has them)",
    "operations": "of the formulas: a multiply-add is two, exp, tanh, sigmoid and a division are one each. Minimal filtering "
    "multiplies less than its formula, so that the stack may stand above its ceiling",
    "bytes": "inputs, outputs and weights once. Of generation the packed weights once a sample of all streams: they are read "
    "from a cache, and so is what the ceiling `from` names",
    "ceilings": "benchmarks/ceilings.c: independent multiply-adds in registers, and reads of arrays of half of L2 and a quarter "
    "of L3 for each thread; memory: torch's copy_ of 256 MB, read and written. Their best, like every ceiling",
    "bound": "the lower of peak and intensity times bandwidth; of_bound: gflop_per_s over it, by the median",
    "checked": "as benchmarks ops, and as benchmarks scaling",
}
REPORT = {
    "title": "Roofline", "group": ["kernel", "case"], "vary": ["threads"], "metric": "gflop_per_s", "unit": "GFLOP/s",
    "better": "higher", "ours": "fastvoc",
    "roofline": {"title": "Every CPU kernel, one thread", "where": {"threads": 1}, "intensity": "flop_per_byte",
                 "rate": "flop_per_s", "label": ["family"], "marker": "precision", "ceilings": []},
    "tables": [{
        "title": "How near the ceiling", "columns": {
            "kernel": "kernel", "case": "case", "precision": "precision", "threads": "threads", "gflop_per_s": "GFLOP/s",
            "flop_per_byte": "operations/byte", "bound": "ceiling, GFLOP/s", "from": "set by", "of_bound": "of the ceiling"},
    }],
}  # fmt: skip

# Operations per element of the first tensor (invertible_conv1x1: times channels), and a case that leaves the caches
OUT_OF_CACHE = {
    "gated_activation": (3, (1, 256, 65536)),
    "gated_activation_backward": (10, (1, 256, 65536)),
    "affine_coupling": (4, (1, 4, 2 << 20)),
    "affine_coupling_inverse": (3, (1, 4, 2 << 20)),
    "affine_coupling_backward": (5, (1, 4, 2 << 20)),
    "invertible_conv1x1": (2, (1, 8, 1 << 20)),
    "invertible_conv1x1_backward": (4, (1, 8, 1 << 20)),
}
LAYERS = [  # operator, its products over those of a forward pass, dtype
    (name, times, dtype)
    for dtype in (torch.float32, torch.bfloat16)
    for name, times in (("gated_residual", 1), ("gated_residual_backward", 2))
]
STREAMS = (1, 8)


@dataclass
class Ceilings:
    """Of some threads: operations per second by precision, bytes per second by where the data lies."""

    peak: dict[str, float]
    bandwidth: dict[str, float]

    def bound(self, precision: str, intensity: float, home: str) -> tuple[float, str]:
        peak, slope = self.peak[precision], intensity * self.bandwidth[home]
        return (slope, home) if slope < peak else (peak, f"{precision} peak")


def measured(n_threads: int, quick: bool) -> Ceilings:
    seconds, lib = 0.02 if quick else 0.3, ceilings.library()
    peak = {kind: ceilings.operations_per_s(kind, n_threads, seconds, lib) for kind in ceilings.KINDS}
    # Without instructions of its own a precision is computed as the next wider one
    peak["bf16"] = max(peak["bf16"] or 0, peak["fp32"])
    peak["int8"] = max(peak["int8"] or 0, peak["fp32"])
    sizes = {"L2": cache_size(2) // 2, "L3": min(cache_size(3) // 4, 16 << 20) // n_threads}
    bandwidth = {name: ceilings.read_bytes_per_s(n, n_threads, seconds, lib) for name, n in sizes.items()}
    bandwidth["memory"] = timer.copy_bandwidth(n_threads, seconds, (16 if quick else 256) << 20)
    return Ceilings(peak, bandwidth)


def cache_size(level: int) -> int:
    try:
        return os.sysconf(f"SC_LEVEL{level}_CACHE_SIZE") or 1 << 10 + 5 * level
    except ValueError:  # not Linux's C library
        return 1 << 10 + 5 * level  # 1 MB and 32 MB


def placed(top: Ceilings, kernel: str, case: str, found: dict, flop: float, n_bytes, home, check, quick: bool) -> list[dict]:
    """Rows of the contenders of ours. n_bytes, home: numbers, or functions of a contender's key."""
    of = lambda what, key: what(key) if callable(what) else what
    for key, c in found.items():
        c.output = lambda key=key, run=c.output or c.run: (key, run())
    times = timer.interleave(
        found, 2 if quick else 5, min_time=0.002 if quick else 0.03, retries=1,
        check=lambda output, first: check(output[0], output[1], first[1]),
    )  # fmt: skip
    rows = []
    for key, t in times.items():
        if key[0] != "fastvoc":
            continue
        rate, moved = flop / t.median, of(n_bytes, key)
        bound, limit = top.bound(key[1], flop / moved, of(home, key))
        rows.append(timer.rounded({
            "kernel": kernel, "family": kernel.removesuffix("_backward").removesuffix("_inverse"), "case": case,
            "contender": "fastvoc", "precision": key[1], "threads": key[2], "us": t.median * 1e6,
            "us_min": t.min * 1e6, "us_max": t.max * 1e6, "flop_per_s": rate, "gflop_per_s": rate / 1e9,
            "flop_per_byte": flop / moved, "gb_per_s": moved / t.median / 1e9, "bound": bound / 1e9, "from": limit,
            "of_bound": rate / bound, **t.facts(),
        }))  # fmt: skip
    return rows


def operators(top: Ceilings, n: int, quick: bool) -> Iterator[list[dict]]:
    for name, (per_element, case) in OUT_OF_CACHE.items():
        case = (*case[:2], 1000) if quick else case
        found, check = op_contenders(name, case, [n])
        tensors = moved_by(name, case)
        flop = per_element * tensors[0].numel() * (case[1] if name.startswith("invertible") else 1)
        yield placed(top, name, "out of cache", found, flop, sum(t.nbytes for t in tensors), "memory", check, quick)
    for name, times, dtype in LAYERS:
        for label in ("parallel wavegan layer, 1 s", "waveglow layer, 1 s"):
            B, T, R, H, S, k, *rest = OPS[name].cases[label]
            case = (B, 100 if quick else T, R, H, S, k, *rest)
            found, check = op_contenders(name, case, [n], dtype)
            flop = 2.0 * times * B * case[1] * (2 * H * R * k + (R + S) * H)
            n_bytes = sum(t.nbytes for t in moved_by(name, case, dtype))
            kernel = name if dtype == torch.float32 else name.replace("gated_residual", "gated_residual_bf16")
            yield placed(top, kernel, label, found, flop, n_bytes, "memory", check, quick)


def moved_by(name: str, case: tuple, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """The operator's tensors, inputs first, each counted once."""
    op = OPS[name]
    args = op.make_args(case, dtype, "cpu")
    return [t for t in (*args, *timer.as_tuple(op.reference(*args))) if isinstance(t, torch.Tensor)]


def stacks(top: Ceilings, n: int, quick: bool) -> Iterator[list[dict]]:
    for name, (L, R, H, S, C, k, cycle, causal, _, rate) in STACKS.items():
        rows = 64 if quick else int(rate * 0.5)
        found, macs = stack_contenders((L, R, H, S, C, k, cycle, causal), 1, rows, [n], True)
        size = lambda key: 2 if key[1] == "bf16" else 4
        n_bytes = lambda key: 4 * rows * (R + C + S) + size(key) * macs / rows
        yield placed(top, "gated_residual_stack", name, found, 2 * macs, n_bytes, "memory", NEAR_STACK, quick)


def wavenet(top: Ceilings, n: int, quick: bool) -> Iterator[list[dict]]:
    torch.manual_seed(0)
    model = tamed(WaveNet(**NV).eval())
    plans = {p: generation.CpuPlan(model.weights(), p, n).packed_bytes for p in generation.PRECISIONS}
    for streams in STREAMS:
        samples = 20 if quick else 300
        found, _ = wavenet_contenders(model, streams, samples, [n], False)
        flop = 2.0 * macs_per_sample(model.weights()) * streams * samples
        n_bytes = lambda key: plans[key[1]] * samples
        home = lambda key: "L2" if plans[key[1]] / n <= cache_size(2) else "L3"
        case = f"R64 S256 L20, {streams} stream{'s' if streams > 1 else ''}"
        yield placed(top, "wavenet_generate", case, found, flop, n_bytes, home, NEAR_WAVENET, quick)


def upsampling(top: Ceilings, n: int, quick: bool) -> Iterator[list[dict]]:
    if n > 1:
        return  # it runs on one thread
    for name in ("Parallel WaveGAN v1", "ClariNet student, 6 × 10"):
        stages = MODELS[name].build().upsample_net.stages()
        frames = 10 if quick else 100
        mel = torch.randn(1, 80, frames)
        flop, length, sizes = 0.0, frames, 0
        for stage in stages:
            length = (length - stage.weight.shape[1] + 1 if stage.edge == "valid" else length) * stage.scale
            per_sample = stage.weight[0].numel() * (mel.shape[1] if isinstance(stage, Fir) else 1)
            flop, sizes = flop + 2.0 * per_sample * length, sizes + stage.weight.nbytes
        found = {
            ("reference", "fp32", 1): Contender(lambda: upsample_reference(stages, mel).transpose(1, 2), lambda: timer.threads(1)),
            ("fastvoc", "fp32", 1): Contender(lambda: upsample_samples(stages, mel), lambda: timer.threads(1)),
        }
        n_bytes = mel.nbytes + 4 * mel.shape[1] * length + sizes
        yield placed(top, "upsample", name, found, flop, n_bytes, "memory", NEAR_STACK, quick)


@torch.inference_mode()
def run(quick: bool = False, n_threads: int | None = None, only: str = "") -> Iterator[dict]:
    """A part for each kernel and number of threads. only: kernels whose name has this in it."""
    keep_freed_memory()
    for n in sorted({1, n_threads or fastvoc.get_num_threads()}):
        say(f"ceilings and kernels, {n} threads")
        top = measured(n, quick)
        part = {"ceilings": {str(n): {"peak": top.peak, "bandwidth": top.bandwidth}}}
        if n == 1:
            slopes = [{"name": f"{home}, {b / 1e9:.0f} GB/s", "bandwidth": b} for home, b in top.bandwidth.items()]
            flats = [{"name": f"{kind}, {p / 1e9:.0f} GFLOP/s", "peak": p} for kind, p in top.peak.items()]
            part["report"] = {"roofline": {"ceilings": flats + slopes}}
        yield part
        for family, kernels in KERNELS.items():
            if only in family:
                for rows in kernels(top, n, quick):
                    yield {"rows": rows}


KERNELS = {"operators": operators, "gated_residual_stack": stacks, "wavenet_generate": wavenet, "upsample": upsampling}
