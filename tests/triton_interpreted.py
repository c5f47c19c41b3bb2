"""The Triton kernels in Triton's interpreter, on CPU tensors, against the references. tests/test_triton.py runs this file
in a process of its own, since TRITON_INTERPRET=1 must be set before Triton is imported.

The interpreter shows wrong arithmetic, indexing and masks. It shows no race, no access outside that stays inside the
allocation, no rounding to TF32, and nothing of time.
"""

import importlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

import fastvoc
import fastvoc.kernels
from fastvoc._op import OPS, Op
from fastvoc.kernels import gated_residual_backward as layer_backward
from fastvoc.kernels import launch
from fastvoc.layers import GatedResidualStack
from fastvoc.ops.gated_residual import gated_residual, gated_residual_bwd, gated_residual_fwd
from fastvoc.ops.gated_residual_stack import ReferencePlan
from tests.devices import as_double

torch.set_num_threads(1)
assert launch.INTERPRETED
DTYPES = torch.float32, torch.float16, torch.bfloat16
MOST = 8_000  # numbers in a case's first argument: the interpreter is slow
CASES = [
    pytest.param(op, case, dtype, id=f"{op.name}-{label}-{str(dtype)[6:]}")
    for op in OPS.values()
    if isinstance(op, Op) and "triton" in op.backends
    for label, case in op.cases.items()
    if np.prod(case[:3]) <= MOST
    for dtype in DTYPES
]
MODULES = "gated_activation", "affine_coupling", "invertible_conv1x1", "gated_residual", "gated_residual_backward"
TUNED = [
    pytest.param(module, tuned, i, size, id=f"{module}.{tuned.kernel.__name__}-{8 * size}-{i}")
    for module in MODULES
    for tuned in vars(importlib.import_module(f"fastvoc.kernels.{module}")).values()
    if isinstance(tuned, launch.Tuned)
    for size, configurations in tuned.configurations.items()
    for i in range(len(configurations))
]


@pytest.fixture(autouse=True)
def bf16_products(monkeypatch):
    """The interpreter multiplies the bit patterns of bf16 operands as if they were integers (triton issue 11584)."""
    plain = InterpreterBuilder.create_dot

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    monkeypatch.setattr(
        InterpreterBuilder, "create_dot", lambda self, a, b, *rest: plain(self, widened(a), widened(b), *rest)
    )


@pytest.fixture(autouse=True)
def loop_bounds(monkeypatch):
    """Triton 3.6's interpreter takes a loop's bound from an array of one number, which NumPy 2.4 no longer converts."""
    plain = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        plain(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)


def outputs(result):
    return result if isinstance(result, tuple) else (result,)


def tensors(args):
    return [a for a in args if isinstance(a, torch.Tensor)]


def check(op, args, fn=None, times=2):
    """The accuracy rule of tests/test_ops.py. The interpreter does not contract a·b + c: one more rounding of a term."""
    exacts, theirs = outputs(op.reference(*as_double(args))), outputs(op.reference(*args))
    with fastvoc.backend("triton"):
        ours = outputs((fn or op)(*args))
    largest = max(float(a.abs().max()) for a in tensors(args) if a.numel())
    for y, reference, exact in zip(ours, theirs, exacts, strict=True):
        if not exact.numel():
            assert y.shape == exact.shape  # the skip of a stack without skips
            continue
        assert y.dtype == reference.dtype and y.shape == exact.shape and y.isfinite().all()
        # A tap that reaches beyond a short signal has a gradient of zeros
        assert (y != 0).float().mean() >= min(0.5, (exact != 0).float().mean()) > 0 and (y.numel() == 1 or y.std() > 0)
        floor = torch.finfo(y.dtype).eps * max(float(exact.abs().max()), largest if exact.numel() == 1 else 0)
        assert float((y - exact).abs().max()) <= times * float((reference - exact).abs().max()) + floor


@pytest.mark.parametrize(("op", "case", "dtype"), CASES)
def test_as_exact_as_torch(op, case, dtype):
    check(op, op.make_args(case, dtype, "cpu"))


