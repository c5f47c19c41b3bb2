"""Keeps torch's threads still while ours work.

OpenMP's threads spin for some milliseconds after each parallel operation of torch's, on the very cores where our threads go on.
Between the plans of one `infer` that costs more than two threads save in the small operations there: six steps of DiffWave on
two cores took 1.5 times the CPU time of one thread (benchmarks/NOTES.md). Where torch has as many threads as a plan, the plan takes
those (csrc/core/parallel.h); but `infer` is told its number of threads, and torch's may be another.
"""

import ctypes
import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fastvoc._op import forced_backend


@functools.cache  # when first needed: importing fastvoc opens no library
def _limits() -> list[tuple[Callable[[], int], Callable[[int], object]]]:
    """(read, set) of the calling thread's number of OpenMP and MKL threads; torch.set_num_threads would set every thread's."""
    found: list[tuple[Callable, Callable]] = []
    try:
        process = ctypes.CDLL(None)  # torch loads its OpenMP for everyone
        found.append((process.omp_get_max_threads, process.omp_set_num_threads))
        library = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
        # Returns what was set before, 0 for nothing
        found.append((lambda: library.MKL_Set_Num_Threads_Local(1), library.MKL_Set_Num_Threads_Local))
    except (AttributeError, OSError):
        pass  # a torch with other threads, or without MKL
    return found


_callers = threading.local()  # .numbers: what `one_torch_thread` found, while it lasts


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Torch's operations of this thread stay on it, for a block or, as a decorator, a function.

    But where the reference is forced: then torch does all the work.
    """
    limits = [] if forced_backend() == "reference" else _limits()
    outer, before = getattr(_callers, "numbers", None), [read() for read, _ in limits]
    for _, limit in limits:
        limit(1)
    _callers.numbers = before if outer is None else outer
    try:
        yield
    finally:
        _callers.numbers = outer
        for (_, limit), n in zip(limits, before):
            limit(n)


@contextmanager
def callers_torch_threads() -> Iterator[None]:
    """Within `one_torch_thread`, as many as there were before: for a reference that the other backends declined for."""
    numbers = getattr(_callers, "numbers", None) or []
    for (_, limit), n in zip(_limits(), numbers):
        limit(n)
    try:
        yield
    finally:
        for (_, limit), _ in zip(_limits(), numbers):
            limit(1)
