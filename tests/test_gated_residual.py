"""The gated residual layer and stack: the formulas, the gradients, the bad inputs. Parity of backends is in test_ops.py."""

import pytest
import torch
import torch.nn.functional as F

import fastvoc
from fastvoc.errors import ConfigError, DeviceError, DTypeError, ShapeError
from fastvoc.layers import GatedResidualStack
from fastvoc.ops.gated_residual import (
    CASES,
    gated_residual,
    gated_residual_backward_reference,
    gated_residual_bwd,
    gated_residual_fwd,
    gated_residual_reference,
)
from tests.test_ops import run_python


def by_conv1d(x, w_in, b_in, w_out, b_out, cond, step, dilation, causal, rho, step_in_residual):
    """The layer as the papers' codes write it: channels first, with conv1d."""
    R, k = w_in.shape[1:]
    u = x if step is None else x + step[:, None]
    reach = (k - 1) * dilation
    pad = (reach, 0) if causal else (reach // 2, reach // 2)
    a = F.conv1d(F.pad(u.transpose(1, 2), pad), w_in, b_in, dilation=dilation)
    if cond is not None:
        a = a + cond.transpose(1, 2)
    z = torch.tanh(a.chunk(2, 1)[0]) * torch.sigmoid(a.chunk(2, 1)[1])
    r, s = F.conv1d(z, w_out[:, :, None], b_out).transpose(1, 2).split([R, w_out.shape[0] - R], 2)
    return ((u if step_in_residual else x) + r) * rho, s


@pytest.mark.parametrize("in_residual", [False, True])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_is_the_layer_of_the_papers(case, in_residual):
    *args, _ = gated_residual_fwd.make_args(case, torch.float64, "cpu")
    got = gated_residual_reference(*args, in_residual)
    for ours, theirs in zip(got, by_conv1d(*args, in_residual), strict=False):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12) and ours.shape == theirs.shape


@pytest.mark.parametrize("in_residual", [False, True])
@pytest.mark.parametrize("label", ["ragged", "causal, kernel 5", "no conditioning", "shorter than its reach", "single"])
def test_the_gradient_is_autograds(label, in_residual):
    *args, dilation, causal, rho, _ = gated_residual_fwd.make_args(CASES[label], torch.float64, "cpu")
    leaves = [a.requires_grad_() for a in args if a is not None]
    rng = torch.Generator().manual_seed(1)
    options = {"dilation": dilation, "causal": causal, "rho": rho, "step_in_residual": in_residual}
    ours = gated_residual(*args, **options)
    theirs = by_conv1d(*args, *options.values())
    dys = [torch.randn(y.shape, generator=rng, dtype=y.dtype) for y in theirs]
    got = torch.autograd.grad(ours, leaves, dys)
    want = torch.autograd.grad(theirs, leaves, dys)
    for a, b in zip(got, want, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-11)


def test_gradcheck():
    args = [
        a.requires_grad_() if isinstance(a, torch.Tensor) else a
        for a in gated_residual_fwd.make_args((2, 9, 3, 2, 4, 3, 2, False, True, True), torch.float64, "cpu")
    ]
    run = lambda *tensors: gated_residual(*tensors, dilation=2, rho=0.7)
    assert torch.autograd.gradcheck(run, args[:7])


def test_the_backward_reference_has_no_step_gradient_without_a_step():
    args = gated_residual_bwd.make_args(CASES["no conditioning"], torch.float64, "cpu")
    assert gated_residual_backward_reference(*args)[-1].shape == (1, 16)


def stack(**changes):
    torch.manual_seed(0)
    options = dict(residual_channels=6, gate_channels=10, skip_channels=4, cond_channels=5, kernel_size=3, dilations=[1, 2, 4])
    return GatedResidualStack(**{**options, **changes})


STACKS = [{}, {"causal": True, "kernel_size": 2}, {"skip_channels": 0}, {"rho": 0.7, "step_in_residual": True}]


