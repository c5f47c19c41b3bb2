"""The generation engine against its reference in float64, and what must be equal to the bit: threads, company, chunks.

The accuracy rule is test_ops.py's: error to float64 at most twice that of plain torch in float32, plus roundings.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
import torch

from fastvoc import WaveNet
from fastvoc.errors import ShapeError
from fastvoc.layers import (
    ConvInUpsampleNetwork,
    ConvTranspose1dUpsampleNetwork,
    ConvTranspose2dUpsampleNetwork,
    UpsampleNetwork,
)
from fastvoc.models.wavenet_streams import generate
from fastvoc.ops import philox
from fastvoc.ops.upsample import StreamingUpsampler, upsample_reference
from fastvoc.ops.wavenet_generate import CpuPlan, ReferencePlan, WaveNetWeights
from tests.devices import FMA_ISAS, ISAS, PAIR_ISAS, running_on
from tests.test_ops import run_python

EPS = torch.finfo(torch.float32).eps
HEADS = {"softmax": 30, "mol": 30, "gaussian": 2, "mog": 6}


@pytest.fixture(params=ISAS)
def isa(request):
    with running_on(request.param):
        yield request.param


pytestmark = pytest.mark.usefixtures("one_torch_thread")


def weights_of(
    residual=24, gate=40, skip=20, hidden=18, out=30, mels=5, kernel=3, dilations=(1, 2, 4), head="mol",
    front_kernel=1, front_activation="none", seed=0,
):
    """Random weights with activations of order one; log scales near -2, so that samples are no noise."""
    rng = torch.Generator().manual_seed(seed)
    L = len(dilations)

    def normal(*shape, fan_in):
        return torch.randn(*shape, generator=rng) / max(fan_in, 1) ** 0.5

    bias = lambda *shape: normal(*shape, fan_in=25)
    n_mix = max(out // 3, 1) if head != "softmax" else 1
    b_logits = bias(out)
    if head != "softmax":
        b_logits[out // 2 if out == 2 else 2 * n_mix :] -= 3
    return WaveNetWeights(
        front=normal(front_kernel, out if head == "softmax" else 1, residual, fan_in=front_kernel),
        b_front=bias(residual), w_in=normal(L, gate, residual, kernel, fan_in=residual * kernel) * 1.3,
        b_in=bias(L, gate),
        w_cond=normal(L, gate, mels, fan_in=mels), w_res=normal(L, residual, gate // 2, fan_in=gate // 2),
        b_res=bias(L, residual), w_skip=normal(L, skip, gate // 2, fan_in=L * gate / 4), b_skip=bias(skip),
        w_hidden=normal(hidden, skip, fan_in=skip) * 1.5, b_hidden=bias(hidden),
        w_logits=normal(out, hidden, fan_in=hidden) * 1.5, b_logits=b_logits, dilations=tuple(dilations), head=head,
        n_classes=out if head == "softmax" else 0, n_mix=n_mix, rho=0.5**0.5, front_activation=front_activation,
    )


def job_of(weights, n_streams=2, n=40, seed=1):
    """Conditioning, noise and forced samples of some streams."""
    rng = torch.Generator().manual_seed(seed)
    cond = [torch.randn(n, weights.w_cond.shape[2], generator=rng) for _ in range(n_streams)]
    noise = [torch.from_numpy(philox.draws(weights.head, weights.n_mix, seed, b, 0, n)) for b in range(n_streams)]
    if weights.n_classes:
        forced = [torch.randint(weights.n_classes, (n,), generator=rng).float() for _ in range(n_streams)]
    else:
        forced = [torch.rand(n, generator=rng) * 2 - 1 for _ in range(n_streams)]
    return cond, noise, forced


def start(plan, n_streams, seed=0, temperature=1.0, initial=0.0):
    return [plan.begin(seed, b, temperature, initial) for b in range(n_streams)]


def outputs_of(plan, weights, n_streams=2, n=40):
    """(n_streams, n, A) network outputs under teacher forcing."""
    cond, noise, forced = job_of(weights, n_streams, n)
    _, given = plan.run(start(plan, n_streams), [n] * n_streams, cond, noise=noise, forced=forced, parameters=True)
    return torch.stack(given)


def within(ours, theirs, exact, k):
    """The accuracy rule; k: roundings of sums, of the size of the largest output."""
    error, torch_error = float((ours - exact).abs().max()), float((theirs - exact).abs().max())
    return error <= 2 * torch_error + k * EPS * float(exact.abs().max())


# ---- accuracy --------------------------------------------------------------------------------------------------------

GRID = {
    "residual 1": dict(residual=1, gate=18, skip=5, kernel=2, out=2, head="gaussian"),
    "residual 7, gate 2": dict(residual=7, gate=2, skip=5, kernel=3, out=6, head="mog"),
    "residual 33, gate 66": dict(residual=33, gate=66, skip=48, kernel=2, out=30),
    "kernel 4, odd dilations": dict(residual=24, gate=40, skip=5, kernel=4, dilations=(3, 1, 7)),
    "17 classes": dict(residual=7, gate=18, skip=48, kernel=3, out=17, head="softmax", dilations=(3, 1, 7)),
    "256 classes, front 3": dict(residual=24, gate=66, skip=48, hidden=70, out=256, head="softmax", front_kernel=3),
    "front 3 relu": dict(front_kernel=3, front_activation="relu", out=6, head="mog"),
    "front 3 tanh": dict(front_kernel=3, front_activation="tanh", residual=33, kernel=2),
    "front 1 tanh, 1 layer": dict(front_activation="tanh", dilations=(5,), hidden=1, skip=1),
    "one Gaussian of three": dict(out=3, head="gaussian", mels=80),
    "no mel": dict(mels=0, residual=16, gate=32, skip=16, hidden=16),
    "looks ahead": dict(kernel=2, dilations=(1, 8, 13, 16, 20), mels=3),
    "wide": dict(residual=64, gate=128, skip=100, hidden=65, mels=80, dilations=(1, 2, 4, 8)),
}


@pytest.mark.parametrize("sizes", GRID.values(), ids=GRID)
def test_as_exact_as_torch(isa, sizes):
    weights = weights_of(**sizes)
    exact = outputs_of(ReferencePlan(weights.double()), weights)
    theirs = outputs_of(ReferencePlan(weights), weights)
    ours = outputs_of(CpuPlan(weights), weights)
    assert ours.isfinite().all() and (ours != 0).float().mean() > 0.5 and ours.std() > 0.05
    assert within(ours, theirs, exact, k=4)


@pytest.mark.parametrize("sizes", GRID.values(), ids=GRID)
def test_bfloat16(isa, sizes):
    """bf16 keeps 8 bits: 2^-9 relative error per weight and activation, averaged out in the sums."""
    weights = weights_of(**sizes)
    exact = outputs_of(ReferencePlan(weights.double()), weights, n_streams=5)
    ours = outputs_of(CpuPlan(weights, "bf16"), weights, n_streams=5)
    error, size = (ours - exact).pow(2).mean().sqrt(), exact.pow(2).mean().sqrt()
    assert 1e-5 * size < error < 0.01 * size


@pytest.mark.parametrize("sizes", GRID.values(), ids=GRID)
def test_int8(isa, sizes):
    """8 bits for weights, by row, and for what they are multiplied with, by column: some 0.4 % of the largest each."""
    weights = weights_of(**sizes)
    exact = outputs_of(ReferencePlan(weights.double()), weights, n_streams=5)
    ours = outputs_of(CpuPlan(weights, "int8"), weights, n_streams=5)
    error, size = (ours - exact).pow(2).mean().sqrt(), exact.pow(2).mean().sqrt()
    assert 1e-5 * size < error < 0.03 * size


def test_int8_products_are_those_of_whole_numbers(isa):
    """One layer that passes nothing on: the outputs are two quantised products of its biases, computed here."""
    w = weights_of(residual=20, gate=6, skip=37, hidden=41, out=19, mels=0, kernel=2, dilations=(1,), head="softmax")
    w.w_skip.zero_()

    def product(rows, x):
        steps = rows.abs().amax(1, keepdim=True) / 127
        q = (rows / steps).round()
        step = x.abs().max() / 127
        return (q @ (x / step).round()) * steps[:, 0] * step

    rows = lambda t: t.double()
    h = torch.relu(product(rows(w.w_hidden), torch.relu(rows(w.b_skip))) + rows(w.b_hidden))
    want = product(rows(w.w_logits), h) + rows(w.b_logits)
    got = outputs_of(CpuPlan(w, "int8"), w, n_streams=5, n=3)
    assert torch.allclose(got.double(), want.expand_as(got), rtol=0, atol=2e-6 * float(want.abs().max()))
    assert want.std() > 0.1


def test_int8_passes_on_what_is_no_number():
    weights = weights_of(mels=5)
    plan = CpuPlan(weights, "int8")
    cond, noise, forced = job_of(weights, 1, 4)
    cond[0][2, 3] = float("nan")
    _, [given] = plan.run(start(plan, 1), [4], cond, noise=noise, forced=forced, parameters=True)
    assert given[:2].isfinite().all() and given[2].isnan().any()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("sizes", GRID.values(), ids=GRID)
def test_instruction_sets_with_fused_multiply_add_agree_to_the_bit(sizes, precision):
    weights = weights_of(**sizes)
    plan = CpuPlan(weights, precision)
    results = {}
    for name in FMA_ISAS:
        if precision != "bf16" or name not in PAIR_ISAS:
            with running_on(name):
                results[name] = outputs_of(plan, weights, n_streams=5)
    assert "amx_emulated" not in ISAS or "amx_emulated" in results
    first = next(iter(results.values()))
    assert [name for name, y in results.items() if not torch.equal(first, y)] == []


@pytest.mark.parametrize("name", ["front", "w_in", "b_in", "w_cond", "w_res", "w_skip", "b_hidden", "w_logits"])
def test_the_comparison_notices_one_wrong_weight(name):
    weights = weights_of()
    theirs = outputs_of(ReferencePlan(weights), weights)
    exact = outputs_of(ReferencePlan(weights.double()), weights)
    wrong = getattr(weights, name).clone()
    at = wrong[0].abs().flatten().argmax() if wrong.dim() > 1 else wrong.abs().argmax()  # of the first layer
    wrong.flatten()[at] += 0.02
    assert within(outputs_of(CpuPlan(weights), weights), theirs, exact, k=4)
    assert not within(outputs_of(CpuPlan(replace(weights, **{name: wrong})), weights), theirs, exact, k=4)


def test_the_comparison_notices_one_wrong_tap():
    weights = weights_of()
    exact = outputs_of(ReferencePlan(weights.double()), weights)
    wrong = replace(weights, dilations=(1, 2, 5))
    assert not within(outputs_of(CpuPlan(wrong), weights), outputs_of(ReferencePlan(weights), weights), exact, k=4)


def test_layer_conditioning(isa):
    weights = weights_of(mels=0, residual=24, gate=34)
    n, L, G = 20, 3, 34
    cond = [torch.randn(n, L, G) for _ in range(3)]
    _, noise, forced = job_of(weights, 3, n)
    run = lambda plan: torch.stack(plan.run(
        start(plan, 3), [n] * 3, cond, layer_cond=True, noise=noise, forced=forced, parameters=True)[1])
    assert within(run(CpuPlan(weights)), run(ReferencePlan(weights)), run(ReferencePlan(weights.double())), k=4)


# ---- drawing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("head", HEADS)
def test_free_running(isa, head, temperature):
    """The same seed gives the reference's samples: up to rounding, and exactly for classes."""
    weights = weights_of(head=head, out=HEADS[head])
    n, B = 60, 3
    cond = job_of(weights, B, n)[0]
    initial = 3.0 if weights.n_classes else 0.0
    run = lambda plan: torch.stack(plan.run(start(plan, B, 11, temperature, initial), [n] * B, cond)[0])
    ours, theirs = run(CpuPlan(weights)), run(ReferencePlan(weights))
    assert ours.std() > 0.01
    if weights.n_classes:
        assert torch.equal(ours, theirs) and torch.equal(ours, ours.round()) and 0 <= ours.min() and ours.max() < 30
    else:
        assert torch.allclose(ours, theirs, atol=2e-5) and ours.abs().max() <= 1


