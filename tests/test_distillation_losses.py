"""The losses of distillation: against torch.distributions and numerical integrals, their gradients, their borders."""

import math

import pytest
import torch
from torch import distributions as D

from fastvoc.errors import ConfigError, DTypeError, ShapeError
from fastvoc.losses import contrastive_loss, frame_loss, gaussian_kl, log_scale_distance, logistic_kl, power_loss

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def gaussians(B=2, T=7, seed=0):
    return torch.randn(B, 2, T, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.5


def mixture(B=2, K=3, T=7, seed=1):
    parts = torch.randn(3, B, K, T, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.cat([parts[0], parts[1] * 0.1, parts[2] * 0.2 - 3.5], 1)


def uniform(n, B=2, T=7, seed=2):
    u = torch.rand(n, B, T, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return u.clamp(1e-5, 1 - 1e-5)


def test_gaussian_kl_is_torchs():
    q, p = gaussians(), gaussians(seed=1)
    normal = lambda x: D.Normal(x[:, 0], x[:, 1].exp())
    assert torch.allclose(gaussian_kl(q, p), D.kl_divergence(normal(q), normal(p)))
    assert torch.allclose(log_scale_distance(q, p), (q[:, 1] - p[:, 1]) ** 2)


def test_floor_of_the_log_scales():
    q, p = gaussians(), gaussians(seed=1)
    deep = q.clone()
    deep[:, 1] = -50.0
    at_floor = q.clone()
    at_floor[:, 1] = -6.0
    assert torch.equal(gaussian_kl(deep, p), gaussian_kl(at_floor, p))
    assert (log_scale_distance(deep, p) > 2000).all()  # that one has no floor


def logistic_mixture(teacher):
    logits, means, log_scales = teacher.chunk(3, 1)
    parts = D.TransformedDistribution(
        D.Uniform(torch.zeros_like(means), torch.ones_like(means)),
        [D.SigmoidTransform().inv, D.AffineTransform(means, log_scales.exp())],
    )
    return lambda x: torch.logsumexp(logits.log_softmax(1) + parts.log_prob(x[:, None]), 1)


def test_logistic_kl_is_the_integral():
    """Against ∫ p_S ln(p_S / p_T) on a fine grid of quantiles."""
    student = torch.stack([gaussians()[:, 0] * 0.1, torch.full((2, 7), -3.5, dtype=torch.float64)], 1)
    teacher = mixture()
    n = 4000
    grid = ((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None, None].expand(n, 2, 7)
    log_p = logistic_mixture(teacher)
    x = student[:, 0] + student[:, 1].exp() * torch.logit(grid)
    own = -student[:, 1] + torch.log(grid) + torch.log1p(-grid)
    want = torch.stack([o - log_p(v) for o, v in zip(own, x)]).mean(0)
    got = logistic_kl(student, teacher, grid, n_classes=65536)
    assert (want > 0).all() and torch.allclose(got, want, rtol=1e-2, atol=5e-3)
    assert torch.allclose(logistic_kl(student, teacher, uniform(2000)), want, rtol=0.2, atol=0.15)  # by chance


def test_a_student_like_its_teacher_is_at_no_distance():
    mean, log_scale = gaussians()[:, 0] * 0.1, torch.full((2, 7), -4.0, dtype=torch.float64)
    teacher = torch.cat([torch.zeros(2, 1, 7, dtype=torch.float64), mean[:, None], log_scale[:, None]], 1)
    n = 4000
    grid = ((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None, None].expand(n, 2, 7)
    assert logistic_kl(torch.stack([mean, log_scale], 1), teacher, grid).abs().max() < 5e-3


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_gradcheck_gaussian(direction):
    q, p = gaussians().requires_grad_(), gaussians(seed=1).requires_grad_()
    args = (q, p) if direction == "reverse" else (p, q)
    assert torch.autograd.gradcheck(lambda a, b: gaussian_kl(a, b) + 4 * log_scale_distance(a, b), args)


def test_gradcheck_logistic():
    student = torch.stack([gaussians()[:, 0] * 0.1, gaussians()[:, 1] * 0.2 - 3.5], 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, t: logistic_kl(s, t, uniform(5)), (student, mixture().requires_grad_()))


@pytest.mark.parametrize("loss", [frame_loss, power_loss, lambda *a, **k: power_loss(*a, power=1.0, priority_bins=3, **k)])
def test_gradcheck_spectral(loss):
    x, y = (torch.randn(2, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    assert torch.autograd.gradcheck(lambda a: loss(a, y, n_fft=8, hop_length=4), (x.requires_grad_(),))


def test_spectral_losses_by_hand():
    x, y = (torch.randn(2, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    spectrum = lambda v, w: torch.fft.rfft(
        torch.nn.functional.pad(v, (8, 8), mode="reflect").unfold(1, 16, 4) * w, dim=2
    ).transpose(1, 2)
    flat, hann = torch.ones(16, dtype=torch.float64), torch.hann_window(16, dtype=torch.float64)
    difference = spectrum(x, flat).abs() - spectrum(y, flat).abs()
    assert torch.allclose(frame_loss(x, y, 16, 4), difference.square().mean(), rtol=1e-6)
    phi = lambda v: spectrum(v, hann).abs() ** 2
    assert torch.allclose(power_loss(x, y, 16, 4), (phi(x) - phi(y)).square().mean())
    magnitudes = (spectrum(x, hann).abs() - spectrum(y, hann).abs()).square()
    want = (magnitudes.mean() + magnitudes[:, :3].mean()) / 2
    assert torch.allclose(power_loss(x, y, 16, 4, power=1.0, priority_bins=3), want, rtol=1e-6)
    assert frame_loss(x, x) if x.shape[1] > 512 else frame_loss(x, x, 16, 4) == 0


def test_silence_has_a_gradient():
    x = torch.zeros(1, 64, requires_grad=True)
    (frame_loss(x, torch.randn(1, 64), 16, 4) + power_loss(x, torch.randn(1, 64), 16, 4, power=1.0)).backward()
    assert torch.isfinite(x.grad).all()


def test_contrast():
    assert math.isclose(float(contrastive_loss(torch.tensor(2.0), torch.tensor(5.0))), 0.5)


def test_padding_does_not_count():
    lengths = torch.tensor([7, 3])
    q, p, u = gaussians(), gaussians(seed=1), uniform(5)
    for loss in (gaussian_kl, log_scale_distance, lambda a, b, **k: logistic_kl(a, mixture(), u, **k)):
        want = torch.cat([loss(q, p)[0], loss(q, p)[1, :3]]).mean()
        spoilt = q.clone()
        spoilt[1, :, 3:] = float("nan")
        assert torch.allclose(loss(spoilt, p, reduction="mean", lengths=lengths), want)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gaussian_kl(gaussians(), gaussians(T=6)), ShapeError, "must be"),
        (lambda: gaussian_kl(mixture(), mixture()), ShapeError, "mean . log_scale"),
        (lambda: gaussian_kl(gaussians(), gaussians().float()), DTypeError, "float64"),
        (lambda: gaussian_kl(gaussians(), gaussians(), reduction="average"), ConfigError, "reduction"),
        (lambda: logistic_kl(mixture(), mixture(), uniform(2)), ShapeError, "student"),
        (lambda: logistic_kl(gaussians(), mixture(), uniform(2, T=6)), ShapeError, "uniform"),
        (lambda: logistic_kl(gaussians(), gaussians(), uniform(2)), ShapeError, "3K"),
        (lambda: frame_loss(torch.zeros(2, 20), torch.zeros(2, 21), 8, 4), ShapeError, "two waveforms"),
        (lambda: frame_loss(torch.zeros(2, 20), torch.zeros(2, 20)), ShapeError, "more than 512"),
        (lambda: power_loss(torch.zeros(1, 20), torch.zeros(1, 20), 8, 4, power=3), ConfigError, "power"),
        (lambda: power_loss(torch.zeros(1, 20), torch.zeros(1, 20), 8, 4, priority_bins=9), ConfigError, "priority_bins"),
    ],
)
def test_wrong_inputs_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
