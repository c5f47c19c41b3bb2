"""Every operator on every backend and instruction set, at the sizes that real vocoders use.

Operators, cases and exact values come from the records in fastvoc/ops: a new operator needs nothing here. GB/s counts
every tensor as moved once; its fraction is of a measured copy, and exceeds 1 where the tensors stay in a cache.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack

import torch

import fastvoc
import fastvoc.ops  # registers every operator
from benchmarks import timer
from benchmarks.timer import Contender, as_tuple
from fastvoc._op import OPS, Op, Unsupported

REPORT = {
    "title": "Operators", "group": ["op", "case"], "vary": ["threads"], "metric": "us", "unit": "µs", "better": "lower",
    "baseline": "torch eager", "ours": "cpu",
}
COLUMNS = [
    "op", "case", "threads", "contender", "us", "us_min", "us_max", "gb_per_s", "of_copy", "vs_eager",
    "disturbed_rounds",
]
METHOD = {
    "work": "one call of the operator on tensors that are there, fresh outputs every call",
    "gb_per_s": "every tensor counted as moved once; of_copy: over torch's copy_ of 256 MB, read and written",
    "checked": "no further from float64 than twice PyTorch eager and one rounding",
}
QUICK = ("in cache", "ragged", "single")
COMPILE_SECONDS = 120  # after so long nothing more is compiled


def callable_ops() -> list[Op]:
    return [op for op in OPS.values() if isinstance(op, Op)]  # a PlanOp's benchmark is its model's


def accuracy_rule(op: Op, args):
    """The tests' rule: no further from float64 than twice what plain torch, the first contender, is, and a rounding."""
    exact = as_tuple(op.reference(*[a.double() if isinstance(a, torch.Tensor) else a for a in args]))
    eps = torch.finfo(args[0].dtype).eps

    def check(output, first):
        for ours, theirs, y in zip(as_tuple(output), as_tuple(first), exact, strict=True):
            if ours.shape != y.shape or ours.dtype != theirs.dtype:
                return f"it is {tuple(ours.shape)} {ours.dtype}, not {tuple(y.shape)} {theirs.dtype}"
            if not y.numel():
                continue
            error, allowed = ((t - y).abs().max() for t in (ours, theirs))
            allowed = 2 * allowed + eps * y.abs().max()
            if not error <= allowed:
                return f"its error is {float(error):.3g}, allowed are {float(allowed):.3g}"

    return check


def backends_of(op: Op) -> list[tuple[str, str]]:
    """(backend, instruction set) of the compiled backends for CPU tensors."""
    return [(name, isa) for name, _ in op.order["cpu"] if name != "reference" for isa in timer.real_isas()]


def forced(backend: str, isa: str, n_threads: int):
    """Nothing but this backend, on this instruction set: a decline raises, so no fallback is ever timed."""
    def enter():
        stack = ExitStack()
        for context in (timer.threads(n_threads), fastvoc.backend(backend), timer.running_on(isa)):
            stack.enter_context(context)
        return stack

    return enter


def compiled(op: Op, args, n_threads: int):
    """The reference through torch.compile, or in words why not."""
    torch._dynamo.reset()  # else the ninth size is silently run eagerly
    run = torch.compile(op.reference, fullgraph=True, dynamic=False)
    try:
        with timer.threads(n_threads):
            run(*args)
    except Exception as reason:  # a compiler is optional; any failure of it is a row without this contender
        return f"{type(reason).__name__}: {str(reason).strip().splitlines()[0] if str(reason).strip() else ''}"
    return run


def bench_case(op: Op, label: str, n_threads: int, copy: float, with_compile: bool, **how) -> tuple[list[dict], dict]:
    args = op.make_args(op.cases[label], torch.float32, "cpu")
    skipped, check = {}, accuracy_rule(op, args)
    alone = lambda: timer.threads(n_threads)
    contenders = {"torch eager": Contender(lambda: op.reference(*args), alone, threads=n_threads)}
    if with_compile:
        run = compiled(op, args, n_threads)
        if isinstance(run, str):
            problem = run
        else:  # a peer that breaks the rule is left out and named; one of ours that does ends the run
            with alone():
                problem = check(run(*args), op.reference(*args))
        if problem:
            skipped["torch.compile"] = problem
        else:
            contenders["torch.compile"] = Contender(lambda: run(*args), alone, threads=n_threads)
    for backend, isa in backends_of(op):
        around = forced(backend, isa, n_threads)
        try:
            with around():
                op._backend(backend)(*args)
        except Unsupported as reason:
            skipped[f"{backend} {isa}"] = str(reason)
            continue
        contenders[f"{backend} {isa}"] = Contender(lambda: op(*args), around, threads=n_threads)
    times = timer.interleave(contenders, check=check, **how)
    n_bytes = sum(t.nbytes for t in (*args, *as_tuple(op.reference(*args))) if isinstance(t, torch.Tensor))
    eager = times["torch eager"].median
    rows = [
        timer.rounded({
            "op": op.name, "case": label, "shape": list(op.cases[label]), "threads": n_threads, "contender": name,
            "us": t.median * 1e6, "us_min": t.min * 1e6, "us_max": t.max * 1e6, "gb_per_s": n_bytes / t.median / 1e9,
            "of_copy": n_bytes / t.median / copy, "vs_eager": eager / t.median, **t.facts(),
        })
        for name, t in times.items()
    ]
    return rows, skipped


@torch.inference_mode()
def run(quick: bool = False, n_threads: int | None = None, only: str = "") -> Iterator[dict]:
    """A part for each operator, case and number of threads. only: operators whose name has this in it."""
    how = dict(rounds=2, min_time=0.004) if quick else dict(rounds=5, min_time=0.02, retries=1)
    compile_until = time.monotonic() + (0 if quick else COMPILE_SECONDS)
    for n in sorted({1, n_threads or fastvoc.get_num_threads()}):
        copy = timer.copy_bandwidth(n, *((0.02, 16 << 20) if quick else ()))
        yield {"copy_gb_per_s": {str(n): round(copy / 1e9, 2)}}
        for op in callable_ops():
            for label in (c for c in op.cases if only in op.name and (not quick or c in QUICK)):
                with_compile = label == next(iter(op.cases)) and time.monotonic() < compile_until
                rows, missing = bench_case(op, label, n, copy, with_compile, **how)
                if not with_compile:
                    missing["torch.compile"] = "it takes seconds to compile: an operator's first case only, while the time lasts"
                where = f"{op.name}, {label}, {n} thread{'s' if n > 1 else ''}"
                yield {"rows": rows, "skipped": {f"{where}, {name}": reason for name, reason in missing.items()}}
