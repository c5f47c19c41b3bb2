"""Gradients of every operator that has a public differentiable function, generated from the records.

Each is tried in float64 against finite differences, against autograd of its reference, compiled, exported, under
autocast and with activation checkpointing. An operator gets these tests with `Op(..., public=...)`.
"""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import fastvoc
import fastvoc.ops  # registers every operator
from fastvoc._op import OPS, Op
from tests.devices import device_of, dtypes_of

PUBLIC = [op for op in OPS.values() if isinstance(op, Op) and op.public]
EACH = pytest.mark.parametrize("op", PUBLIC, ids=lambda op: op.name)
ONCE = {"gated_residual"}  # without a second gradient
AUTOCAST = {"gated_activation": "widest", "gated_residual": "lower"}  # the flows: float32
BACKENDS = [
    pytest.param(op, name, marks=[] if name == "cpu" else pytest.mark.gpu, id=f"{op.name}-{name}")
    for op in PUBLIC
    for name in op.backends
    if name != "reference"
]


def small(op: Op, T: int = 5) -> tuple:
    """The ragged case with at most five of everything, and T samples."""
    case = [min(n, 5) if not isinstance(n, bool) else n for n in op.cases["ragged"]]
    case[op.length_at] = T
    return tuple(case)


def leaves_of(args, dtype=None):
    """Arguments whose tensors are leaves that want a gradient, and those leaves."""
    args = [a.detach().to(dtype or a.dtype, copy=True).requires_grad_() if isinstance(a, torch.Tensor) else a for a in args]
    return args, [a for a in args if isinstance(a, torch.Tensor)]


def total(result) -> torch.Tensor:
    """A scalar that every output has a part in, with a gradient that differs from place to place."""
    result = result if isinstance(result, tuple) else (result,)
    return sum((torch.sin(y.to(torch.promote_types(y.dtype, torch.float32)) * (i + 1))).sum() for i, y in enumerate(result))


def gradients(fn, args, dtype=None):
    args, leaves = leaves_of(args, dtype)
    return torch.autograd.grad(total(fn(*args)), leaves)


def only_tensors(fn, args):
    """fn of the tensors among args, the others fixed."""
    at = [i for i, a in enumerate(args) if isinstance(a, torch.Tensor)]

    def of_tensors(*tensors):
        filled = list(args)
        for i, t in zip(at, tensors, strict=True):
            filled[i] = t
        return fn(*filled)

    return of_tensors, [args[i] for i in at]


def test_every_operator_has_one():
    """A gradient or the part of one; what has neither is an operator that nothing differentiates."""
    assert {op.name for op in PUBLIC} >= {"gated_activation", "gated_residual", "affine_coupling", "invertible_conv1x1"}
    covered = {name for op in PUBLIC for name in (op.name, f"{op.name}_backward")}
    assert {op.name for op in OPS.values() if isinstance(op, Op)} <= covered


@EACH
def test_gradcheck(op):
    fn, tensors = only_tensors(op.public, op.make_args(small(op), torch.float64, "cpu"))
    tensors = leaves_of(tensors)[0]
    assert torch.autograd.gradcheck(fn, tensors)
    if op.name not in ONCE:
        assert torch.autograd.gradgradcheck(fn, tensors)


@pytest.mark.parametrize("name", sorted(ONCE))
def test_a_second_gradient_is_refused(name):
    args, leaves = leaves_of(OPS[name].make_args(small(OPS[name]), torch.float64, "cpu"))
    (dx,) = torch.autograd.grad(total(OPS[name].public(*args)), leaves[:1], create_graph=True)
    with pytest.raises(NotImplementedError, match=f"fastvoc.{name} has a first gradient only.*reference"):
        torch.autograd.grad(dx.sum(), leaves[1])


@pytest.mark.parametrize(("op", "backend"), BACKENDS)
def test_gradients_are_the_references(op, backend):
    reference = lambda *args: op.reference(*args)[:2] if op.name == "gated_residual" else op.reference(*args)
    for label in ("ragged", "single"):
        for dtype in dtypes_of(backend, op):
            args = op.make_args(op.cases[label], dtype, device_of(backend))
            with fastvoc.backend(backend):
                ours = gradients(op.public, args)
            theirs, exact = gradients(reference, args), gradients(reference, args, torch.float64)
            for a, b, c in zip(ours, theirs, exact, strict=True):
                floor = torch.finfo(dtype).eps * max(float(c.abs().max()), 1.0)
                assert a.dtype == dtype and float((a - c).abs().max()) <= 3 * float((b - c).abs().max()) + floor
            assert sum((a != 0).float().mean() for a in ours) > len(ours) / 2


