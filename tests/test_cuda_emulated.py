"""Every CUDA kernel, run by the emulator (csrc/emulator) on this machine: parity with the references, under several orders
of blocks and threads. `make sanitize` runs this file again under ThreadSanitizer and AddressSanitizer.

This shows that the kernels' indexing, tails and synchronisation are right, not that they ran on a GPU.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastvoc._cuda import Library
from fastvoc._op import OPS, Op
from fastvoc.errors import KernelError
from tests.devices import as_double
from tests.emulator import ROOT, SANITIZE, build, emulated, kernels, library

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SMALL = 25_000  # values of the first argument: what the emulator does in a fraction of a second


pytestmark = pytest.mark.usefixtures("one_torch_thread")


def outputs(result):
    return result if isinstance(result, tuple) else (result,)


def cases_of(op: Op):
    """The op's cases that are small enough."""
    for label, case in op.cases.items():
        if op.make_args(case, torch.float32, "cpu")[0].numel() <= SMALL:
            yield label, case


WITH_CUDA = [op for op in OPS.values() if isinstance(op, Op) and "cuda" in op.backends]
PARITY = [
    pytest.param(op, case, dtype, id=f"{op.name}-{label}-{str(dtype)[6:]}")
    for op in WITH_CUDA
    for label, case in cases_of(op)
    for dtype in DTYPES
]


def test_every_operator_with_a_kernel_is_tested():
    assert {p.values[0].name for p in PARITY} == {op.name for op in WITH_CUDA} > set()


