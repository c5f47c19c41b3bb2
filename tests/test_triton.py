"""The Triton kernels: interpreted on the CPU, and run where there is a GPU. Compiled: test_triton_compiled.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastvoc
from fastvoc._op import OPS, Op, Unsupported, lazy
from fastvoc.errors import BackendUnavailableError
from fastvoc.layers import GatedResidualStack
from fastvoc.ops.gated_activation import gated_activation
from fastvoc.ops.gated_residual import CASES, gated_residual_bwd, gated_residual_fwd

pytest.importorskip("triton", reason="pip install triton (Linux)")

ROOT = Path(__file__).parent.parent
WITH_TRITON = [op for op in OPS.values() if isinstance(op, Op) and "triton" in op.backends]


def in_another_process(*command, **environment):
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *(p for p in sys.path if p)]), **environment},
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


# ---- without a GPU ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_interpreted(speed):
    said = in_another_process(
        "-m", "pytest", "tests/triton_interpreted.py", "-m", speed, "-p", "no:cacheprovider", "--color=no", TRITON_INTERPRET="1"
    )
    assert " passed" in said or "100%" in said


def test_the_cpu_is_declined():
    x = torch.zeros(2, 3)
    with fastvoc.backend("triton"), pytest.raises(BackendUnavailableError, match="'triton' declined: .* GPU tensors only"):
        gated_activation(x, x)
    stack = GatedResidualStack(4, 8, 4, 0, 3, [1])
    with fastvoc.backend("triton"), pytest.raises(BackendUnavailableError, match="'triton' declined: .* GPU tensors only"):
        stack.infer(torch.zeros(1, 5, 4))


def test_without_triton_the_backend_declines():
    with pytest.raises(Unsupported, match="no_such_module.*pip install triton"):
        lazy("no_such_module", "kernel")(torch.zeros(1))


def test_kernels_of_this_tree():
    """fastvoc.kernels is the folder beside the fastvoc that was imported, not that of another installation."""
    from fastvoc.kernels import launch

    assert Path(launch.__file__).parent == Path(fastvoc.__file__).parents[1] / "kernels"


def test_long_offsets_are_declined():
    from fastvoc.kernels.gated_residual import check_offsets

    check_offsets(2**30, 512, 512, 512, 4096)
    for sizes in (2**31, 1, 1, 1, 1), (1000, 2**20, 1, 1, 4096):
        with pytest.raises(Unsupported, match="2³¹"):
            check_offsets(*sizes)


# ---- on a GPU; parity with every record's cases is in test_ops.py ------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("op", WITH_TRITON, ids=lambda op: op.name)
def test_tuned_and_untuned_agree(op, dtype, monkeypatch):
    """Every configuration that tuning may choose gives what the first gives, to rounding; and a launch leaves a choice."""
    args = op.make_args(op.cases["ragged"], dtype, "cuda")
    exacts = op.reference(*[a.double() if isinstance(a, torch.Tensor) else a for a in args])
    theirs = op.reference(*args)
    for setting in "0", "1":
        monkeypatch.setenv("FASTVOC_AUTOTUNE", setting)
        with fastvoc.backend("triton"):
            ours = op(*args)
        for y, reference, exact in zip(*(r if isinstance(r, tuple) else (r,) for r in (ours, theirs, exacts)), strict=True):
            floor = torch.finfo(dtype).eps * float(exact.abs().max())
            assert float((y - exact).abs().max()) <= 2 * float((reference - exact).abs().max()) + floor


@pytest.mark.gpu
@pytest.mark.parametrize("op", [gated_residual_fwd, gated_residual_bwd], ids=lambda op: op.name)
def test_runs_are_equal(op):
    """No atomics, no races: 50 runs of a batch, bit for bit."""
    args = op.make_args((60, *CASES["ragged"][1:]), torch.float32, "cuda")
    with fastvoc.backend("triton"):
        first = op(*args)
        for _ in range(50):
            assert all(torch.equal(a, b) for a, b in zip(first, op(*args), strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("half_gate", [64, 96])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_plan_in_a_cuda_graph(precision, half_gate):
    torch.manual_seed(0)
    stack = GatedResidualStack(64, 2 * half_gate, 64, 80, 3, [1, 2, 4, 8], rho=0.7).cuda()
    x, cond = torch.randn(2, 1000, 64, device="cuda"), torch.randn(2, 1000, 80, device="cuda")
    with fastvoc.backend("triton"):
        plan = stack.plan(precision)
    want = plan.run(x, cond)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = plan.run(x, cond)
    y.zero_()
    graph.replay()
    assert torch.equal(y, want) and want.std() > 0
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(y, plan.run(x, cond)) and not torch.equal(y, want)


@pytest.mark.gpu
def test_another_device_is_entered():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    a, b = torch.randn(2, 3, 50, device="cuda:1")
    with fastvoc.backend("triton"):
        assert torch.allclose(gated_activation(a, b), torch.tanh(a) * torch.sigmoid(b), atol=1e-6)


@pytest.mark.gpu
def test_more_than_2_31_numbers():
    n = 2**31 + 5000
    if torch.cuda.mem_get_info()[0] < 3.5 * 2 * n:
        pytest.skip("needs 15 GB of free GPU memory")
    a = torch.zeros(n, dtype=torch.float16, device="cuda")
    a[-3:] = 1
    with fastvoc.backend("triton"):
        y = gated_activation(a, a)
    assert torch.allclose(y[-4:].float().cpu(), torch.tensor([0, *[0.76159 * 0.73106] * 3]), atol=1e-3) and not y[:-3].any()