# ---- every configuration, both forms of the layer, every tail ----------------------------------------------------------

# B, T, R, H, S, k, dilation, causal, cond, step: more samples than any tile has
LAYER = 1, 131, 19, 18, 17, 2, 5, True, True, True
LARGE = {"gated_activation": (2, 4099), "affine_coupling": (2, 1, 4099), "invertible_conv1x1": (1, 17, 517)}


@pytest.mark.slow
@pytest.mark.parametrize(("module", "tuned", "i", "size"), TUNED)
def test_every_configuration(module, tuned, i, size, monkeypatch):
    monkeypatch.setattr(tuned, "configurations", {size: [tuned.configurations[size][i]]})
    for other in {id(p.values[1]): p.values[1] for p in TUNED if p.values[1] is not tuned}.values():
        monkeypatch.setattr(other, "configurations", {size: other.configurations[size][:1]})
    if "layer_kernel" not in tuned.kernel.__name__:
        monkeypatch.setattr("fastvoc.kernels.gated_residual.MAX_FUSED", 0)
    launched = []
    plain = launch.Tuned._launch
    monkeypatch.setattr(launch.Tuned, "_launch", lambda self, *args: launched.append(self) or plain(self, *args))
    dtype = torch.float32 if size == 4 else torch.float16
    names = [name for name in OPS if name.startswith(module)] if module in LARGE else [module]
    for name in names:
        check(OPS[name], OPS[name].make_args(LARGE.get(module, LAYER), dtype, "cpu"))
    assert tuned in launched


def small_tiles(monkeypatch):
    """Tiles of 16, so that short signals have many."""
    for tuned in {id(p.values[1]): p.values[1] for p in TUNED}.values():
        smaller = {k: min(v, 16) for k, v in tuned.configurations[4][0].items() if k.startswith("BLOCK")}
        monkeypatch.setattr(tuned, "configurations", {s: [{**smaller, "num_warps": 4, "num_stages": 1}] for s in (2, 4)})
    monkeypatch.setattr(layer_backward, "SUM_TILE", 16)
    monkeypatch.setattr(layer_backward, "PROGRAMS", 2)


QUICK = 1, 2, 15, 16, 17, 31, 32, 33


@pytest.mark.parametrize("max_fused", [64, 0])
@pytest.mark.parametrize("T", [T if T in QUICK else pytest.param(T, marks=pytest.mark.slow) for T in range(1, 34)])
def test_every_tail(T, max_fused, monkeypatch):
    small_tiles(monkeypatch)
    monkeypatch.setattr("fastvoc.kernels.gated_residual.MAX_FUSED", max_fused)
    # Both halves of every product one more than a tile
    case = 2, T, 17, 5, 3, 2, 1 + T % 5, True, T % 3 > 0, T % 4 > 0
    check(gated_residual_fwd, gated_residual_fwd.make_args(case, torch.float32, "cpu", seed=T))
    if max_fused:
        check(gated_residual_bwd, gated_residual_bwd.make_args(case, torch.float32, "cpu", seed=T), times=3)


@pytest.mark.parametrize("name", ["gated_activation", "gated_activation_backward", *(n for n in OPS if n.startswith("affine"))])
@pytest.mark.parametrize("T", QUICK)
def test_every_tail_of_the_elementwise(name, T, monkeypatch):
    small_tiles(monkeypatch)
    monkeypatch.setattr("fastvoc.kernels.affine_coupling.SUM_BLOCK", 16)
    check(OPS[name], OPS[name].make_args((3, 1, T), torch.float32, "cpu", seed=T))


@pytest.mark.parametrize("T", QUICK)
def test_every_tail_of_the_1x1(T, monkeypatch):
    small_tiles(monkeypatch)
    monkeypatch.setattr("fastvoc.kernels.invertible_conv1x1.SUM_TILE", 16)
    monkeypatch.setattr("fastvoc.kernels.invertible_conv1x1.PIECES", 2)
    for name in ("invertible_conv1x1", "invertible_conv1x1_backward"):
        check(OPS[name], OPS[name].make_args((2, 18, T), torch.float32, "cpu", seed=T))


