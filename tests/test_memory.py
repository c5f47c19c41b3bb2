"""Large results come from the CPU's memory in large pages, wherever torch makes its own by default."""

import subprocess
import sys

import pytest
import torch

from fastvoc import _memory
from fastvoc.ops.affine_coupling import affine_coupling
from fastvoc.ops.gated_activation import gated_activation


@pytest.mark.parametrize("shape", [(0,), (3, 5), (_memory.LARGE // 4,), (3, _memory.LARGE // 4 + 1)])
def test_empty_is_ordinary_memory(shape):
    with torch.device("meta"):
        made = _memory.empty(shape, torch.float32)
    assert made.device.type == "cpu" and made.shape == shape and made.is_contiguous()
    assert float(made.fill_(1).sum()) == made.numel()


def test_operators_under_another_default_device():
    a, b = torch.randn(2, 4, 300), torch.randn(2, 4, 300)
    run = lambda: (gated_activation(a, b), *affine_coupling(a, b, b))
    want = run()
    with torch.device("meta"):
        assert all(torch.equal(x, y) for x, y in zip(run(), want))


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
for _ in range(3): torch.ones(1 << 22)
before = faults()
for _ in range(5): torch.ones(1 << 22)
print(faults() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000  # 5 × 4096 where each comes from the system
