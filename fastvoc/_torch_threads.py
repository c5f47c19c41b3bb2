"""Keeps torch's threads still while ours work.

OpenMP's threads spin for some milliseconds after each parallel operation of torch's, on the very cores where our threads go on.
Between the plans of one `infer` that costs more than two threads save in the small operations there: six steps of DiffWave on
two cores took 1.5 times the CPU time of one thread (benchmarks/NOTES.md).
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def _limits() -> list:
    """(read, set) of the calling thread's number of OpenMP and MKL threads; torch.set_num_threads would set every thread's."""
    found = []
    try:
        process = ctypes.CDLL(None)  # torch loads its OpenMP for everyone
        found.append((process.omp_get_max_threads, process.omp_set_num_threads))
        library = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
        # Returns what was set before, 0 for nothing
        found.append((lambda: library.MKL_Set_Num_Threads_Local(1), library.MKL_Set_Num_Threads_Local))
    except (AttributeError, OSError):
        pass  # a torch with other threads, or without MKL
    return found


_LIMITS = _limits()


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Torch's operations of this thread stay on it, for a block or, as a decorator, a function."""
    before = [read() for read, _ in _LIMITS]
    for _, limit in _LIMITS:
        limit(1)
    try:
        yield
    finally:
        for (_, limit), n in zip(_LIMITS, before):
            limit(n)
