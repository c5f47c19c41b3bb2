"""WaveNet generation by the CUDA kernels, run by the emulator: teams of a cluster and single blocks, all heads, streams.

The accuracy rule and the networks are those of test_wavenet_generate.py, for fewer samples and a part of the grid.
"""

import pytest
import torch

from fastvoc.ops import philox
from fastvoc.ops.wavenet_generate import CpuPlan, ReferencePlan
from fastvoc.ops.wavenet_generate_cuda import CudaPlan
from tests.emulator import emulated
from tests.test_wavenet_generate import GRID, HEADS, job_of, mel_of, model_of, outputs_of, start, weights_of, within

pytestmark = pytest.mark.usefixtures("one_torch_thread")

N = 9  # samples: more than the largest dilation of most networks here
TEAMS = {"cluster": dict(capability=(9, 0)), "block": dict(capability=(8, 6))}
PRECISIONS = ["fp32", "fp16", "bf16"]


@pytest.fixture(params=TEAMS.values(), ids=TEAMS)
def team(request):
    return request.param


@pytest.mark.parametrize("sizes", GRID.values(), ids=GRID)
def test_as_exact_as_torch(sizes, team):
    weights = weights_of(**sizes)
    exact = outputs_of(ReferencePlan(weights.double()), weights, n=N)
    theirs = outputs_of(ReferencePlan(weights), weights, n=N)
    with emulated(seed=1, **team):
        plan = CudaPlan(weights)
        assert plan.team == (2 if team["capability"] == (9, 0) else 1)
        ours = outputs_of(plan, weights, n=N)
    assert ours.isfinite().all() and (ours != 0).float().mean() > 0.5 and ours.std() > 0.05
    assert within(ours, theirs, exact, k=4)


@pytest.mark.parametrize(("precision", "bits"), [("fp16", 11), ("bf16", 8)])
@pytest.mark.parametrize("sizes", ["residual 7, gate 2", "residual 33, gate 66", "256 classes, front 3"])
def test_half_precision(sizes, precision, bits, team):
    """Rounded weights and activations, float sums: the error is of the size of one rounding, averaged in the sums."""
    weights = weights_of(**GRID[sizes])
    exact = outputs_of(ReferencePlan(weights.double()), weights, 5, N)
    with emulated(seed=1, **team):
        ours = outputs_of(CudaPlan(weights, precision), weights, 5, N)
    error, size = (ours - exact).pow(2).mean().sqrt(), exact.pow(2).mean().sqrt()
    assert 2.0**-bits * 1e-3 * size < error < 3 * 2.0**-bits * size


@pytest.mark.parametrize("temperature", [1.0, 0.0])
@pytest.mark.parametrize("head", HEADS)
def test_free_running(head, temperature, team):
    weights = weights_of(head=head, out=HEADS[head])
    cond = job_of(weights, 3, 12)[0]
    initial = 3.0 if weights.n_classes else 0.0
    run = lambda plan: torch.stack(plan.run(start(plan, 3, 11, temperature, initial), [12] * 3, cond)[0])
    theirs = run(ReferencePlan(weights))
    with emulated(**team):
        ours = run(CudaPlan(weights))
    assert ours.std() > 0.01
    assert torch.equal(ours, theirs) if weights.n_classes else torch.allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("head", HEADS)
def test_the_seed_is_the_noise(head):
    """Philox as on the CPU, at any position."""
    weights = weights_of(head=head, out=HEADS[head])
    cond = job_of(weights, 1, 5)[0]
    for seed, stream, first in ((0, 0, 0), (2**64 - 1, 2**32 - 1, 2**32 - 3), (0x123456789ABCDEF0, 7, 2**40)):
        noise = torch.from_numpy(philox.draws(head, weights.n_mix, seed, stream, first, 5))
        with emulated():
            plan = CudaPlan(weights)
            states = [plan.begin(seed, stream, 1.0, 0.0) for _ in range(2)]
            for state in states:
                state.view(torch.int64)[0] = first
            own, explicit = plan.run(states[:1], [5], cond)[0][0], plan.run(states[1:], [5], cond, noise=[noise])[0][0]
        assert torch.equal(own, explicit)
        assert torch.equal(states[0], states[1]) and int(states[0].view(torch.int64)[0]) == first + 5