@pytest.mark.parametrize("changes", STACKS)
def test_infer_is_forward(changes):
    module = stack(**changes)
    x, cond, step = torch.randn(2, 50, 6), torch.randn(2, 50, 5), torch.randn(2, 3, 6)
    want = module(x, cond, step)
    assert torch.allclose(module.infer(x, cond, step), want, atol=1e-5) and not want.isnan().any()
    with fastvoc.backend("reference"):
        assert torch.allclose(module.infer(x, cond, step), want, atol=1e-5)


def test_each_layer_can_have_a_conditioning_of_its_own():
    module = stack(cond_per_layer=True)
    x, cond, step = torch.randn(2, 50, 6), torch.randn(3, 2, 50, 5), torch.randn(2, 3, 6)
    want = module(x, cond, step)
    assert torch.equal(module(x, list(cond), step), want)  # a sequence is as good as one tensor
    assert torch.allclose(module.infer(x, cond, step), want, atol=1e-5)
    assert torch.allclose(module.infer(x, list(cond), step), want, atol=1e-5)
    shared = stack()
    shared.load_state_dict(module.state_dict())
    assert torch.equal(module(x, cond[:1].expand(3, -1, -1, -1), step), shared(x, cond[0], step))
    assert not torch.allclose(want, shared(x, cond[0], step))
    with pytest.raises(ShapeError, match=r"expected \(3, 2, 50, 5\)"):
        module(x, cond[0], step)
    with pytest.raises(ShapeError, match="2 tensors, expected one for each of 3"):
        module(x, list(cond[:2]), step)


def test_a_plan_follows_its_weights():
    module, x, cond = stack(), torch.randn(1, 20, 6), torch.randn(1, 20, 5)
    before = module.infer(x, cond)
    with torch.no_grad():
        module.layers[1].conv.weight.mul_(2)
    assert not torch.allclose(module.infer(x, cond), before)


def test_errors():
    x, w_in, b_in, w_out, b_out, *_ = gated_residual_fwd.make_args(CASES["ragged"], torch.float32, "cpu")
    with pytest.raises(ShapeError, match="time-major"):
        gated_residual(x.transpose(1, 2), w_in, b_in, w_out, b_out)
    with pytest.raises(ShapeError, match="even in number"):
        gated_residual(x, w_in[:9], b_in, w_out, b_out)
    with pytest.raises(ShapeError, match=r"b_in is \(3,\), expected \(10,\)"):
        gated_residual(x, w_in, b_in[:3], w_out, b_out)
    with pytest.raises(ConfigError, match="dilation"):
        gated_residual(x, w_in, b_in, w_out, b_out, dilation=0)
    with pytest.raises(ConfigError, match="odd kernel"):
        gated_residual(x, w_in[:, :, :2], b_in, w_out, b_out)
    with pytest.raises(DTypeError, match=r"w_out is torch.float64"):
        gated_residual(x, w_in, b_in, w_out.double(), b_out)
    with pytest.raises(DeviceError, match="b_out is on meta"):
        gated_residual(x, w_in, b_in, w_out, b_out.to("meta"))
    with pytest.raises(ShapeError, match="cond is missing"):
        stack()(torch.randn(1, 4, 6))
    with pytest.raises(ConfigError, match="odd one"):
        stack(kernel_size=4)


def saved_bytes(run) -> int:
    """What autograd keeps between forward and backward, each storage once."""
    kept = {}
    note = lambda t: kept.__setitem__(t.untyped_storage().data_ptr(), t.untyped_storage()) or t
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        run()
    return sum(s.nbytes() for s in kept.values())