@pytest.mark.parametrize(("op", "case", "dtype"), PARITY)
def test_as_exact_as_torch(op, case, dtype):
    args = op.make_args(case, dtype, "cpu", seed=0)
    exacts, theirs = outputs(op.reference(*as_double(args))), outputs(op.reference(*args))
    results = []
    for seed in (0, 1, 2):
        with emulated(seed):
            results.append(outputs(op(*args)))
    for y, reference, exact, *others in zip(results[0], theirs, exacts, *results[1:], strict=True):
        assert y.dtype == reference.dtype and y.shape == exact.shape
        assert y.isfinite().all() and (y != 0).float().mean() >= 0.5
        floor = torch.finfo(dtype).eps * float(exact.abs().max())
        worst = lambda x: float((x.double() - exact).abs().max())
        assert worst(y) <= 2 * worst(reference) + floor
        assert all(torch.equal(y, other) for other in others)  # whatever the order of blocks and threads


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 7, 8, 9, 255, 256, 257, 2049])
def test_tails_and_misaligned_views(n, dtype):
    forward, backward = OPS["gated_activation"], OPS["gated_activation_backward"]
    for offset in (0, 1):
        a, b, dy = (torch.randn(n + 1)[offset : n + offset].to(dtype) for _ in range(3))
        a, b = (torch.cat([x.new_zeros(offset), x])[offset:] for x in (a, b))  # at an odd address when offset is 1
        with emulated(seed=1):
            y, grads = forward(a, b), backward(dy, a, b)
        exact = forward.reference(a.double(), b.double()), *backward.reference(dy.double(), a.double(), b.double())
        eps = torch.finfo(dtype).eps
        for ours, x in zip((y, *grads), exact):
            torch.testing.assert_close(ours.double(), x, rtol=4 * eps, atol=4 * eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_halves_of_channels_are_taken_as_they_lie(dtype):
    both, t = torch.randn(3, 8, 700).to(dtype), torch.randn(3, 4, 700).to(dtype)
    x, log_s = both[:, :4], both[:, 4:] * 0.3
    op = OPS["affine_coupling"]
    with emulated(seed=3):
        ours = op(x, log_s, t)
    for y, exact in zip(ours, op.reference(x.double(), log_s.double(), t.double())):
        torch.testing.assert_close(y.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=32 * torch.finfo(dtype).eps)


def test_empty():
    with emulated():
        assert OPS["gated_activation"](torch.empty(0, 3), torch.empty(0, 3)).shape == (0, 3)


def test_warmup_touches_every_kernel():
    library().warmup(torch.device("cpu"))


# ---- the emulator itself ---------------------------------------------------------------------------------------------

FAULTS = {"library.cu": kernels()["library.cu"], "faults.cu": (ROOT / "tests/data/cuda_faults.cu").read_text()}


@pytest.fixture(scope="module")
def faults():
    return Library(build(FAULTS), emulated=True)


def test_block_reduction_and_cooperation(faults):
    x = torch.arange(1000.0)
    total, flags = torch.zeros(1), torch.zeros(8, dtype=torch.int32)
    for seed in range(5):
        faults.c.fastvoc_emulator_seed(seed)
        total.zero_(), flags.zero_()
        faults.call("test_cooperative", x, total, flags, len(x))
        assert total.item() == x.sum().item()


def test_distributed_shared_memory(faults):
    for seed in range(5):
        faults.c.fastvoc_emulator_seed(seed)
        y = torch.zeros(4, 32)
        faults.call("test_cluster", y)
        assert torch.equal(y, torch.arange(4.0).roll(-1)[:, None] * 100 + torch.arange(32.0))


def test_shared_memory_is_poisoned(faults):
    y = torch.zeros(32)
    faults.call("test_poison", y)
    assert y.isnan().all()


def test_a_barrier_that_some_never_reach_is_an_error(faults):
    with pytest.raises(KernelError, match="wait forever.*__syncthreads"):
        faults.call("test_divergent", torch.zeros(64))


def test_a_flag_that_nobody_sets_is_an_error(faults):
    with pytest.raises(KernelError, match="wait forever.*a flag"):
        faults.call("test_waits_for_nobody", torch.zeros(1, dtype=torch.int32))


def test_a_launch_that_cuda_would_refuse_is_an_error(faults):
    with pytest.raises(KernelError, match=r"test_too_much: invalid configuration .*shapes \[\(3,\)\]"):
        faults.call("test_too_much", torch.zeros(3))


# ---- sanitizers ------------------------------------------------------------------------------------------------------


def runtime_of(sanitizer: str) -> str | None:
    """What must be loaded before Python: the sanitizer's library, and with it the C++ one, whose exceptions it watches."""
    names = {"thread": "libtsan.so", "address,undefined": "libasan.so"}[sanitizer], "libstdc++.so.6"
    find = lambda name: subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
    found = [find(name) for name in names]
    return " ".join(found) if all(Path(f).is_absolute() for f in found) else None


def run_with(sanitizer: str, code: str, *args) -> subprocess.CompletedProcess:
    env = os.environ | {
        "LD_PRELOAD": runtime_of(sanitizer), "FASTVOC_EMULATOR_SANITIZE": sanitizer, "OMP_NUM_THREADS": "1",
        "TSAN_OPTIONS": "exitcode=66", "ASAN_OPTIONS": "detect_leaks=0",
    }
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], cwd=ROOT, env=env, capture_output=True, text=True)


BLOCK_SUM = """
import sys
import torch
from fastvoc._cuda import Library
lib = Library(sys.argv[1], emulated=True)
x, y = torch.randn(300), torch.zeros(3)
lib.call("test_block_sum", x, y, 300)
print("sums", y.tolist())
"""


@pytest.mark.skipif(SANITIZE != "", reason="already running under a sanitizer")
def test_a_removed_barrier_is_found():
    assert runtime_of("thread"), "g++ has no libtsan here: install it (Debian: libtsan2)"
    barrier = "  __syncthreads();  // the one that matters\n"
    assert FAULTS["faults.cu"].count(barrier) == 1
    whole = run_with("thread", BLOCK_SUM, build(FAULTS, "thread"))
    assert whole.returncode == 0 and "sums" in whole.stdout, whole.stderr[-2000:]
    broken = run_with("thread", BLOCK_SUM, build(FAULTS | {"faults.cu": FAULTS["faults.cu"].replace(barrier, "")}, "thread"))
    assert broken.returncode == 66 and "data race" in broken.stderr and "test_block_sum_kernel" in broken.stderr