@pytest.mark.parametrize("head", HEADS)
def test_the_seed_is_the_noise(isa, head):
    """Philox in csrc and in fastvoc/ops/philox.py: the same numbers to the last bit, at any position."""
    weights = weights_of(head=head, out=HEADS[head])
    plan, n = CpuPlan(weights), 25
    cond = job_of(weights, 1, n)[0]
    for seed, stream, first in ((0, 0, 0), (2**64 - 1, 2**32 - 1, 2**32 - 5), (0x123456789ABCDEF0, 7, 2**40)):
        states = [plan.begin(seed, stream, 1.0, 0.0) for _ in range(2)]
        for state in states:
            state.view(torch.int64)[0] = first  # n_done, the sample index
        noise = torch.from_numpy(philox.draws(head, weights.n_mix, seed, stream, first, n))
        own, explicit = plan.run(states[:1], [n], cond)[0][0], plan.run(states[1:], [n], cond, noise=[noise])[0][0]
        other = plan.run([plan.begin(seed, stream, 1.0, 0.0)], [n], cond, noise=[noise.flip(0)])[0][0]
        assert torch.equal(own, explicit) and not torch.equal(own, other)
        assert torch.equal(states[0], states[1]) and int(states[0].view(torch.int64)[0]) == first + n


def test_seed_stream_and_position_matter():
    plan = CpuPlan(weights_of(mels=0))
    draw = lambda seed, stream: plan.run([plan.begin(seed, stream, 1.0, 0.0)], [50])[0][0]
    waves = [draw(0, 0), draw(1, 0), draw(2**32, 0), draw(0, 1)]
    assert all(not torch.equal(a, b) for i, a in enumerate(waves) for b in waves[:i])
    assert torch.equal(waves[0], draw(0, 0)) and len(set(waves[0].tolist())) > 40