@pytest.mark.parametrize("channels", [(1, 1, 1), (16, 16, 16), (17, 15, 0), (64, 64, 64), (65, 33, 129), (7, 65, 3)])
@pytest.mark.parametrize("in_residual", [False, True])
def test_any_channels(channels, in_residual):
    case = 1, 20, *channels, 3, 2, False, True, True
    for op in gated_residual_fwd, gated_residual_bwd:
        *args, _ = op.make_args(case, torch.float32, "cpu")
        check(op, [*args, in_residual], times=3)


def test_empty():
    for name in ("gated_activation", "gated_activation_backward", *(n for n in OPS if n.startswith("affine"))):
        args = OPS[name].make_args((0, 3, 4), torch.float32, "cpu")
        with fastvoc.backend("triton"):
            assert all(y.shape[0] == 0 for y in outputs(OPS[name](*args)))
    for op in gated_residual_fwd, gated_residual_bwd:
        for B, T in (0, 5), (2, 0):
            args = op.make_args((B, T, 4, 3, 2, 3, 1, False, True, True), torch.float32, "cpu")
            with fastvoc.backend("triton"):
                ours, want = op(*args), op.reference(*args) if T else op(*args)
            assert all(torch.equal(a, b) for a, b in zip(ours, want, strict=True))


def test_strided_inputs():
    *args, dilation, causal, rho, _ = gated_residual_fwd.make_args(LAYER, torch.float32, "cpu")
    strided = [torch.stack([a, a], -1)[..., 0] for a in args]
    with fastvoc.backend("triton"):
        a, b = gated_residual_fwd(*args, dilation, causal, rho, True), gated_residual_fwd(*strided, dilation, causal, rho, True)
    assert all(torch.equal(y, z) for y, z in zip(a, b))
    both = torch.randn(3, 6, 50)
    op = OPS["affine_coupling"]
    check(op, [both[:, :3], both[:, 3:], torch.randn(3, 3, 50)])


# ---- gradients and plans ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"causal": True, "step_in_residual": True}])
def test_gradients_of_the_public_function(changes):
    options = {"dilation": 3, "rho": 0.7, **changes}
    args = [a for a in gated_residual_fwd.make_args((2, 40, 9, 6, 5, 3, 3, False, True, True), torch.float32, "cpu")[:7]]

    def gradients(dtype, backend):
        leaves = [a.to(dtype, copy=True).requires_grad_() for a in args]
        with fastvoc.backend(backend):
            y, skip = gated_residual(*leaves, **options)
            return torch.autograd.grad(y.sin().sum() + (skip**2).sum(), leaves)

    exact = gradients(torch.float64, "reference")
    for ours, theirs, want in zip(gradients(torch.float32, "triton"), gradients(torch.float32, "reference"), exact, strict=True):
        floor = torch.finfo(torch.float32).eps * float(want.abs().max())
        assert float((ours - want).abs().max()) <= 3 * float((theirs - want).abs().max()) + floor


STACKS = [
    {},
    {"causal": True, "kernel_size": 2},
    {"skip_channels": 0},
    {"rho": 0.7, "step_in_residual": True},
    {"cond_channels": 0},
    {"gate_channels": 2 * 70},
]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("changes", STACKS, ids=str)
def test_plan(changes, precision):
    torch.manual_seed(0)
    options = dict(residual_channels=6, gate_channels=10, skip_channels=4, cond_channels=5, kernel_size=3, dilations=[1, 2, 4, 8])
    options |= changes
    stack = GatedResidualStack(**options)
    x, step = torch.randn(2, 40, options["residual_channels"]), torch.randn(2, 4, options["residual_channels"])
    cond = torch.randn(2, 40, 5) if options["cond_channels"] else None
    with fastvoc.backend("triton"):
        assert stack.plan(precision).backend == "triton"
        ours = stack.infer(x, cond, step, precision=precision)
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    run = lambda dtype: ReferencePlan(stack.to(dtype).weights()).run(*(None if t is None else t.to(dtype) for t in (x, cond, step)))
    theirs, exact = run(dtype), run(torch.float64)
    assert ours.dtype == torch.float32 and ours.std() > 0
    floor = torch.finfo(dtype).eps * float(exact.abs().max())
    assert float((ours - exact).abs().max()) <= 2 * float((theirs - exact).abs().max()) + floor