@pytest.mark.parametrize("changes", [*STACKS, {"dropout": 0.3}], ids=str)
def test_recomputing_gives_the_same_gradients(changes):
    module = stack(**changes)
    x, cond, step = torch.randn(2, 30, 6, requires_grad=True), torch.randn(2, 30, 5), torch.randn(2, 3, 6)
    both = []
    for module.recompute in False, True:
        torch.manual_seed(1)
        y = module(x, cond, step)
        both.append([y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()], allow_unused=True)])
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(*both, strict=True))
    assert sum(a is not None for a in both[0]) > 10


def test_recomputing_keeps_a_third():
    module = stack(residual_channels=16, gate_channels=32, skip_channels=16, dilations=[1, 2, 4, 8, 16, 32] * 2)
    x, cond = torch.randn(1, 4000, 16), torch.randn(1, 4000, 5)
    plain = saved_bytes(lambda: module(x, cond))
    module.recompute = True
    assert 0 < saved_bytes(lambda: module(x, cond)) < 0.4 * plain


def test_reads_and_writes_nothing_outside():
    """A layer with what its gradient needs, and its gradient: forbidden pages around everything they are given."""
    run_python("""
        import os
        import numpy as np, torch
        from fastvoc import _C
        from fastvoc.ops.gated_residual import _inputs, _padding, gated_residual_backward_reference, gated_residual_reference
        from tests.devices import ISAS, running_on
        from tests.guards import Guards

        torch.set_num_threads(1)
        guards = Guards()
        rand = lambda *shape: torch.randn(*shape)
        for n, at_end in [(n, at_end) for n in range(1, 34) for at_end in (False, True)]:
            T, R, H, S = n, n * 7 % 33 + 1, n * 5 % 33 + 1, n * 11 % 33 + 1
            args = x, w_in, b_in, w_out, b_out, cond, step, dilation, causal, rho, _ = _inputs(
                1, T, R, H, S, 1 + n % 3, 1 + n % 4, n % 3 == 1 or n % 2 == 0, True, True, rand=rand)
            want = gated_residual_reference(*args)
            arrays = [t[None].numpy() for t in (w_in, b_in, w_in.new_empty(2 * H, 0), w_out, b_out)]
            given = [guards.floats(t, at_end) for t in (x, cond, step)]
            made = [guards.floats(y * 0, at_end) for y in want]
            tail = dilation, causal, rho, False
            gradients = gated_residual_backward_reference(want[0], want[1], x, want[2], w_in, w_out, step, *tail)
            u, taps, scaled = x + step[:, None], w_in.permute(2, 0, 1).contiguous(), w_out.clone()
            scaled[:R] *= rho
            handed = [guards.floats(t, at_end) for t in (*want[:2], u, want[2], taps, scaled)]
            shapes = (T, H), (T, 2 * H), (T, R), taps.shape, w_out.shape, (R,)
            z, da, dx, dw_in, dw_out, sums = results = [guards.floats(torch.zeros(s), at_end) for s in shapes]
            for isa in ISAS:
                with running_on(isa):
                    packed = _C.GatedResidualStackPlan(*arrays, [dilation], causal, rho, False, 0, isa)
                    work = guards.bytes(packed.workspace_bytes(1, T, 1), at_end)
                    packed.run_layer(1, T, *[a.ctypes.data for a in (*given, *made, work)], 1)
                    for got, y in zip(made, want):
                        assert np.abs(got - y.numpy()).max() < 1e-4, (isa, n)
                    sizes = 1, T, R, H, S, w_in.shape[2], dilation, _padding(w_in.shape[2], dilation, causal)[0], rho
                    _C.gated_residual_backward_cpu(*[a.ctypes.data for a in (*handed, *results)], *sizes)
                    dw_out[:R] *= rho
                    found = dx, dw_in.transpose(1, 2, 0), dw_out, da, sums
                    for got, y in zip(found, [gradients[i] for i in (0, 1, 3, 5, 6)]):
                        assert np.abs(got - y.numpy().reshape(got.shape)).max() < 1e-4 * max(1, y.abs().max()), (isa, n)
            guards.clear()
        os._exit(0)
    """)
