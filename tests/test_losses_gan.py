"""The losses of adversarial training: gradients, identities, bad input. Upstream's numbers: test_parallel_wavegan.py."""

import pytest
import torch
from torch.autograd import gradcheck

from fastvoc.errors import ConfigError, DTypeError, ShapeError
from fastvoc.losses import (
    discriminator_adversarial_loss,
    feature_matching_loss,
    generator_adversarial_loss,
    multi_resolution_stft_loss,
    stft_loss,
)

RESOLUTION = {"fft_size": 16, "hop_size": 5, "win_length": 12}


def waves(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return x.requires_grad_(), y.requires_grad_()


def test_stft_gradient():
    assert gradcheck(lambda x, y: stft_loss(x, y, **RESOLUTION), waves(2, 30))


@pytest.mark.parametrize("loss_type", ["mse", "hinge"])
def test_adversarial_gradients(loss_type):
    fake, real = waves(2, 1, 9)
    assert gradcheck(lambda x: generator_adversarial_loss([[x.sin(), x], x * 2], loss_type), fake)
    assert gradcheck(lambda x, y: discriminator_adversarial_loss(x, y, loss_type), (fake, real))


def test_feature_matching_gradient_goes_to_the_generated_alone():
    fake, real = waves(2, 3, 9)
    assert gradcheck(lambda x: feature_matching_loss([[x, x * 2, x]], [[real, real.sin(), real]]), fake)
    loss = feature_matching_loss([[fake, fake]], [[real, real]])
    assert torch.autograd.grad(loss, real, allow_unused=True) == (None,) and torch.autograd.grad(loss, fake)[0].any()


def test_stft_of_equal_waves_and_of_louder_ones():
    x, _ = waves(1, 4000)
    assert [v.item() for v in multi_resolution_stft_loss(x, x)] == [0, 0]
    convergence, magnitude = stft_loss(x * 3, x)
    assert torch.allclose(convergence, torch.tensor(2.0).double(), atol=1e-9)
    assert torch.allclose(magnitude, torch.tensor(3.0).double().log(), atol=1e-9)


def test_stft_is_the_mean_of_its_resolutions_and_channels_are_items():
    x, y = waves(2, 3, 2000)
    sizes = [(256, 64, 200), (512, 100, 512)]
    got = multi_resolution_stft_loss(x, y, *zip(*sizes))
    for i in (0, 1):
        want = sum(stft_loss(x.flatten(0, 1), y.flatten(0, 1), *size)[i] for size in sizes) / 2
        assert torch.allclose(got[i], want) and want > 0.1
    assert not torch.allclose(stft_loss(x, y, window="hamming_window")[0], stft_loss(x, y)[0])


def test_silence_gives_finite_gradients():
    x = torch.zeros(1, 2000, requires_grad=True)
    convergence, magnitude = stft_loss(x, torch.randn(1, 2000))
    (convergence + magnitude).backward()
    assert torch.isfinite(x.grad).all() and torch.isfinite(magnitude)


def test_sums_instead_of_means():
    outputs = [torch.full((1, 2), 3.0), torch.full((1, 2), 0.0)]
    assert generator_adversarial_loss(outputs) == 2.5 and generator_adversarial_loss(outputs, "mse", False) == 5
    real, fake = discriminator_adversarial_loss(outputs, outputs, "hinge", False)
    assert (real, fake) == (0 + 1, 4 + 1)
    layers = [[torch.ones(2), torch.ones(2) * 3, torch.ones(2)]], [[torch.zeros(2)] * 3]
    assert feature_matching_loss(*layers) == 2 and feature_matching_loss(*layers, average_by_layers=False) == 4
    assert torch.isclose(feature_matching_loss(*layers, include_final_outputs=True), torch.tensor(5 / 3))


def test_errors():
    x, y = waves(2, 2000)
    with pytest.raises(ShapeError, match=r"one shape.*\(2, 2000\) and \(1, 2000\)"):
        stft_loss(x, y[:1])
    with pytest.raises(ShapeError, match="needs at least 513"):
        stft_loss(x[:, :512], y[:, :512])
    with pytest.raises(DTypeError, match="float16"):
        stft_loss(x.half(), y)
    with pytest.raises(ConfigError, match="equally many"):
        multi_resolution_stft_loss(x, y, fft_sizes=[512])
    with pytest.raises(ConfigError, match="window: got 'kaiser'"):
        stft_loss(x, y, window="kaiser")
    with pytest.raises(ConfigError, match="loss_type: got 'wgan'"):
        generator_adversarial_loss(x, "wgan")
    with pytest.raises(ShapeError, match="empty list"):
        generator_adversarial_loss([])
    with pytest.raises(ShapeError, match="equally many"):
        feature_matching_loss([[x, x]], [[y]])
    with pytest.raises(ShapeError, match="no features"):
        feature_matching_loss([[x]], [[y]])
