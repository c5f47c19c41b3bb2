"""What this machine can do at most, by ceilings.c, and by torch where no compiler is at hand."""

import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import torch

from benchmarks import timer

SOURCE = Path(__file__).with_name("ceilings.c")
KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": None}


def library() -> ctypes.CDLL | None:
    """ceilings.c compiled for this machine; None without a compiler."""
    compiler = next(filter(None, (shutil.which(c) for c in (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ceilings.so"
        command = [compiler, "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", str(SOURCE), "-o", str(path)]
        if subprocess.run(command, capture_output=True).returncode:
            return None
        found = ctypes.CDLL(str(path))
    for name in ("fp32", "bf16", "int8"):
        function = getattr(found, f"{name}_operations")
        function.restype, function.argtypes = ctypes.c_double, [ctypes.c_int64]
    found.read_bytes.restype, found.read_bytes.argtypes = ctypes.c_double, [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    return found


def operations_per_s(kind: str, n_threads: int, seconds: float, lib) -> float | None:
    """Of "fp32", "bf16" or "int8": the better of a loop of independent instructions and of torch's matrix product (AMX)."""
    best = 0.0 if lib is None else _rate(n_threads, seconds, lambda: getattr(lib, f"{kind}_operations"), (1 << 16,))
    if KINDS[kind] is not None:
        best = max(best, 2 * timer.mac_peak(n_threads, KINDS[kind], seconds, 1024))
    return best or None


def read_bytes_per_s(n_bytes: int, n_threads: int, seconds: float, lib) -> float:
    """Of an array of this size for each thread, read again and again."""
    if lib is None:
        return timer.read_bandwidth(n_threads, n_bytes * n_threads, seconds)
    n_bytes -= n_bytes % 1024

    def make():
        data = torch.ones(n_bytes // 4 + 16)
        start = data.data_ptr() + -data.data_ptr() % 64
        return lambda times, data=data: lib.read_bytes(start, n_bytes, times)

    return _rate(n_threads, seconds, make, (max(1, (4 << 20) // n_bytes),))


def _rate(n_threads: int, seconds: float, make, arguments) -> float:
    """The sum over threads that run at once of the best rate of each; what a call returns per second. ctypes frees the GIL."""
    start = Barrier(n_threads)

    def work(_):
        run, best = make(), 0.0
        run(*arguments)
        start.wait()
        end = time.perf_counter() + seconds
        while (begun := time.perf_counter()) < end:
            best = max(best, run(*arguments) / (time.perf_counter() - begun))
        return best

    with ThreadPoolExecutor(n_threads) as pool:
        return sum(pool.map(work, range(n_threads)))