def test_a_batch_is_its_items():
    torch.manual_seed(0)
    stack = GatedResidualStack(8, 16, 8, 4, 3, [1, 2, 4])
    x, cond = torch.randn(2, 65, 8), torch.randn(2, 65, 4)
    with fastvoc.backend("triton"), torch.no_grad():
        whole = stack.infer(x, cond)
        assert torch.equal(whole, torch.cat([stack.infer(x[i : i + 1], cond[i : i + 1]) for i in range(2)]))


# ---- the comparison notices a changed kernel --------------------------------------------------------------------------

MUTATIONS = [  # file, what stands in it, what it becomes, the module and the operator that must notice
    ("gated_residual", "tap * dilation - left", "tap * dilation - left + (tap == 1)", "gated_residual"),  # one tap
    ("gated_residual", "b_in_ptr + H + h", "b_in_ptr + h", "gated_residual"),  # one bias
    ("gated_residual", "b_out_ptr + R + o", "b_out_ptr + o", "gated_residual"),
    ("gated_residual", "(t >= 0) & ", "(t >= -b) & ", "gated_residual"),  # the sample before the signal
    ("gated_residual", "out * rho", "out", "gated_residual"),
    ("gated_residual_backward", "left - tap * dilation", "left - tap * dilation + (tap == 1)", "gated_residual_backward"),
    ("gated_residual_backward", "db += tl", "db = tl", "gated_residual_backward"),
    ("gates", "dy * t * s * (1 - s)", "dy * t * (1 - s)", "gated_residual_backward"),
    ("gates", "3.33332819422e-1", "3.3331e-1", "gated_activation"),
    ("affine_coupling", "tl.exp(-log_s)", "tl.exp(log_s)", "affine_coupling_inverse"),
    ("affine_coupling", "tl.load(dsum_ptr + item)", "tl.load(dsum_ptr)", "affine_coupling_backward"),
    ("invertible_conv1x1", "((1, C) if transposed", "((C, 1) if transposed", "invertible_conv1x1_backward"),
]
UNCHANGED = [("gates", "", "", name) for name in dict.fromkeys(m[3] for m in MUTATIONS)]


@pytest.mark.parametrize(("file", "old", "new", "name"), MUTATIONS + UNCHANGED)
def test_a_changed_kernel_is_noticed(file, old, new, name, tmp_path, monkeypatch):
    here = Path(launch.__file__).parent
    shutil.copytree(here, tmp_path / "kernels")
    text = (here / f"{file}.py").read_text()
    assert text.count(old)
    (tmp_path / "kernels" / f"{file}.py").write_text(text.replace(old, new) if old else text)
    monkeypatch.setattr(fastvoc.kernels, "__path__", [str(tmp_path / "kernels")])
    for loaded in [m for m in sys.modules if m.startswith("fastvoc.kernels.")]:
        monkeypatch.delitem(sys.modules, loaded)
    module = importlib.import_module("fastvoc.kernels." + next(m for m in reversed(MODULES) if name.startswith(m)))
    assert Path(module.__file__).is_relative_to(tmp_path)
    if name == "gated_residual_backward":
        monkeypatch.setattr(module, "PROGRAMS", 1)  # so that a piece has more than one tile
    op = OPS[name]
    args = op.make_args((2, 60, 9, 5, 9, 3, 4, False, True, True) if "residual" in name else (2, 3, 60), torch.float32, "cpu")
    run = lambda: check(op, args, fn=getattr(module, f"{name}_triton"))
    if old:
        with pytest.raises(AssertionError):
            run()
    else:
        run()  # an unchanged copy passes
