"""The CPU plan of the gated residual stack: every instruction set and precision against float64, threads, batches, borders."""

from dataclasses import fields, replace

import pytest
import torch

import fastvoc
from fastvoc.errors import ConfigError, DTypeError, ShapeError
from fastvoc.ops.gated_residual_stack import (
    PRECISIONS,
    CpuPlan,
    Interpolated,
    ReferencePlan,
    StackWeights,
    gated_residual_stack,
)
from tests.devices import ISAS, running_on
from tests.test_ops import run_python

# L, R, half gate, S, C, k, dilations, causal, step, step_in_residual, B, T
CASES = {
    "parallel wavegan": (4, 64, 64, 64, 80, 3, (1, 2, 64, 512), False, False, False, 1, 600),
    "diffwave": (3, 64, 64, 64, 80, 3, (1, 2, 128), False, True, False, 2, 201),
    "student": (3, 64, 64, 64, 80, 3, (1, 2, 256), True, False, False, 1, 400),
    "waveglow, thin": (2, 96, 96, 96, 320, 3, (1, 4), False, False, False, 1, 40),
    "deep sums": (2, 96, 200, 40, 300, 5, (1, 9), True, False, False, 1, 23),
    "ragged": (3, 7, 5, 9, 3, 3, (1, 2, 4), False, True, True, 3, 101),
    "one channel each": (2, 1, 1, 1, 1, 2, (1, 3), True, True, False, 2, 17),
    "no conditioning": (3, 16, 16, 8, 0, 3, (1, 2, 4), False, False, False, 1, 65),
    "no skips": (3, 24, 12, 0, 5, 3, (1, 2, 4), False, True, True, 2, 50),
    "kernel 1": (2, 20, 33, 17, 2, 1, (1, 1), False, True, False, 1, 31),
    "kernel 7": (2, 19, 18, 47, 6, 7, (1, 5), False, False, False, 1, 90),
    "shorter than its reach": (3, 12, 8, 8, 4, 3, (16, 1, 512), False, True, False, 2, 3),
    "single sample": (2, 5, 3, 2, 1, 2, (1, 2), True, False, False, 1, 1),
}


def weights_of(case, seed=0) -> StackWeights:
    L, R, H, S, C, k, dilations, causal, _, in_residual, _, _ = case
    rng = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.randn(*shape, generator=rng)
    return StackWeights(
        rand(L, 2 * H, R, k) / (k * R) ** 0.5,
        rand(L, 2 * H) * 0.1,
        rand(L, 2 * H, C) / max(C, 1) ** 0.5,
        rand(L, R + S, H) / H**0.5,
        rand(L, R + S) * 0.1,
        dilations,
        causal,
        0.5**0.5,
        in_residual,
    )


def inputs_of(case, seed=1):
    L, R, _, _, C, _, _, _, has_step, _, B, T = case
    rng = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.randn(*shape, generator=rng)
    return rand(B, T, R), rand(B, T, C) if C else None, rand(B, L, R) if has_step else None


def cast(weights: StackWeights, dtype) -> StackWeights:
    tensors = {f.name: getattr(weights, f.name) for f in fields(weights)}
    return replace(weights, **{n: t.to(dtype) for n, t in tensors.items() if isinstance(t, torch.Tensor)})


def reference(weights: StackWeights, args, dtype) -> torch.Tensor:
    return ReferencePlan(cast(weights, dtype)).run(*[None if a is None else a.to(dtype) for a in args])


def error(y, exact) -> float:
    return float((y.double() - exact).abs().max())


