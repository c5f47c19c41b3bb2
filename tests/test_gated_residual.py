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
from tests.devices import ISAS, running_on, threads
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


def test_wide_conditioning_is_projected_for_all_layers_at_once():
    module = stack(cond_channels=20)
    x, cond = torch.randn(2, 30, 6), torch.randn(2, 30, 20, requires_grad=True)
    shares = module._projected_together(cond)
    both = []
    for together in True, False:
        if not together:
            module._projected_together = lambda cond: None
        y = module(x, cond)
        both.append([y, *torch.autograd.grad(y.square().sum(), [cond, *(layer.cond.weight for layer in module.layers)])])
    assert len(shares) == 3 and shares[0].shape == (2, 30, 10)
    assert all(torch.allclose(a, b, atol=1e-5) and a.any() for a, b in zip(*both, strict=True))
    assert stack()._projected_together(torch.randn(2, 30, 5)) is None  # the projections of few channels are fast alone


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
        from fastvoc.ops.gated_residual import (
            _inputs, _padding, _products_of, gated_residual_backward_reference, gated_residual_reference)
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
            u, taps, scaled, k = x + step[:, None], _products_of(w_in), w_out.clone(), w_in.shape[2]
            scaled[:R] *= rho
            handed = [guards.floats(t, at_end) for t in (*want[:2], u, want[2], taps, scaled)]
            shapes = (T, H), (T, 2 * H), (T, R), (k, 2 * H, R), w_out.shape, (_C.gated_residual_backward_tiles(T, k, dilation), R)
            z, da, dx, dw_in, dw_out, sums = results = [guards.floats(torch.zeros(s), at_end) for s in shapes]
            for isa in ISAS:
                with running_on(isa):
                    packed = _C.GatedResidualStackPlan(*arrays, [dilation], causal, rho, False, 0, isa)
                    work = guards.bytes(packed.workspace_bytes(1, T, 1), at_end)
                    packed.run_layer(1, T, *[a.ctypes.data for a in (*given, *made, work)], 1)
                    for got, y in zip(made, want):
                        assert np.abs(got - y.numpy()).max() < 1e-4, (isa, n)
                    sizes = 1, T, R, H, S, k, dilation, _padding(k, dilation, causal)[0], rho
                    work = guards.bytes(_C.gated_residual_backward_bytes(R, H, k, 1), at_end)
                    work[:] = 255  # NaN: nothing may be read before it is written
                    _C.gated_residual_backward_cpu(*[a.ctypes.data for a in (*handed, *results, work)], *sizes, 1)
                    dw_out[:R] *= rho
                    found = dx, dw_in.transpose(1, 2, 0), dw_out, da, sums
                    for got, y in zip(found, [gradients[i] for i in (0, 1, 3, 5, 6)]):
                        assert np.abs(got - y.numpy().reshape(got.shape)).max() < 1e-4 * max(1, y.abs().max()), (isa, n)
            guards.clear()
        os._exit(0)
    """)


def test_bf16_reads_and_writes_nothing_outside():
    """The same for the layer in bf16, at the widths that it takes; its lengths around a tile of 256 and pairs of samples."""
    run_python("""
        import os
        import numpy as np, torch
        from fastvoc import _C
        from fastvoc.ops.gated_residual import _inputs, _padding, gated_residual_backward_reference, gated_residual_reference
        from tests.devices import ISAS, running_on
        from tests.guards import Guards

        torch.set_num_threads(1)
        guards, rounded = Guards(), lambda t: t.bfloat16().float()
        rand = lambda *shape: torch.randn(*shape)

        def halves(t, at_end):
            array = guards.bytes(2 * t.numel(), at_end).view(np.int16)
            array[:] = t.bfloat16().flatten().view(torch.int16).numpy()
            return array

        widened = lambda array, like: torch.from_numpy(array.copy()).view(torch.bfloat16).float().view(like.shape)
        for i, T in enumerate((1, 2, 31, 33, 255, 256, 257)):
            for isa in ISAS:
                with running_on(isa):
                    n, at_end, k = _C.gated_residual_bf16_unit(), i % 2 == 0, 1 + i % 3
                    R, H, S = n * (1 + i % 2), n, n * (i % 3)
                    x, w_in, b_in, w_out, b_out, cond, _, dilation, causal, rho, _ = _inputs(
                        1, T, R, H, S, k, 1 + i % 4, i % 3 == 1 or i % 2 == 0, True, False, rand=rand)
                    x, cond, left = rounded(x), rounded(cond), _padding(k, dilation, causal)[0]
                    sizes, tail = (1, T, R, H, S, k, dilation, left, rho), (dilation, causal, rho, False)
                    want = gated_residual_reference(x, w_in, b_in, w_out, b_out, cond, None, *tail)
                    weights = [guards.floats(w, at_end) for w in (w_in, b_in, w_out, b_out)]
                    u, c = halves(x, at_end), halves(cond, at_end)
                    x_out, skip, a = made = [halves(y * 0, at_end) for y in want]
                    work = guards.bytes(_C.gated_residual_bf16_bytes(False, *sizes[:6], 1), at_end)
                    work[:] = 255  # NaN: nothing may be read before it is written
                    at = lambda *arrays: [array.ctypes.data for array in arrays]
                    _C.gated_residual_bf16_cpu(*at(*weights, u, u, c, x_out, skip, a, work), *sizes, 1)
                    for got, y in zip(made, want):
                        assert not y.numel() or (widened(got, y) - y).abs().max() < 0.1, (isa, T)
                    dx_out, dskip = rounded(want[0]), rounded(want[1])
                    gradients = gated_residual_backward_reference(dx_out, dskip, x, widened(a, want[2]), w_in, w_out, None, *tail)
                    dx, dw_in, db_in, dw_out, db_out, da, _ = gradients
                    half = [halves(y * 0, at_end) for y in (da, dx)]
                    full = [guards.floats(w, at_end) for w in (dw_in, db_in, dw_out, db_out, torch.zeros(-(-T // 256), R))]
                    work = guards.bytes(_C.gated_residual_bf16_bytes(True, *sizes[:6], 1), at_end)
                    work[:] = 255
                    given = at(weights[0], weights[2], halves(dx_out, at_end), halves(dskip, at_end), u, a)
                    _C.gated_residual_bf16_backward_cpu(*given, *at(*half, *full, work), *sizes, 1)
                    found = widened(half[0], da), widened(half[1], dx), *map(torch.from_numpy, full)
                    for got, y in zip(found, (da, dx, dw_in, db_in, dw_out, db_out)):
                        assert (got - y).abs().max() < 0.02 * max(1, y.abs().max()), (isa, T)
            guards.clear()
        os._exit(0)
    """)


def parts_of(case, dtype):
    """Inputs of a case in `dtype`, and a gradient of its outputs."""
    *args, dilation, causal, rho, in_residual = gated_residual_fwd.make_args(case, torch.float32, "cpu")
    leaves = [a.to(dtype).requires_grad_() for a in args if a is not None]
    rng, S = torch.Generator().manual_seed(1), case[4]
    dys = [torch.randn(*case[:2], n, generator=rng).to(dtype) for n in (case[2], S)]
    return args, leaves, dys, (dilation, causal, rho, in_residual)


@pytest.mark.parametrize("label", ["parallel wavegan layer, 1 s", "ragged", "causal, kernel 5", "shorter than its reach"])
@pytest.mark.parametrize("isa", ISAS)
def test_under_autocast_it_is_no_worse_than_torchs_convolutions(label, isa):
    """bf16 samples, float32 weights with float32 gradients: against float64, beside torch's own layer under autocast."""
    case = (2, 500, *CASES[label][2:]) if label.startswith("parallel") else CASES[label]

    def gradients(layer, dtype, enabled):
        args, leaves, dys, options = parts_of(case, dtype)
        given = iter(leaves)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            ys = layer(*[None if a is None else next(given) for a in args], *options)
        gradients = torch.autograd.grad(ys, leaves, [d.to(y.dtype) for d, y in zip(dys, ys, strict=True)])
        return [t.detach() for t in (*ys, *gradients)]

    ours = lambda *args: gated_residual(*args[:7], dilation=args[7], causal=args[8], rho=args[9], step_in_residual=args[10])
    with running_on(isa), fastvoc.backend("cpu"):
        got = gradients(ours, torch.float32, True)
    theirs, exact = gradients(by_conv1d, torch.float32, True), gradients(by_conv1d, torch.float64, False)
    assert got[0].dtype == got[1].dtype == torch.bfloat16
    for a, b, c in zip(got, theirs, exact, strict=True):
        floor = torch.finfo(torch.bfloat16).eps * float(c.abs().max())
        assert float((a - c).abs().max()) <= 2 * float((b - c).abs().max()) + floor
    dw_in = got[3]
    assert dw_in.dtype == torch.float32 and not torch.equal(dw_in, dw_in.bfloat16().float())


@pytest.mark.parametrize("isa", ISAS)
def test_bf16_threads_change_no_bit(isa):
    case = (3, 700, 16, 16, 32, 3, 5, False, True, True)
    both = []
    for n in 1, 2, 3:
        args, leaves, dys, (dilation, causal, rho, _) = parts_of(case, torch.bfloat16)
        with running_on(isa), threads(n), fastvoc.backend("cpu"):
            ys = gated_residual(*leaves, dilation=dilation, causal=causal, rho=rho)
            both.append([*ys, *torch.autograd.grad(ys, leaves, dys)])
    assert all(torch.equal(a, b) for other in both[1:] for a, b in zip(both[0], other, strict=True))


def test_weights_may_be_wider_than_samples():
    args = gated_residual_fwd.make_args(CASES["ragged"], torch.float32, "cpu")
    x, w_in, b_in, w_out, b_out, cond, step, *options = args
    low = x.bfloat16(), w_in, b_in, w_out, b_out, cond.bfloat16(), step.bfloat16()
    for backend in "cpu", "reference":
        with fastvoc.backend(backend):
            y, skip, a = gated_residual_fwd(*low, *options)
            gradients = gated_residual_bwd(y, skip, low[0], a, w_in, w_out, low[6], *options)
        kinds = [torch.bfloat16, *[torch.float32] * 4, torch.bfloat16, torch.bfloat16]
        assert y.dtype == skip.dtype == a.dtype == torch.bfloat16 and [g.dtype for g in gradients] == kinds
    with pytest.raises(DTypeError, match=r"x is torch.bfloat16 but cond is torch.float32"):
        gated_residual(*low[:5], cond)
    with pytest.raises(DTypeError, match=r"x is torch.float32 but w_in is torch.bfloat16"):
        gated_residual(x, w_in.bfloat16(), b_in, w_out, b_out)
