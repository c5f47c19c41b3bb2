"""The gated residual stack by the CUDA kernels, run by the emulator: widths, kernels, conditioning, steps, precisions."""

from dataclasses import replace

import pytest
import torch

from fastvoc.ops.gated_residual_stack import ReferencePlan, StackWeights
from fastvoc.ops.gated_residual_stack_cuda import CudaPlan
from tests.emulator import emulated

pytestmark = pytest.mark.usefixtures("one_torch_thread")

GRID = {
    "parallel wavegan": dict(R=64, H=64, S=64, C=80, k=3, dilations=(1, 2), T=70),
    "diffwave": dict(R=32, H=32, S=32, C=80, k=3, dilations=(1, 64), T=65, step=True),
    "philsyn": dict(R=16, H=16, S=16, C=24, k=3, dilations=(1, 2), T=30, step=True, step_in_residual=True, per_layer=True),
    "clarinet": dict(R=40, H=24, S=1, C=20, k=2, dilations=(1, 2, 4), T=64, causal=True),
    "waveglow, narrow": dict(R=72, H=72, S=136, C=40, k=3, dilations=(1, 2), T=33),
    "odd": dict(R=7, H=5, S=9, C=3, k=3, dilations=(1, 3), T=129, step=True, B=3),
    "no conditioning": dict(R=33, H=17, S=1, C=0, k=3, dilations=(2,), T=20),
    "no skips": dict(R=7, H=9, S=0, C=5, k=3, dilations=(1, 2, 1), T=20),
    "kernel 5": dict(R=9, H=8, S=8, C=4, k=5, dilations=(3, 1), T=21),
    "shorter than its reach": dict(R=8, H=8, S=8, C=5, k=3, dilations=(16, 8), T=3),
    "one sample": dict(R=1, H=1, S=1, C=1, k=2, dilations=(1,), T=1, causal=True, B=2),
}


def case(R, H, S, C, k, dilations, T, B=1, causal=False, step=False, step_in_residual=False, per_layer=False, seed=0):
    rng = torch.Generator().manual_seed(seed)
    normal = lambda *shape, fan_in=1.0: torch.randn(*shape, generator=rng) / max(fan_in, 1) ** 0.5
    L = len(dilations)
    weights = StackWeights(
        w_in=normal(L, 2 * H, R, k, fan_in=k * R), b_in=normal(L, 2 * H, fan_in=16), w_cond=normal(L, 2 * H, C, fan_in=C),
        w_out=normal(L, R + S, H, fan_in=H / 2), b_out=normal(L, R + S, fan_in=16), dilations=tuple(dilations),
        causal=causal, rho=0.5**0.5, step_in_residual=step_in_residual, cond_per_layer=per_layer,
    )
    cond = normal(*((L,) if per_layer else ()), B, T, C) if C else None
    return weights, (normal(B, T, R), cond, normal(B, L, R) if step else None)


def as_double(weights, arguments):
    double = lambda t: t.double() if isinstance(t, torch.Tensor) else t
    return replace(weights, **{n: double(v) for n, v in vars(weights).items()}), [double(a) for a in arguments]


def exact_of(weights, arguments):
    weights, arguments = as_double(weights, arguments)
    return ReferencePlan(weights).run(*arguments)


@pytest.mark.parametrize("sizes", GRID.values(), ids=GRID)
def test_as_exact_as_torch(sizes):
    weights, arguments = case(**sizes)
    exact, theirs = exact_of(weights, arguments), ReferencePlan(weights).run(*arguments)
    with emulated(seed=1):
        ours = CudaPlan(weights).run(*arguments)
    assert ours.shape == exact.shape and ours.dtype == torch.float32
    assert ours.isfinite().all() and (ours != 0).float().mean() > 0.5 and (ours.numel() < 3 or ours.std() > 0.05)
    worst = lambda y: float((y - exact).abs().max())
    assert worst(ours) <= 2 * worst(theirs) + 4 * torch.finfo(torch.float32).eps * float(exact.abs().max())


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("sizes", GRID.values(), ids=GRID)
def test_half_precision(sizes, precision):
    """No further from exact than twice what plain torch is in that dtype."""
    weights, arguments = case(**sizes)
    exact = exact_of(weights, arguments)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    rounded = lambda t: t.to(dtype) if isinstance(t, torch.Tensor) else t
    theirs = ReferencePlan(replace(weights, **{n: rounded(v) for n, v in vars(weights).items()})).run(*map(rounded, arguments))
    with emulated(seed=2):
        ours = CudaPlan(weights, precision).run(*arguments)
    worst = lambda y: float((y.double() - exact).abs().max())
    assert 0 < worst(ours) <= 2 * worst(theirs) + torch.finfo(dtype).eps * float(exact.abs().max())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_items_alone_and_together_any_schedule_z_on_chip_or_not(precision):
    weights, (x, cond, step) = case(**GRID["odd"])
    results = []
    for seed, shared in ((0, 96 << 10), (7, 96 << 10), (3, 48 << 10)):
        with emulated(seed=seed, shared_bytes=shared):
            results.append(CudaPlan(weights, precision).run(x, cond, step))
    assert all(torch.equal(y, results[0]) for y in results)
    with emulated(seed=1):
        plan = CudaPlan(weights, precision)
        for b in range(3):
            alone = plan.run(x[b : b + 1], cond[b : b + 1], step[b : b + 1])
            assert torch.equal(alone[0], results[0][b])


def test_the_comparison_notices_one_wrong_tap():
    weights, arguments = case(**GRID["kernel 5"])
    exact = exact_of(weights, arguments)
    with emulated():
        right = CudaPlan(weights).run(*arguments)
        wrong = CudaPlan(replace(weights, dilations=(2, 1))).run(*arguments)
    assert (right - exact).abs().max() < 1e-5 < 0.1 < (wrong - exact).abs().max()


def test_no_samples_and_no_items():
    weights, _ = case(**GRID["no conditioning"])
    with emulated():
        assert CudaPlan(weights).run(torch.empty(2, 0, 33)).shape == (2, 0, 1)
        assert CudaPlan(weights).run(torch.empty(0, 5, 33)).shape == (0, 5, 1)