def allowed(weights, args, exact, precision) -> float:
    """The accuracy rule: twice the error of plain torch in this precision, and one rounding of the largest value."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    return 2 * error(reference(weights, args, dtype), exact) + torch.finfo(dtype).eps * float(exact.abs().max())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("label", CASES)
def test_every_instruction_set_is_as_exact_as_torch(label, precision):
    case = CASES[label]
    weights, args = weights_of(case), inputs_of(case)
    exact = reference(weights, args, torch.float64)
    assert exact.isfinite().all() and (exact != 0).float().mean() > 0.5
    bound = allowed(weights, args, exact, precision)
    plan = CpuPlan(weights, precision)
    for isa in ISAS:  # one plan: it follows fastvoc.set_cpu_isa
        with running_on(isa):
            y = plan.run(*args)
        assert y.shape == exact.shape and error(y, exact) <= bound, (isa, error(y, exact), bound)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_changed_weight_is_noticed(precision):
    case = CASES["ragged"]
    weights, args = weights_of(case), inputs_of(case)
    exact = reference(weights, args, torch.float64)
    bound = allowed(weights, args, exact, precision)
    for name in ("w_in", "b_in", "w_cond", "w_out", "b_out"):
        changed = cast(weights, torch.float32)
        setattr(changed, name, getattr(weights, name).clone())
        getattr(changed, name)[1].flatten()[0] += 0.5
        assert error(CpuPlan(changed, precision).run(*args), exact) > bound, name


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("label", ["diffwave", "ragged", "no skips", "shorter than its reach"])
def test_threads_and_company_change_no_bit(label, precision):
    case = CASES[label]
    weights, args = weights_of(case), inputs_of(case)
    plans = [CpuPlan(weights, precision, threads=n) for n in (1, 2, 3, 5)]
    for isa in ISAS:
        with running_on(isa):
            y = plans[0].run(*args)
            assert all(torch.equal(plan.run(*args), y) for plan in plans[1:])
            for b in range(len(y)):
                alone = plans[0].run(*[None if a is None else a[b : b + 1] for a in args])
                assert torch.equal(alone[0], y[b])


def test_inputs_of_any_strides_and_alignment():
    case = CASES["diffwave"]
    weights, (x, cond, step) = weights_of(case), inputs_of(case)
    plan = CpuPlan(weights)
    y = plan.run(x, cond, step)
    far = lambda t: t.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(plan.run(far(x), cond.flip(1).flip(1), far(step)), y)
    unaligned = lambda t: torch.cat([torch.zeros(1), t.flatten()])[1:].view(t.shape)
    assert torch.equal(plan.run(unaligned(x), unaligned(cond), unaligned(step)), y)
    assert torch.equal(plan.run(x[:1].expand(2, -1, -1), cond[:1].expand(2, -1, -1), step[:1].expand(2, -1, -1))[1], y[0])


def test_nothing_in_nothing_out():
    case = CASES["ragged"]
    plan = CpuPlan(weights_of(case))
    assert plan.run(torch.empty(0, 5, 7), torch.empty(0, 5, 3), torch.empty(0, 3, 7)).shape == (0, 5, 9)
    assert plan.run(torch.empty(2, 0, 7), torch.empty(2, 0, 3)).shape == (2, 0, 9)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nan_stays_where_the_dilations_carry_it(precision):
    case = CASES["ragged"]
    weights, (x, cond, _) = weights_of(case), inputs_of(case)
    x[1, 50, 3] = float("nan")
    got = CpuPlan(weights, precision).run(x, cond)
    want = ReferencePlan(weights).run(x, cond)
    assert torch.equal(got.isnan(), want.isnan()) and want.isnan().any()


def test_denormals_cost_nothing_and_the_callers_mode_stays():
    case = CASES["parallel wavegan"]
    weights, (x, cond, _) = weights_of(case), inputs_of(case)
    tiny = torch.tensor(1e-40)
    y = CpuPlan(weights, threads=2).run(x * 1e-41, cond)
    assert y.isfinite().all() and float(tiny * 1) != 0
    assert torch.equal(y, CpuPlan(weights, threads=2).run(x * 0, cond))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_conditioning_of_each_layer_may_be_made_when_asked(precision):
    case = CASES["ragged"]
    weights, (x, _, step) = replace(weights_of(case), cond_per_layer=True), inputs_of(case)
    cond = torch.randn(3, *x.shape[:2], 3)
    exact = reference(weights, (x, cond, step), torch.float64)
    plan = CpuPlan(weights, precision, threads=2)
    y = plan.run(x, cond, step)
    assert error(y, exact) <= allowed(weights, (x, cond, step), exact, precision)
    assert error(plan.run(x, cond[[0, 0, 2]], step), exact) > 10 * error(y, exact)

    class Made:
        def __getitem__(self, l):
            return cond[l].clone()

    assert torch.equal(plan.run(x, Made(), step), y)
    with pytest.raises(ShapeError, match=r"cond\[0\] is"):
        plan.run(x, cond[:, 1:], step)


def interpolated(case, n_taps=3, seed=2) -> Interpolated:
    C, B, T = case[4], *case[-2:]
    rng = torch.Generator().manual_seed(seed)
    n_frames = T // 7 + n_taps
    first = torch.randint(0, n_frames - n_taps + 1, (T,), generator=rng, dtype=torch.int32)
    return Interpolated(torch.randn(B, n_frames, C, generator=rng), first, torch.randn(T, n_taps, generator=rng) / n_taps**0.5)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("label", ["parallel wavegan", "student", "deep sums", "ragged", "no skips", "single sample"])
def test_conditioning_at_a_lower_rate(label, precision):
    case = CASES[label]
    weights, (x, _, step), low = weights_of(case), inputs_of(case), interpolated(case)
    doubled = Interpolated(low.frames.double(), low.first, low.taps.double())
    cond = low.expanded()
    t = case[-1] - 1
    assert torch.equal(cond[0, t], sum(low.taps[t, j] * low.frames[0, low.first[t] + j] for j in range(3)))
    exact = ReferencePlan(cast(weights, torch.float64)).run(x.double(), doubled, None if step is None else step.double())
    bound = allowed(weights, (x, cond, step), exact, precision)
    plans = [CpuPlan(weights, precision, threads=n) for n in (1, 3)]
    for isa in ISAS:
        with running_on(isa):
            y = plans[0].run(x, low, step)
            assert error(y, exact) <= bound, (isa, error(y, exact), bound)
            assert torch.equal(plans[1].run(x, low, step), y)
            last = Interpolated(low.frames[-1:], low.first, low.taps)
            assert torch.equal(plans[1].run(x[-1:], last, None if step is None else step[-1:])[0], y[-1])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("label", ["diffwave", "ragged", "deep sums"])
def test_conditioning_may_be_projected_once(label, per_layer, precision):
    case = CASES[label]
    L, C, B, T = case[0], case[4], *case[-2:]
    weights, (x, cond, step) = replace(weights_of(case), cond_per_layer=per_layer), inputs_of(case)
    if per_layer:
        cond = torch.randn(L, B, T, C, generator=torch.Generator().manual_seed(1))
    exact = reference(weights, (x, cond, step), torch.float64)
    bound = allowed(weights, (x, cond, step), exact, precision)
    plan = CpuPlan(weights, precision, threads=2)
    for isa in ISAS:
        with running_on(isa):
            projected = plan.project(cond)
            y = plan.run(x, projected, step)
            assert len(projected.layers) == L and error(y, exact) <= bound, (isa, error(y, exact), bound)
            some = plan.project(cond, max_bytes=projected.layers.nbytes // L)  # the other layers multiply: the same bits
            none = plan.project(cond, max_bytes=0)
            assert (len(some.layers), len(none.layers)) == (1, 0)
            assert torch.equal(plan.run(x, some, step), y) and torch.equal(plan.run(x, none, step), y)
    assert torch.equal(plan.run(x, projected, step), y)  # on the instruction set that it was made for
    with pytest.raises(ConfigError, match="another plan"):
        CpuPlan(weights, precision).run(x, projected, step)
    with pytest.raises(ConfigError, match=r"not for \(B, T\)"):
        plan.run(x[:, 1:], projected, step)


def test_a_forced_backend_is_the_one_that_runs():
    weights = weights_of(CASES["ragged"])
    assert gated_residual_stack.plan(torch.device("cpu"), weights).backend == "cpu"
    with fastvoc.backend("reference"):
        assert gated_residual_stack.plan(torch.device("cpu"), weights).backend == "reference"
    assert gated_residual_stack.plan(torch.device("cpu"), cast(weights, torch.float64)).backend == "reference"


def test_errors():
    case = CASES["ragged"]
    plan, (x, cond, step) = CpuPlan(weights_of(case)), inputs_of(case)
    with pytest.raises(ShapeError, match=r"x is \(3, 101, 6\)"):
        plan.run(x[..., 1:], cond, step)
    with pytest.raises(ShapeError, match=r"cond is \(3, 100, 3\), expected \(3, 101, 3\)"):
        plan.run(x, cond[:, 1:], step)
    with pytest.raises(ShapeError, match="step is"):
        plan.run(x, cond, step[:, 1:])
    with pytest.raises(DTypeError, match="cond is torch.float64"):
        plan.run(x, cond.double(), step)
    low = interpolated(case)
    with pytest.raises(ShapeError, match=r"frames are \(3, 17, 3\), first \(101,\), taps \(101, 3\), expected \(3, F, 3\)"):
        plan.run(x[:, 1:], low)
    with pytest.raises(ShapeError, match="reach from frame 0 to 17, but there are 17"):
        plan.run(x, replace(low, first=low.first.clamp(max=14) + (low.first == low.first.max())))
    with pytest.raises(ShapeError, match="reach from frame -1"):
        plan.run(x, replace(low, first=low.first - 1))
    with pytest.raises(DTypeError, match="first is torch.int64"):
        plan.run(x, replace(low, first=low.first.long()))
    with pytest.raises(ConfigError, match="precision"):
        CpuPlan(weights_of(case), "fp8")
    for threads in (0, 10**6):
        with pytest.raises(ConfigError, match=f"threads must be a whole number in 1…1024, got {threads}"):
            CpuPlan(weights_of(case), threads=threads)


def test_reads_and_writes_stay_inside():
    """Guarded pages around every buffer; channels around a vector, lengths around a block of rows and a tile."""
    run_python("""
        import ctypes, mmap, os
        import numpy as np, torch
        import fastvoc
        from fastvoc import _C
        from fastvoc.ops.gated_residual_stack import CpuPlan, ReferencePlan
        from tests.test_gated_residual_stack import weights_of

        page, libc, regions = mmap.PAGESIZE, ctypes.CDLL(None), []
        libc.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int

        def guarded(n_bytes, at_end):  # 64-byte alignment at the start, or the end right before the guard
            room = (n_bytes + page - 1) // page * page
            memory = mmap.mmap(-1, room + 2 * page)
            start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            for side in (start, start + page + room):
                assert libc.mprotect(side, page, 0) == 0
            regions.append(memory)
            offset = page + (room - n_bytes if at_end else 0)
            return np.frombuffer(memory, np.uint8, n_bytes, offset)

        sizes = [(1, 1, 1, 1), (7, 5, 9, 3), (16, 16, 16, 16), (17, 15, 33, 31), (64, 64, 64, 80)]
        rng = np.random.default_rng(0)
        isas = [name for name, supported, *_ in _C.cpu_isas() if supported]
        for R, H, S, C in sizes:
            case = (2, R, H, S, C, 3, (1, 2), False, True, False, 0, 0)
            weights = weights_of(case)
            for precision in ("fp32", "bf16"):
                plan = CpuPlan(weights, precision)
                for isa in isas if R < 64 else [i for i in isas if "emulated" not in i]:
                    fastvoc.set_cpu_isa(isa)
                    packed = plan._pack(isa)
                    for T in (1, 2, 5, 7, 33, 193) if R == 7 else (1, 6, 31):
                        for at_end in (False, True):
                            def array(*shape, values=None):
                                a = guarded(4 * int(np.prod(shape)), at_end).view(np.float32).reshape(shape)
                                a[:] = rng.standard_normal(shape)
                                return a
                            x, c, s, out = array(1, T, R), array(1, T, C), array(1, 2, R), array(1, T, S)
                            work = guarded(packed.workspace_bytes(1, T, 1), at_end)  # a multiple of 64 bytes
                            work[:] = 255  # NaN: nothing may be read before it is written
                            at = [a.ctypes.data for a in (x, c, s, out, work)]
                            want = ReferencePlan(weights).run(*map(torch.tensor, (x, c, s))).numpy()
                            near = lambda: np.abs(out - want).max() < (1e-5 if precision == "fp32" else 0.1)
                            packed.run(0, 2, 1, T, *at, 1, 0, 0, 0, 0, 0, 0, False)
                            assert near(), (isa, T, R)
                            # The conditioning once more, as one frame more than there are samples
                            frames, taps, lines = array(1, T + 1, C), array(T, 2), array(2, 1, T + 1, packed.gate_width)
                            first = guarded(4 * T, at_end).view(np.int32)
                            frames[0, 1:], frames[0, 0], first[:], taps[:] = c[0], 7, np.arange(T), (0, 1)
                            room = guarded(packed.workspace_bytes(1, T + 1, 1), at_end)
                            room[:], out[:] = 255, 0
                            packed.project(0, 2, 1, T + 1, frames.ctypes.data, lines.ctypes.data, room.ctypes.data, 1)
                            at[1] = 0
                            where = [a.ctypes.data for a in (lines, first, taps)]
                            packed.run(0, 2, 1, T, *at, 1, 2, T + 1, *where, 2, False)
                            assert near(), (isa, T, R)
                            del x, c, s, out, work, frames, taps, lines, first, room
                            regions.clear()
        os._exit(0)
    """)
