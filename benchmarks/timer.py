"""The one timer: contenders in turn, medians with min and max, nothing timed that computes something else.

A run is disturbed when another process, or the hypervisor, had a share of the machine meanwhile. It is then repeated;
where that does not help the fastest attempt stands, and the row says so.
"""

import os
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

import fastvoc
from fastvoc import _C

SHARE_LIMIT = 0.05  # of the machine that others may use during a run, and of a one-thread run spent waiting
TICK = 0.02  # seconds: /proc/stat counts in hundredths, on both ends


class DisagreementError(AssertionError):
    """A contender computes something else than the first one; it is not timed, and neither is anything beside it."""


@dataclass
class Contender:
    """run: what is timed.  around: entered outside the clock (a forced backend, a number of threads).
    output: what `check` compares, where that is not what `run` returns.  threads: how many `run` may keep busy.
    """

    run: Callable[[], object]
    around: Callable[[], AbstractContextManager] = nullcontext
    output: Callable[[], object] | None = None
    threads: int = 1


@dataclass
class Timing:
    """Seconds per call. disturbed: runs that were disturbed; kept: those that stand as no repetition was better."""

    median: float
    min: float
    max: float
    calls: int
    rounds: int
    disturbed: int
    kept: int
    cpu_per_wall: float

    def facts(self) -> dict:
        return {
            "rounds": self.rounds, "calls_per_round": self.calls, "disturbed_rounds": self.disturbed,
            "disturbed_rounds_kept": self.kept, "cpu_per_wall": round(self.cpu_per_wall, 3),
        }