@pytest.mark.parametrize(
    ("counter", "key", "want"),
    [  # Random123's kat_vectors, philox4x32-10
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(counter, key, want):
    sample = np.array([counter[0] | counter[1] << 32], np.uint64)
    assert philox.philox(key[0] | key[1] << 32, sample, counter[2], counter[3])[0].tolist() == want


def test_uniform_numbers_lie_inside():
    u = philox.uniform(np.array([0, 511, 512, 2**31, 2**32 - 1], np.uint32))
    assert u.dtype == np.float32 and (u > 0).all() and (u < 1).all() and u[0] == u[1] < u[2]


def test_normal_numbers_are_normal():
    u = (np.arange(2**17, dtype=np.float32) + np.float32(0.5)) * np.float32(2.0**-17)
    exact = np.array([NormalDist().inv_cdf(float(p)) for p in u[::37]])
    assert (np.abs(philox.normal(u)[::37] - exact) <= 2e-6 * np.maximum(np.abs(exact), 0.1)).all()
    x = philox.draws("gaussian", 1, 5, 0, 0, 200_000)[:, 0].astype(np.float64)
    moments = [x.mean(), x.var() - 1, (x**3).mean(), (x**4).mean() - 3]
    assert np.all(np.abs(moments) < 5 * np.sqrt(np.array([1, 2, 15, 96]) / len(x)))  # five standard errors
    for p in (0.001, 0.05, 0.3, 0.5, 0.9, 0.9999):
        assert abs((x < NormalDist().inv_cdf(p)).mean() - p) < 5 * np.sqrt(p * (1 - p) / len(x))
    assert abs(np.corrcoef(x[1:], x[:-1])[0, 1]) < 5 / np.sqrt(len(x))


# ---- equal bit for bit -----------------------------------------------------------------------------------------------

UPSAMPLERS = {
    "nearest": ("UpsampleNetwork", dict(upsample_scales=[3, 2]), 0),
    "nearest, cin_pad": ("UpsampleNetwork", dict(upsample_scales=[3, 2]), 2),
    "bilinear": ("UpsampleNetwork", dict(upsample_scales=[2, 3], mode="bilinear"), 0),
    "conv in": ("ConvInUpsampleNetwork", dict(upsample_scales=[2, 3]), 2),
    "relu, freq 3": (
        "UpsampleNetwork", dict(upsample_scales=[3, 2], freq_axis_kernel_size=3, upsample_activation="ReLU"), 0),
    "conv in, leaky, bilinear": (
        "ConvInUpsampleNetwork",
        dict(upsample_scales=[3, 2], mode="bilinear", freq_axis_kernel_size=3, upsample_activation="LeakyReLU",
             upsample_activation_params={"negative_slope": 0.3}), 1),
    "transposed 2d, leaky": ("ConvTranspose2dUpsampleNetwork", dict(upsample_scales=[2, 4]), 0),
    "transposed 2d, odd scale": ("ConvTranspose2dUpsampleNetwork", dict(upsample_scales=[2, 3]), 0),
    "transposed 2d, 2018": (
        "ConvTranspose2dUpsampleNetwork", dict(upsample_scales=[3, 2], kernel_factor=1, negative_slope=0.0), 0),
    "transposed 1d": ("ConvTranspose1dUpsampleNetwork", dict(window=18, stride=6), 0),
}
CLASSES = {c.__name__: c for c in (
    UpsampleNetwork, ConvInUpsampleNetwork, ConvTranspose1dUpsampleNetwork, ConvTranspose2dUpsampleNetwork)}


def model_of(upsampler="conv in", head="mol", speakers=False, seed=0):
    torch.manual_seed(seed)
    network, params, pad = UPSAMPLERS[upsampler]
    model = WaveNet(
        out_channels=HEADS[head], layers=4, stacks=2, residual_channels=12, gate_channels=20, skip_out_channels=14,
        cin_channels=5, cin_pad=pad, upsample_conditional_features=True, upsample_net=network, upsample_params=params,
        scalar_input=head != "softmax", output_distribution="Logistic" if head == "mol" else "Normal",
        **(dict(gin_channels=3, n_speakers=4, use_speaker_embedding=True) if speakers else {}),
    )
    with torch.no_grad():
        for p in (*model.upsample_net.parameters(), *model.last_conv_layers.parameters()):
            p += 0.2 * torch.randn_like(p)
        if head != "softmax":
            model.last_conv_layers[3].bias[HEADS[head] // 2 if head == "gaussian" else 2 * HEADS[head] // 3 :] -= 2
    return model.eval()


def mel_of(B=1, n_frames=20, seed=3):
    return torch.randn(B, 5, n_frames, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("head", ["mol", "softmax"])
def test_any_number_of_threads(isa, head, precision):
    model, mel = model_of(head=head), mel_of(4, 5)
    for B in (1, 2, 4):
        one, *others = [model.infer(mel[:B], threads=n, precision=precision, seed=0) for n in (1, 2, 3)]
        assert one.std() > 0.01 and all(torch.equal(one, y) for y in others)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_alone_or_in_company(isa, precision):
    """Five streams with lengths and speakers of their own."""
    model, mel = model_of(speakers=True), mel_of(5, 7)
    lengths, speakers = [3, 7, 1, 7, 4], [0, 3, 1, 1, 2]
    together = model.infer(mel, speakers, lengths=lengths, seed=5, precision=precision)
    assert together.shape == (5, 42) and not torch.equal(together[1], together[3])
    for b, (n, speaker) in enumerate(zip(lengths, speakers)):
        alone = model.infer(mel[b : b + 1, :, :n], speaker, seed=5, streams=[b], precision=precision)[0]
        assert torch.equal(together[b, : 6 * n], alone) and alone.std() > 0.01
        assert (together[b, 6 * n :] == 0).all()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_more_streams_than_an_amx_tile_has_rows(isa, precision):
    weights = weights_of()
    plan, B, n = CpuPlan(weights, precision), 18, 12
    cond = job_of(weights, B, n)[0]
    together = plan.run(start(plan, B), [n] * B, cond)[0]
    for b in (0, 1, 7, 15, 16, 17):
        alone = plan.run([plan.begin(0, b, 1.0, 0.0)], [n], [cond[b]])[0][0]
        assert torch.equal(together[b], alone)
    assert torch.stack(together).std() > 0.01


def test_streams_of_different_lengths_in_any_order(isa):
    weights = weights_of()
    plan, counts = CpuPlan(weights, "bf16"), [3, 20, 0, 11, 20, 1]
    cond = job_of(weights, 6, 20)[0]
    together = plan.run(start(plan, 6), counts, [c[:n] for c, n in zip(cond, counts)])[0]
    for b, n in enumerate(counts):
        assert together[b].shape == (n,)
        assert torch.equal(together[b], plan.run([plan.begin(0, b, 1.0, 0.0)], [n], [cond[b][:n]])[0][0])


@pytest.mark.parametrize("upsampler", UPSAMPLERS)
def test_in_chunks(isa, upsampler):
    """Mel in pieces of 1 and 3 frames, samples in chunks of 1, 7 and more: as in one call."""
    model, mel = model_of(upsampler), mel_of(1, 12)
    whole = model.infer(mel, seed=2)[0]
    assert whole.shape == (12 * model.samples_per_frame,) and whole.std() > 0.01
    for piece, chunk in ((1, 1), (3, 7), (12, 50), (1, 100)):
        stream, out = model.stream(seed=2), []
        for at in range(0, 12, piece):
            stream.push(mel[0, :, at : at + piece], last=at + piece >= 12)
            while stream.n_ready() and (stream.n_ready() >= chunk or stream.closed):
                out.append(generate([stream], [min(chunk, stream.n_ready())])[0][0])
        assert torch.equal(torch.cat(out), whole), (piece, chunk)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_looking_ahead_changes_no_bit(isa, precision):
    """Past taps are computed for several samples at once, as many as dilation and piece allow. Pieces of one sample
    never look ahead; streams that start at other times have their rings elsewhere."""
    weights = weights_of(kernel=3, dilations=(1, 2, 5, 8, 17, 40))
    plan, n = CpuPlan(weights, precision), 100
    cond, noise, _ = job_of(weights, 3, n)
    whole, _ = plan.run(start(plan, 3), [n] * 3, cond, noise=noise)
    states = start(plan, 3)
    pieces, done = [[] for _ in states], [0] * 3
    first = [0, 3, 11]  # when each stream joins
    for t, step in enumerate([1, 1, 1, 2, 1, 5, 3, 16, 1, 7, 30, 4, 40, 60, 60]):
        at = [i for i in range(3) if t >= first[i] and done[i] < n]
        counts = [min(step, n - done[i]) for i in at]
        cut = lambda x: [x[i][done[i] : done[i] + c] for i, c in zip(at, counts)]
        out, _ = plan.run([states[i] for i in at], counts, cut(cond), noise=cut(noise))
        for i, c, o in zip(at, counts, out):
            done[i] += c
            pieces[i].append(o)
    assert done == [n] * 3
    assert all(torch.equal(torch.cat(p), w) for p, w in zip(pieces, whole)) and torch.stack(whole).std() > 0.05


def test_the_end_may_come_alone():
    model, mel = model_of("bilinear"), mel_of(1, 4)
    stream = model.stream()
    stream.push(mel[0])
    first = generate([stream])[0][0]
    stream.push(last=True)
    assert len(first) < 24 and torch.equal(torch.cat([first, generate([stream])[0][0]]), model.infer(mel, seed=0)[0])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_pausing_and_moving(isa, precision):
    """A cloned state goes on as its original; also in another plan of the same weights, and another thread count."""
    weights = weights_of()
    plan, other = CpuPlan(weights, precision), CpuPlan(weights, precision, threads=2)
    cond = job_of(weights, 1, 40)[0][0]
    whole = plan.run(start(plan, 1), [40], [cond])[0][0]
    (state,) = start(plan, 1)
    first = plan.run([state], [17], [cond[:17]])[0][0]
    saved = state.clone()
    continued = (plan, state), (plan, saved.clone()), (other, saved.clone())
    rest = [p.run([s], [23], [cond[17:]])[0][0] for p, s in continued]
    assert all(torch.equal(torch.cat([first, r]), whole) for r in rest) and not torch.equal(state, saved)


def test_saved_to_a_file_and_resumed(tmp_path):
    model, mel = model_of(), mel_of()[0]
    whole = model.stream(seed=4)
    whole.push(mel, last=True)
    [want], _ = generate([whole])
    first = model.stream(seed=4)
    first.push(mel[:, :9])
    [start], _ = generate([first])
    torch.save(first.state_dict(), tmp_path / "paused.pt")
    second = model.stream(seed=99)  # all of it comes from the file, the seed too
    second.load_state_dict(torch.load(tmp_path / "paused.pt", weights_only=True))
    second.push(mel[:, 9:], last=True)
    [rest], _ = generate([second])
    assert 0 < len(start) < len(want)
    assert torch.equal(torch.cat([start, rest]), want)
    with pytest.raises(ShapeError, match="same model and precision"):
        model.stream(precision="bf16").load_state_dict(first.state_dict())


def test_a_plan_is_given_what_it_will_read():
    weights = weights_of()
    plan = CpuPlan(weights)
    cond, noise, forced = job_of(weights, 2, 10)
    short = lambda x: [x[0], x[1][:9]]
    for changed, words in (
        (dict(cond=short(cond)), r"cond\[1\] is \(9, 5\), expected \(10, 5\)"),
        (dict(cond=[c[:, 1:] for c in cond]), r"cond\[0\] is \(10, 4\)"),
        (dict(noise=short(noise)), r"noise\[1\] is \(9, 11\)"),
        (dict(forced=short(forced)), r"forced\[1\] is \(9,\)"),
        (dict(cond=cond, layer_cond=True), r"cond\[0\] is \(10, 5\), expected \(10, 3, 40\)"),
    ):
        with pytest.raises(ShapeError, match=words):
            plan.run(start(plan, 2), [10, 10], **changed)


def test_plans_run_concurrently():
    weights = weights_of()
    plan, n = CpuPlan(weights), 60
    cond = job_of(weights, 8, n)[0]
    run = lambda b: plan.run([plan.begin(0, b, 1.0, 0.0)], [n], [cond[b]])[0][0]
    want = [run(b) for b in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert all(torch.equal(a, b) for a, b in zip(pool.map(run, range(8)), want))


# ---- upsampling ------------------------------------------------------------------------------------------------------


def network_of(upsampler):
    name, params, pad = UPSAMPLERS[upsampler]
    torch.manual_seed(0)
    network = CLASSES[name](**params, **({"cin_pad": pad} if "ConvTranspose" not in name else {}), cin_channels=5)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.2 * torch.randn_like(p)
    return network


def drain(up):
    return up.take(up.n_ready())


@torch.no_grad()
@pytest.mark.parametrize("n_frames", [5, 6, 13])
@pytest.mark.parametrize("upsampler", UPSAMPLERS)
def test_streaming_upsampler(isa, upsampler, n_frames):
    network, mel = network_of(upsampler), mel_of(1, n_frames)
    want = network(mel)[0].t()
    exact = network.double()(mel.double())[0].t()
    stages = network.float().stages()
    floor = 8 * EPS * float(exact.abs().max())
    indent = getattr(network, "indent", 0)
    reference = upsample_reference(stages, mel.double())[0].t()[indent:][: len(exact)]
    assert (reference - exact).abs().max() < floor  # not less: a stage keeps its weights in float32

    whole = StreamingUpsampler(stages, 5, indent)
    whole.push(mel[0], last=True)
    y = drain(whole)
    assert y.shape == want.shape and y.std() > 0.02
    assert (y - exact).abs().max() <= 2 * (want - exact).abs().max() + floor

    pieces = StreamingUpsampler(stages, 5, indent)
    out = []
    for at in range(n_frames):
        pieces.push(mel[0, :, at : at + 1])
        while pieces.n_ready() > 3:
            out.append(pieces.take(4))
    pieces.push(None, last=True)
    out.append(drain(pieces))
    assert torch.equal(torch.cat(out), y)


@torch.no_grad()
def test_streaming_upsampler_notices_a_wrong_tap():
    network, mel = network_of("conv in"), mel_of(1, 9)
    want = network(mel)[0].t()
    network.conv_in.weight[0, 0, 0] += 0.01
    up = StreamingUpsampler(network.stages(), 5)
    up.push(mel[0], last=True)
    assert (drain(up) - want).abs().max() > 1e-4


@pytest.mark.parametrize("upsampler", UPSAMPLERS)
def test_upsampler_memory_is_bounded(upsampler):
    up = StreamingUpsampler(network_of(upsampler).stages(), 5)
    kept = 0
    for _ in range(300):
        up.push(mel_of(1, 2)[0])
        drain(up) if up.n_ready() else None
        kept = max(kept, len(up.mel))
    assert kept <= 20


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_state_and_workspace_know_no_length():
    weights = weights_of()
    plan, B = CpuPlan(weights), 2
    cond = job_of(weights, B, 1000)[0]
    states = start(plan, B)
    before = plan.state_bytes, plan._plan.workspace_bytes(B, 1)
    plan.run(states, [1000] * B, cond)
    assert all(s.numel() == plan.state_bytes for s in states)
    assert (plan.state_bytes, plan._plan.workspace_bytes(B, 1)) == before
    ring = 2 * (1 + 2 + 4) * 32 * 4  # (kernel - 1) past inputs of each layer, channels padded to 32
    assert ring <= plan.state_bytes <= ring + 4096 and plan._plan.workspace_bytes(B, 1) < 300_000


def test_memory_does_not_grow_with_the_utterance():
    """Ten minutes against ten seconds, in a process of its own: the peak is the same where samples are given away as they
    come, and where all is asked for in one call it is more by the mel and the samples, not by the conditioning."""
    run_python("""
        import torch
        from fastvoc import WaveNet
        from fastvoc.models.wavenet_streams import generate
        torch.manual_seed(0)
        torch.set_num_threads(1)
        BANDS, HOP, FRAMES = 16, 100, 10  # a second is 10 frames, 1000 samples: of 4000 bytes, their conditioning of 64,000
        model = WaveNet(
            out_channels=2, layers=1, stacks=1, residual_channels=8, gate_channels=16, skip_out_channels=8,
            kernel_size=2, cin_channels=BANDS, upsample_conditional_features=True, upsample_net="UpsampleNetwork",
            upsample_params={"upsample_scales": [4, 25]}, scalar_input=True, output_distribution="Normal",
        ).eval()

        def status(name):
            return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])

        def growth_of(work):  # bytes of memory in use at most, beyond those in use before
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # forgets the highest so far
            before = status("VmRSS")
            work()
            return status("VmHWM") - before

        def speak(seconds, kept=None):
            stream, total = model.stream(threads=1), 0
            for i in range(seconds):
                stream.push(torch.randn(BANDS, FRAMES), last=i == seconds - 1)
                [samples], _ = generate([stream])
                total += len(samples)
                if kept is not None:
                    kept.append(samples.double().repeat(8))  # more than the heap has free from before
            assert total == seconds * FRAMES * HOP

        def speak_at_once(seconds):
            stream = model.stream(threads=1)
            stream.push(torch.randn(BANDS, seconds * FRAMES), last=True)
            assert len(generate([stream])[0][0]) == seconds * FRAMES * HOP

        samples, mel, conditioning = (600 * FRAMES * 4 * n for n in (HOP, BANDS, HOP * BANDS))
        growth_of(lambda: speak_at_once(10))
        short, long, at_once = (growth_of(work) for work in (
            lambda: speak(10), lambda: speak(600), lambda: speak_at_once(600)))
        assert long - short < 1 << 20, (short, long)
        assert samples // 2 < at_once < samples + 4 * mel + (4 << 20) < conditioning // 4, at_once
        kept = []
        assert growth_of(lambda: speak(600, kept)) > samples // 2  # what is kept is seen
    """)


# ---- step by step, and all at once -----------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("upsampler", ["conv in", "relu, freq 3", "transposed 1d", "nearest, cin_pad"])
@pytest.mark.parametrize("head", HEADS)
def test_incremental_is_parallel(head, upsampler):
    model, mel, B = model_of(upsampler, head, speakers=True), mel_of(2, 9), 2
    speaker = torch.tensor([2, 0])
    n = (9 - 2 * model.context_frames) * 6
    if head == "softmax":
        forced, initial = torch.randint(30, (B, n)), 4
        x = torch.cat([torch.full((B, 1), initial), forced[:, :-1]], 1)
    else:
        forced, initial = torch.rand(B, n) * 2 - 1, 0.25
        x = torch.cat([torch.full((B, 1), initial), forced[:, :-1]], 1)[:, None]
    step_by_step = model.infer(mel, speaker, forced=forced, initial=initial, padded=True)
    parallel = model(x, mel, speaker)
    assert step_by_step.shape == parallel.shape == (B, HEADS[head], n) and parallel.std() > 0.1
    exact = model.double()(x if head == "softmax" else x.double(), mel.double(), speaker)
    assert within(step_by_step, parallel, exact, k=4)


# ---- the edges of memory ---------------------------------------------------------------------------------------------


def test_reads_and_writes_nothing_outside():
    """Forbidden pages around everything that the engine is given, with every width from 1 to two vectors and one."""
    run_python("""
        import itertools, os
        import torch
        import fastvoc
        from fastvoc.ops.wavenet_generate import CpuPlan
        from tests.devices import ISAS
        from tests.guards import Guards
        from tests.test_wavenet_generate import HEADS, job_of, start, weights_of

        torch.set_num_threads(1)
        guards = Guards()
        address = lambda arrays: [a.ctypes.data for a in arrays]
        ways = itertools.cycle(itertools.product([(1, 1), (3, 1), (5, 2), (1, 2)], [True, False]))  # streams, threads; at_end
        for size in range(1, 34):
            other = lambda k: size * k % 33 + 1
            head = list(HEADS)[size % 4]
            out = size if head == "softmax" else HEADS[head]
            weights = weights_of(
                residual=size, gate=2 * other(7), skip=other(5), hidden=other(11), out=out, mels=other(13) - 1,
                kernel=2 + size % 2, dilations=(1, 2 + size % 3), head=head, front_kernel=1 + size % 3,
            )
            for precision in ("fp32", "bf16", "int8"):
                plan = CpuPlan(weights, precision, threads=2)
                for isa in ISAS:
                    fastvoc.set_cpu_isa(isa)
                    (B, threads), at_end = next(ways)
                    n = 1 + size % 7
                    counts = sorted((n + b % 2 for b in range(B)), reverse=True)
                    cond, noise, forced = job_of(weights, B, n + 1)
                    plan.threads = threads
                    cut = lambda x: [t[:c] for t, c in zip(x, counts)]
                    want, given = plan.run(
                        start(plan, B), counts, cut(cond), noise=cut(noise), forced=cut(forced), parameters=True)
                    floats = lambda x: [guards.floats(t, at_end) for t in x]
                    states = [guards.bytes(plan.state_bytes, at_end) for _ in range(B)]
                    for state, begun in zip(states, start(plan, B)):
                        state[:] = begun.numpy()
                    c, u, f = floats(cut(cond)), floats(cut(noise)), floats(cut(forced))
                    y, p = floats(w * 0 for w in want), floats(g * 0 for g in given)
                    work = guards.bytes(plan._plan.workspace_bytes(B, threads) // 64 * 64, at_end)
                    plan._plan.run(
                        address(states), counts, address(c) if plan.n_mels else [], False, plan.n_mels, plan.half_gate,
                        address(u), address(f), address(y), address(p), work.ctypes.data, threads)
                    for a, b in zip([*y, *p], [*want, *given]):
                        assert torch.equal(torch.from_numpy(a.copy()), b), (isa, precision, size)
                    guards.clear()
        os._exit(0)
    """)


def test_the_upsampler_reads_and_writes_nothing_outside():
    run_python("""
        import itertools, os
        import torch
        import fastvoc
        from fastvoc import _C
        from fastvoc.ops.upsample import EDGES, Fir, Mix
        from tests.devices import ISAS
        from tests.guards import Guards

        torch.set_num_threads(1)
        guards, frames = Guards(), 4
        for C, isa, at_end in itertools.product(range(1, 34), ISAS, (False, True)):
            fastvoc.set_cpu_isa(isa)
            edge = list(EDGES)[C % 3]
            scale, n_taps, freq = 1 + C % 4, 1 + C % 3, 1 + 2 * (C % 2)
            first = 0 if edge == "valid" else -(C % 2)
            mel = torch.randn(frames, C)
            x = guards.floats(mel, at_end)
            fir = Fir(torch.randn(scale, n_taps, freq), first, bias=0.5, slope=0.3, edge=edge)
            mix = Mix(torch.randn(scale, n_taps, C, 34 - C), first, torch.randn(34 - C), edge=edge)
            for stage in (fir, mix):
                want = stage.run(mel.t()[None])[0].t()
                n = len(want)
                out, w = guards.floats(torch.zeros(want.shape), at_end), guards.floats(stage.weight, at_end)
                at = x.ctypes.data, w.ctypes.data
                if stage is fir:
                    _C.upsample_fir_cpu(
                        *at, out.ctypes.data, frames, 0, 0, n, C, scale, n_taps, freq, first, 0.5, 0.3, EDGES.index(edge))
                else:
                    b = guards.floats(stage.bias, at_end)
                    _C.upsample_mix_cpu(
                        *at, b.ctypes.data, out.ctypes.data, frames, 0, 0, n, C, 34 - C, scale, n_taps, first, EDGES.index(edge))
                assert torch.allclose(torch.from_numpy(out.copy()), want, atol=1e-5), (C, isa, edge)
            guards.clear()
        os._exit(0)
    """)
