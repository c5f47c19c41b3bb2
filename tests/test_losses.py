"""Losses against the published implementations' numbers, against torch.distributions, and at their edges.

tests/data/losses.npz holds float64 results of the published code: discretized_mix_logistic_loss of r9y9/wavenet_vocoder
@ a35fff7, GaussianLoss of ksw0306/ClariNet @ df31b4c, and NVIDIA/nv-wavenet's training loss @ 03f6957. NAME_noise is
(how far that code is from itself in float32, largest magnitude).
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributions as D

from fastvoc.errors import ConfigError, DeviceError, DTypeError, ShapeError
from fastvoc.losses import (
    gaussian_loss,
    mixture_of_gaussians_loss,
    mixture_of_logistics,
    mixture_of_logistics_loss,
    mulaw_cross_entropy,
)

DTYPES = [torch.float32, torch.float64]
LOGISTICS = [(65536, -16.0), (256, -7.0)]

with np.load(Path(__file__).parent / "data" / "losses.npz") as archive:
    GOLDEN = {name: archive[name] for name in archive.files}

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def golden(name, dtype):
    return torch.from_numpy(GOLDEN[name]).to(dtype)


def check(name, got):
    noise, largest = GOLDEN[f"{name}_noise"]
    atol = 1e-12 * largest if got.dtype == torch.float64 else 8 * noise + 1e-6 * largest
    np.testing.assert_allclose(got.detach().double().numpy(), GOLDEN[name], rtol=0, atol=atol)


def example(loss, dtype=torch.float64, B=2, T=7):
    """Random (params, target) for any of the four; interior targets, log scales around -1."""
    gen = torch.Generator().manual_seed(0)
    channels = {gaussian_loss: 2, mulaw_cross_entropy: 11}.get(loss, 12)
    params = torch.randn(B, channels, T, generator=gen, dtype=dtype)
    if loss is mulaw_cross_entropy:
        return params, torch.randint(channels, (B, T), generator=gen)
    scales = channels // 2 if channels == 2 else 2 * channels // 3
    params[:, scales:] = params[:, scales:] * 0.3 - 1
    return params, torch.rand(B, T, generator=gen, dtype=dtype) * 1.8 - 0.9


WAVEFORM_LOSSES = [mixture_of_logistics_loss, gaussian_loss, mixture_of_gaussians_loss]
LOSSES = [*WAVEFORM_LOSSES, mulaw_cross_entropy]
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
every_waveform_loss = pytest.mark.parametrize("loss", WAVEFORM_LOSSES, ids=lambda f: f.__name__)


# Published numbers


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_classes", "log_scale_min"), LOGISTICS)
def test_logistics_golden(n_classes, log_scale_min, dtype):
    params, target = golden("loss_y_hat", dtype).requires_grad_(), golden("loss_y", dtype)
    check(f"loss_mol_{n_classes}", mixture_of_logistics_loss(params, target, n_classes, log_scale_min))
    total = mixture_of_logistics_loss(params, target, n_classes, log_scale_min, reduction="sum")
    check(f"loss_mol_{n_classes}_sum", total)
    check(f"loss_mol_{n_classes}_grad", torch.autograd.grad(total, params)[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_classes", "log_scale_min"), LOGISTICS)
def test_logistics_golden_below_the_floor(n_classes, log_scale_min, dtype):
    params, target = golden("loss_floor_y_hat", dtype), golden("loss_floor_y", dtype)
    check(f"loss_floor_mol_{n_classes}", mixture_of_logistics_loss(params, target, n_classes, log_scale_min))


def test_logistics_float32_beats_the_published_float32():
    got = mixture_of_logistics_loss(golden("loss_y_hat", torch.float32), golden("loss_y", torch.float32))
    error = np.abs(got.double().numpy() - GOLDEN["loss_mol_65536"]).max()
    assert error < 0.01 * GOLDEN["loss_mol_65536_noise"][0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_gaussian_golden(dtype):
    params, target = golden("teacher_out", dtype), golden("teacher_x", dtype)
    check("teacher_nll", gaussian_loss(params, target, log_scale_min=-9.0, reduction="mean"))


def test_cross_entropy_golden():
    logits, classes = golden("nv_logits", torch.float32), golden("nv_classes", torch.int64)
    check("nv_loss", mulaw_cross_entropy(logits, classes, reduction="mean"))


MUTANTS = {
    "bins one class too wide": {"n_classes": 65535},
    "floor too high": {"log_scale_min": -7.0},
    "target one sample late": {"target": lambda y: y.roll(1, dims=1)},
    "means and log scales swapped": {"params": lambda p: torch.cat([p[:, :10], p[:, 20:], p[:, 10:20]], dim=1)},
    "no open edges": {"EDGE": 1.5},
    "density everywhere": {"MIN_BIN_PROBABILITY": 1.0},
    "bins everywhere": {"MIN_BIN_PROBABILITY": 1e-300},
}


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_the_golden_comparison_can_fail(mutant, monkeypatch):
    def compare(params=lambda p: p, target=lambda y: y, n_classes=65536, log_scale_min=-16.0):
        for prefix in ("loss", "loss_floor"):
            p = params(golden(f"{prefix}_y_hat", torch.float64))
            y = target(golden(f"{prefix}_y", torch.float64))
            check(f"{prefix}_mol_65536", mixture_of_logistics_loss(p, y, n_classes, log_scale_min))

    compare()
    options = dict(mutant)
    for constant in ("EDGE", "MIN_BIN_PROBABILITY"):
        if constant in options:
            monkeypatch.setattr(mixture_of_logistics, constant, options.pop(constant))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        compare(**options)


# Mathematics


def test_logistics_bins_sum_to_one():
    params, _ = example(mixture_of_logistics_loss, B=1, T=1)
    bins = torch.linspace(-1, 1, 256, dtype=torch.float64)[None]
    nll = mixture_of_logistics_loss(params.expand(1, -1, 256), bins, n_classes=256)
    # The rare bins below the 1e-5 threshold get the density at their centre instead of their probability.
    assert abs(nll.neg().exp().sum() - 1) < 1e-5


def test_gaussian_is_torch_normal():
    params, target = example(gaussian_loss)
    want = -D.Normal(params[:, 0], params[:, 1].exp()).log_prob(target)
    torch.testing.assert_close(gaussian_loss(params, target), want, rtol=0, atol=1e-12)


def test_mixture_of_gaussians_is_torch_mixture():
    params, target = example(mixture_of_gaussians_loss)
    params.requires_grad_()
    logits, means, log_scales = params.transpose(1, 2).chunk(3, dim=-1)
    mixture = D.MixtureSameFamily(D.Categorical(logits=logits), D.Normal(means, log_scales.exp()))
    want, got = -mixture.log_prob(target), mixture_of_gaussians_loss(params, target)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    grads = [torch.autograd.grad(nll.sum(), params)[0] for nll in (got, want)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-11)


def test_one_gaussian_ignores_its_logit():
    params, target = example(gaussian_loss)
    with_logit = torch.cat([torch.full_like(params[:, :1], 3.0), params], dim=1).requires_grad_()
    got = mixture_of_gaussians_loss(with_logit, target)
    torch.testing.assert_close(got, gaussian_loss(params, target), rtol=0, atol=1e-13)
    assert torch.autograd.grad(got.sum(), with_logit)[0][:, 0].eq(0).all()


def test_cross_entropy_is_minus_log_softmax():
    logits, classes = example(mulaw_cross_entropy)
    want = -logits.log_softmax(dim=1).gather(1, classes[:, None])[:, 0]
    torch.testing.assert_close(mulaw_cross_entropy(logits, classes), want, rtol=0, atol=1e-13)


@every_loss
def test_gradcheck(loss):
    params, target = example(loss, T=4)
    if target.is_floating_point():
        target.requires_grad_()
    assert torch.autograd.gradcheck(loss, (params.requires_grad_(), target))


@pytest.mark.parametrize("branch", ["bin", "centre", "edges"])
def test_gradcheck_of_each_logistic_branch(branch):
    params, target = example(mixture_of_logistics_loss, T=4)
    if branch == "centre":
        params[:, 8:] += 2.5
    if branch == "edges":
        target = target.sign()
    n_classes = 256 if branch == "bin" else 65536
    assert torch.autograd.gradcheck(mixture_of_logistics_loss, (params.requires_grad_(), target, n_classes))


# Edges


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("log_scale", [-1e4, -16.0, 0.0, 40.0, 88.0, 1e4])
@every_waveform_loss
def test_values_and_gradients_stay_finite(loss, log_scale, dtype):
    target = torch.tensor([[-1.0, -0.9991, -0.999, -0.5, 0.0, 0.999, 0.9991, 1.0]], dtype=dtype)
    for mean in (-1e3, -1.0, 0.0, 1.0, 1e3):
        params, _ = example(loss, dtype, B=1, T=8)
        scales = 1 if loss is gaussian_loss else 8
        params[:, scales:] = log_scale
        params[:, scales // 2 : scales] = mean
        nll = loss(params.requires_grad_(), target)
        assert nll.isfinite().all()
        assert torch.autograd.grad(nll.sum(), params)[0].isfinite().all()


@every_waveform_loss
def test_below_the_floor_the_scale_has_no_gradient(loss):
    params, target = example(loss)
    scales = 1 if loss is gaussian_loss else 8
    params[:, scales:] = -30
    at_floor = params.clone()
    at_floor[:, scales:] = -5
    torch.testing.assert_close(loss(params, target, log_scale_min=-5), loss(at_floor, target, log_scale_min=-20))
    params.requires_grad_()
    assert torch.autograd.grad(loss(params, target, log_scale_min=-5).sum(), params)[0][:, scales:].eq(0).all()


# Lengths and reductions


@every_loss
def test_lengths_equal_a_loop_over_cut_items(loss):
    params, target = example(loss, B=3)
    lengths = torch.tensor([7, 1, 4])
    cut = [loss(params[b : b + 1, :, :n], target[b : b + 1, :n])[0] for b, n in enumerate(lengths.tolist())]
    nll = loss(params, target, lengths=lengths)
    for b, n in enumerate(lengths.tolist()):
        torch.testing.assert_close(nll[b, :n], cut[b])
        assert nll[b, n:].eq(0).all()
    torch.testing.assert_close(loss(params, target, reduction="sum", lengths=lengths), torch.cat(cut).sum())
    torch.testing.assert_close(loss(params, target, reduction="mean", lengths=lengths), torch.cat(cut).mean())


@every_loss
def test_padding_may_hold_anything(loss):
    params, target = example(loss)
    lengths = torch.tensor([5, 7])
    params.requires_grad_()
    clean = torch.autograd.grad(loss(params, target, reduction="mean", lengths=lengths), params)[0]
    dirty_params, dirty_target = params.detach().clone(), target.clone()
    dirty_params[0, :, 5:] = torch.nan
    dirty_target[0, 5:] = torch.nan if target.is_floating_point() else -100
    dirty_params.requires_grad_()
    dirty = torch.autograd.grad(loss(dirty_params, dirty_target, reduction="mean", lengths=lengths), dirty_params)[0]
    assert torch.equal(clean, dirty)
    assert clean[0, :, 5:].eq(0).all() and clean[0, :, :5].ne(0).any()


@every_loss
def test_reductions(loss):
    params, target = example(loss)
    nll = loss(params, target)
    assert nll.shape == target.shape and nll.dtype == params.dtype
    torch.testing.assert_close(loss(params, target, reduction="sum"), nll.sum())
    torch.testing.assert_close(loss(params, target, reduction="mean"), nll.mean())
    full = torch.full((2,), 7, dtype=torch.int32)
    torch.testing.assert_close(loss(params, target, reduction="mean", lengths=full), nll.mean())


@every_loss
def test_strided_inputs(loss):
    params, target = example(loss)
    swapped = params.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(loss(swapped, target.t().contiguous().t()), loss(params, target), rtol=0, atol=1e-14)


# Errors


def says(*words):
    return "(?s)" + ".*".join(words)


@every_loss
def test_wrong_inputs_are_named(loss):
    params, target = example(loss)
    with pytest.raises(ShapeError, match=says(r"\(B, C, T\)", r"\(12?1?, 7\)|\(2, 7\)")):
        loss(params[0], target)
    with pytest.raises(ShapeError, match="no empty axis"):
        loss(params[:, :, :0], target[:, :0])
    with pytest.raises(ShapeError, match=says(r"\(2, 7\)", r"\(2, 7, 1\)", r"squeeze\(-1\)")):
        loss(params, target[..., None])
    with pytest.raises(ShapeError, match=says(r"\(2, 1, 7\)", r"squeeze\(1\)")):
        loss(params, target[:, None])
    with pytest.raises(ShapeError, match=says(r"\(2, 6\)", "Cut or shift")):
        loss(params, target[:, 1:])
    with pytest.raises(DTypeError, match=says("float16", r"\.float\(\)")):
        loss(params.half(), target)
    with pytest.raises(DTypeError, match=says("torch.Tensor", "ndarray")):
        loss(params.numpy(), target)
    with pytest.raises(DTypeError, match="got torch.int16"):
        loss(params, target.short())
    with pytest.raises(DeviceError, match=says("cpu", "meta", r"\.to\(")):
        loss(params, target.to("meta"))
    with pytest.raises(ConfigError, match=says("reduction", "'avg'", "Use")):
        loss(params, target, reduction="avg")


@every_loss
def test_wrong_lengths_are_named(loss):
    params, target = example(loss)
    with pytest.raises(DTypeError, match=says("lengths", "list")):
        loss(params, target, lengths=[7, 7])
    with pytest.raises(DTypeError, match=says("lengths", "float32")):
        loss(params, target, lengths=torch.tensor([7.0, 7.0]))
    with pytest.raises(ShapeError, match=says(r"\(2,\)", r"\(3,\)")):
        loss(params, target, lengths=torch.tensor([7, 7, 7]))
    for bad in (0, 8):
        with pytest.raises(ShapeError, match=rf"lengths\[1\] must be between 1 and T = 7, got {bad}"):
            loss(params, target, lengths=torch.tensor([7, bad]))


@pytest.mark.parametrize("loss", [mixture_of_logistics_loss, mixture_of_gaussians_loss])
def test_mixtures_need_a_multiple_of_three_channels(loss):
    params, target = example(loss)
    with pytest.raises(ShapeError, match=says("3K", "got 11", "out_channels")):
        loss(params[:, 1:], target)


def test_gaussian_needs_two_channels():
    params, target = example(mixture_of_gaussians_loss)
    with pytest.raises(ShapeError, match=says("2 channels", "got 12", "mixture_of_gaussians_loss")):
        gaussian_loss(params, target)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), -41, "-7", True])
@every_waveform_loss
def test_bad_log_scale_min(loss, bad):
    with pytest.raises(ConfigError, match=says("log_scale_min", "got", "r9y9")):
        loss(*example(loss), log_scale_min=bad)


@pytest.mark.parametrize("bad", [1, 0, 256.0, True])
def test_bad_n_classes(bad):
    with pytest.raises(ConfigError, match=says("n_classes", "at least 2", "quantize_channels")):
        mixture_of_logistics_loss(*example(mixture_of_logistics_loss), n_classes=bad)


@pytest.mark.parametrize("bad", [-1, 11, 255])
def test_class_out_of_range(bad):
    logits, classes = example(mulaw_cross_entropy)
    classes[1, 3] = bad
    with pytest.raises(IndexError, match=says(rf"classes\[1, 3\] is {bad}", "0 to 10", "µ-law levels")):
        mulaw_cross_entropy(logits, classes)
    mulaw_cross_entropy(logits, classes, lengths=torch.tensor([7, 3]))