@EACH
def test_one_input_at_a_time(op):
    """A gradient of one input alone is what it is among the others; nothing else gets one."""
    args = op.make_args(small(op), torch.float64, "cpu")
    fn, tensors = only_tensors(op.public, args)
    everything = gradients(fn, tensors)
    for i, want in enumerate(everything):
        alone = [t.detach().clone().requires_grad_(j == i) for j, t in enumerate(tensors)]
        total(fn(*alone)).backward()
        assert torch.allclose(alone[i].grad, want, atol=1e-12)
        assert all(t.grad is None for j, t in enumerate(alone) if j != i)


@EACH
def test_compiled_with_lengths(op):
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(op.public, fullgraph=True, dynamic=True, backend=counter)
    for T in (17, 33, 64, 100, 7):
        args = op.make_args(small(op, T), torch.float32, "cpu")
        for a, b in zip(gradients(compiled, args), gradients(op.public, args), strict=True):
            assert torch.equal(a, b) and a.abs().max() > 0
    assert counter.frame_count <= 3


@EACH
def test_exported_with_lengths(op):
    fn, tensors = only_tensors(op.public, op.make_args(small(op, 8), torch.float32, "cpu"))
    _, longer = only_tensors(op.public, op.make_args(small(op, 50), torch.float32, "cpu", seed=1))

    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return fn(*tensors)

    T = torch.export.Dim("T", min=2)
    dynamic = tuple({i: T for i, (m, n) in enumerate(zip(a.shape, b.shape)) if m != n} for a, b in zip(tensors, longer))
    assert any(dynamic)
    with torch.no_grad():
        program = torch.export.export(Module(), tuple(tensors), dynamic_shapes=(dynamic,))
        assert f"fastvoc.{op.name}" in str(program.graph)
        ours, want = program.module()(*longer), fn(*longer)
    for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in (ours, want)), strict=True):
        assert torch.equal(a, b)


@EACH
def test_autocast(op):
    policy = AUTOCAST.get(op.name, "float32")
    args = op.make_args(small(op), torch.float32, "cpu")
    plain = op.public(*args)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = [a.bfloat16() if i == 1 and policy != "float32" else a for i, a in enumerate(args)]
        under = op.public(*mixed)
        leaves = leaves_of(args)
        total(op.public(*leaves[0])).backward()
    for y, z in zip(*(r if isinstance(r, tuple) else (r,) for r in (under, plain)), strict=True):
        assert y.dtype == (torch.bfloat16 if policy == "lower" else torch.float32)
        assert torch.equal(y, z) if policy == "float32" else torch.allclose(y.float(), z, atol=0.2)
    for leaf in leaves[1]:
        assert leaf.grad.dtype == torch.float32 and leaf.grad.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):  # float64 is left alone
        doubles = op.public(*op.make_args(small(op), torch.float64, "cpu"))
    assert (doubles[0] if isinstance(doubles, tuple) else doubles).dtype == torch.float64


@EACH
def test_activation_checkpointing(op):
    args = op.make_args(small(op), torch.float32, "cpu")
    again = gradients(lambda *a: checkpoint(op.public, *a, use_reentrant=False), args)
    assert all(torch.equal(a, b) for a, b in zip(again, gradients(op.public, args), strict=True))


@EACH
def test_nothing_is_saved_without_a_gradient(op):
    """Inputs that want no gradient, and no_grad: the outputs have no history, and the same values."""
    args, _ = leaves_of(op.make_args(small(op), torch.float32, "cpu"))
    with torch.no_grad():
        without = op.public(*args)
    for y, z in zip(*(r if isinstance(r, tuple) else (r,) for r in (without, op.public(*args))), strict=True):
        assert y.grad_fn is None and z.grad_fn is not None and torch.allclose(y, z, atol=1e-6)