def interleave(
    contenders: dict[str, Contender | Callable], rounds: int = 7, *, check: Callable | None = None,
    min_time: float = 0.05, retries: int = 2, share_limit: float = SHARE_LIMIT,
) -> dict[str, Timing]:
    """Times all contenders, round after round, each round beginning with another one.

    check      (output, first contender's output) -> None, or in words how they disagree; default: allclose()
    min_time   a run repeats its call until about this many seconds have passed; 0: one call
    """
    contenders = {name: c if isinstance(c, Contender) else Contender(c) for name, c in contenders.items()}
    check = check or allclose()
    first = None
    for name, c in contenders.items():
        with c.around():
            output = (c.output or c.run)()
        first = output if first is None else first
        if problem := check(output, first):
            raise DisagreementError(f"{name} disagrees with {next(iter(contenders))}: {problem}")
    calls = {name: _calibrated(c, min_time) for name, c in contenders.items()}

    names = list(contenders)
    walls, shares = {n: [] for n in names}, {n: [] for n in names}
    disturbed, kept = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for r in range(rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            attempts = []
            for _ in range(1 + retries):
                wall, cpu, alone = _run(contenders[name], calls[name], share_limit)
                attempts.append((not alone, wall, cpu))
                disturbed[name] += not alone
                if alone:
                    break
            was_disturbed, wall, cpu = min(attempts)
            kept[name] += was_disturbed
            walls[name].append(wall / calls[name])
            shares[name].append(cpu / wall)
    return {
        n: Timing(
            statistics.median(walls[n]), min(walls[n]), max(walls[n]), calls[n], rounds, disturbed[n], kept[n],
            statistics.median(shares[n]),
        )
        for n in names
    }


def _calibrated(c: Contender, min_time: float) -> int:
    calls = 1
    if not min_time:
        return calls
    with c.around():
        while True:
            start = time.perf_counter()
            for _ in range(calls):
                c.run()
            spent = time.perf_counter() - start
            if spent >= min_time / 4:
                return max(1, round(calls * min_time / spent))
            calls *= 4


def _run(c: Contender, calls: int, share_limit: float) -> tuple[float, float, bool]:
    """(wall seconds, CPU seconds of this process, whether we had the machine for ourselves)"""
    with c.around():
        run = c.run
        machine, cpu, start = _busy_seconds(), time.process_time(), time.perf_counter()
        for _ in range(calls):
            run()
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        machine_after = _busy_seconds()
    others = 0.0 if machine is None else machine_after - machine - cpu
    crowded = others > share_limit * wall * (os.cpu_count() or 1) + TICK
    # With more threads than one, time without work may be the contender's own: only a single one must never wait
    waited = c.threads == 1 and wall > cpu * (1 + share_limit) + 1e-4
    return wall, cpu, not crowded and not waited


def _busy_seconds() -> float | None:
    """CPU seconds that all processes of the machine have used, stolen ones included."""
    try:
        with open("/proc/stat") as file:
            user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def allclose(rtol: float = 1e-5, atol: float = 1e-6) -> Callable:
    def check(output, first):
        for ours, theirs in zip(as_tuple(output), as_tuple(first), strict=True):
            ours, theirs = torch.as_tensor(ours), torch.as_tensor(theirs)
            if ours.shape != theirs.shape:
                return f"its shape is {tuple(ours.shape)}, not {tuple(theirs.shape)}"
            if not torch.allclose(ours, theirs, rtol, atol):
                return f"they differ by {float((ours - theirs).abs().max()):.3g} (rtol={rtol}, atol={atol})"

    return check


def as_tuple(x) -> tuple:
    return tuple(x) if isinstance(x, tuple | list) else (x,)


@contextmanager
def threads(n: int):
    """Let torch and the kernels use n threads, for a block."""
    before = torch.get_num_threads(), fastvoc.get_num_threads()
    torch.set_num_threads(n)
    fastvoc.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        fastvoc.set_num_threads(before[1])


@contextmanager
def running_on(isa: str):
    """Use the CPU kernels of one instruction set, for a block."""
    before = fastvoc.cpu_isa()
    fastvoc.set_cpu_isa(isa)
    try:
        yield
    finally:
        fastvoc.set_cpu_isa(before)


def real_isas() -> list[str]:
    """Instruction sets that this machine runs itself, weakest first."""
    return [name for name, supported, emulated, _ in _C.cpu_isas() if supported and not emulated]


# ---- what the machine can do -----------------------------------------------------------------------------------------


def best_of(run: Callable[[], object], seconds: float = 0.3, calls: int = 1) -> float:
    """The shortest time of a call, for ceilings: what the machine did once it can do."""
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        best = min(best, (time.perf_counter() - start) / calls)
    return best


def undisturbed(measure: Callable[[], float], n_threads: int, retries: int = 2) -> tuple[float, bool]:
    """The largest of some measurements, and whether the last one had the machine for itself, which ends them."""
    best, alone = 0.0, False

    def run():
        nonlocal best
        best = max(best, measure())

    for _ in range(1 + retries):
        _, _, alone = _run(Contender(run, threads=max(n_threads, 2)), 1, SHARE_LIMIT)
        if alone:
            break
    return best, alone


def copy_bandwidth(n_threads: int, seconds: float = 0.5, n_bytes: int = 256 << 20) -> float:
    """Bytes per second of copying arrays much larger than the caches, each counted as read once and written once."""
    source = torch.ones(n_bytes // 4)
    target = torch.zeros_like(source)
    with threads(n_threads):
        return 2 * n_bytes / best_of(lambda: target.copy_(source), seconds)


def read_bandwidth(n_threads: int, n_bytes: int, seconds: float = 0.2) -> float:
    """Bytes per second of reading an array of this size again and again: torch.dot or mv over each thread's share.

    The time of a call that reads nothing is taken off. Threads read at once, and the best call of each counts.
    """
    share, nothing = torch.ones(max(n_bytes // 4 // n_threads // 256, 1), 256), torch.ones(1)
    start = threading.Barrier(n_threads)

    def read(_) -> float:
        mine, v = share.clone(), torch.ones(256)
        flat = mine.flatten()
        torch.set_num_threads(1)  # also a setting of each calling thread
        with torch.inference_mode():
            idle = best_of(lambda: nothing.dot(nothing), 0.01, calls=50)
            start.wait()
            t = min(best_of(run, seconds / 2, calls=5) for run in (lambda: flat.dot(flat), lambda: mine.mv(v)))
            return mine.nbytes / max(t - idle, 1e-9)

    with threads(1), ThreadPoolExecutor(n_threads) as pool:
        return sum(pool.map(read, range(n_threads)))


def mac_peak(n_threads: int, dtype: torch.dtype, seconds: float = 0.5, n: int = 1536) -> float:
    """Multiply-adds per second of a large matrix product."""
    a = torch.ones(n, n, dtype=dtype)
    with threads(n_threads), torch.inference_mode():
        return n**3 / best_of(lambda: a @ a, seconds)


def rounded(row: dict, digits: int = 4) -> dict:
    return {k: float(f"{v:.{digits}g}") if isinstance(v, float) else v for k, v in row.items()}
