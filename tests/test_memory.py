"""Large results come from the CPU's memory in large pages, wherever torch makes its own by default."""

import subprocess
import sys

import pytest
import torch

import fastvoc
from fastvoc import _memory
from fastvoc._op import OPS, Op


@pytest.mark.parametrize("shape", [(0,), (3, 5), (_memory.LARGE // 4,), (3, _memory.LARGE // 4 + 1)])
def test_empty_is_ordinary_memory(shape):
    with torch.device("meta"):
        made = _memory.empty(shape, torch.float32)
    assert made.device.type == "cpu" and made.shape == shape and made.is_contiguous()
    assert float(made.fill_(1).sum()) == made.numel()


@pytest.mark.parametrize(("op", "dtype"), [(op, dtype) for op in OPS.values() if isinstance(op, Op) for dtype in op.cpu_dtypes])
def test_torchs_defaults_change_no_result(op, dtype):
    args = op.make_args(op.cases["ragged"], dtype, "cpu")

    def run():
        with fastvoc.backend("cpu"):
            made = op(*args)
        return made if isinstance(made, tuple) else (made,)

    want = run()
    with torch.device("meta"):
        assert all(torch.equal(y, w) for y, w in zip(run(), want))
    torch.set_default_dtype(torch.float64)
    try:
        assert all(torch.equal(y, w) for y, w in zip(run(), want))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.skipif(sys.platform != "linux", reason="large pages are asked of Linux")
def test_large_pages_are_asked_for_and_small_results_are_left_alone(monkeypatch):
    asked = []
    madvise = lambda first, n_bytes, advice: asked.append((first.value, n_bytes.value, advice))
    monkeypatch.setattr(_memory, "_madvise", lambda: madvise)
    small, large = _memory.empty((1000,)), _memory.empty((_memory.LARGE,))
    [(first, n_bytes, advice)] = asked
    assert small.nbytes < _memory.LARGE and advice == 14
    assert first % 4096 == 0 and large.data_ptr() <= first and first + n_bytes <= large.data_ptr() + large.nbytes
    assert n_bytes > large.nbytes - 2 * 4096


def test_freed_memory_is_kept():
    """A process that keeps it does not fault its pages in again."""
    code = """
import resource, torch
from fastvoc._memory import keep_freed_memory
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
keep_freed_memory()
def of_one():
    before = faults()
    torch.ones(1 << 22)
    return faults() - before
print(sorted(of_one() for _ in range(15))[7])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200  # the median: 4096 where each comes from the system; now and then one does