def test_more_components_than_a_warp_has_lanes():
    weights = weights_of(head="mol", out=3 * 70)
    cond = job_of(weights, 1, 8)[0]
    run = lambda plan: plan.run(start(plan, 1, 3), [8], cond)[0][0]
    with emulated():
        ours = run(CudaPlan(weights))
    assert torch.allclose(ours, run(ReferencePlan(weights)), atol=2e-5) and ours.std() > 0.01


@pytest.mark.parametrize("precision", PRECISIONS)
def test_company_order_and_place_change_nothing(precision, team):
    """Ten streams of different lengths; in groups of any size; any schedule; boards and weights on chip or not."""
    weights, counts = weights_of(), [3, 6, 0, 5, 6, 1, 2, 6, 4, 6]
    cond = [c[:n] for c, n in zip(job_of(weights, 10, 6)[0], counts)]
    results = []
    small = 5 << 10  # bytes of shared memory: too little for a board
    for seed, extra in ((0, {}), (5, {}), (2, dict(wavenet_generate=dict(cond_mib=0))), (3, dict(shared_bytes=small))):
        with emulated(seed=seed, **team | extra):
            plan = CudaPlan(weights, precision)
            if extra.get("shared_bytes") and team["capability"] == (9, 0):
                assert plan.team == 1  # no cluster where members cannot reach each other's board; it sums otherwise
                continue
            assert (plan._number("wavenet_boards", 10, 8) > 0) == bool(extra.get("shared_bytes"))
            states = start(plan, 10)
            results.append((plan.run(states, counts, cond)[0], states))
    for out, states in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(out + states, results[0][0] + results[0][1]))
    with emulated(**team):
        plan = CudaPlan(weights, precision)
        for b in (1, 3, 5):
            state = plan.begin(0, b, 1.0, 0.0)
            assert torch.equal(plan.run([state], counts[b : b + 1], cond[b : b + 1])[0][0], results[0][0][b])
            assert torch.equal(state, results[0][1][b])


def test_pausing_and_resuming(team):
    weights = weights_of()
    cond = job_of(weights, 1, 14)[0][0]
    with emulated(**team):
        plan = CudaPlan(weights, "bf16")
        whole = plan.run(start(plan, 1), [14], [cond])[0][0]
        (state,) = start(plan, 1)
        pieces = [plan.run([state], [5], [cond[:5]])[0][0]]
        saved = state.clone()
        pieces.append(plan.run([saved], [9], [cond[5:]])[0][0])
    assert torch.equal(torch.cat(pieces), whole) and not torch.equal(state, saved)


def test_layer_conditioning():
    weights = weights_of(mels=0, residual=24, gate=34)
    cond = [torch.randn(N, 3, 34) for _ in range(3)]
    _, noise, forced = job_of(weights, 3, N)
    run = lambda plan: torch.stack(plan.run(
        start(plan, 3), [N] * 3, cond, layer_cond=True, noise=noise, forced=forced, parameters=True)[1])
    with emulated():
        ours = run(CudaPlan(weights))
    assert within(ours, run(ReferencePlan(weights)), run(ReferencePlan(weights.double())), k=4)


def test_a_model_with_speakers():
    """From model.infer down: the same as the CPU engine, whose sums run in another order."""
    model, mel = model_of(speakers=True), mel_of(2, 3)
    theirs = model.infer(mel, [2, 0], seed=3)
    with emulated():
        ours = model.infer(mel, [2, 0], seed=3)
    assert isinstance(next(iter(model._plans.values()))[1], CpuPlan) and len(model._plans) == 2
    assert ours.std() > 0.01 and torch.allclose(ours, theirs, atol=2e-4) and not torch.equal(ours, theirs)
