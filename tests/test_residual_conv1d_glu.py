"""ResidualConv1dGLU: r9y9's residual layer as a drop-in module."""

import pytest
import torch
import torch.nn.functional as F

import fastvoc
from fastvoc.errors import ConfigError, ShapeError
from fastvoc.layers import ResidualConv1dGLU
from tests.goldens import Golden

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def plain(layer, x, c=None, g=None, kernel=3):
    """The layer with torch's convolutions."""
    reach = (kernel - 1) * layer.dilation
    pad = (reach, 0) if layer.causal else (reach // 2, reach // 2)
    a = F.conv1d(F.pad(x, pad), layer.conv.weight, layer.conv.bias, dilation=layer.dilation)
    a = a + (layer.conv1x1c(c) if c is not None else 0) + (layer.conv1x1g(g) if g is not None else 0)
    tanh, sigmoid = a.chunk(2, 1)
    z = torch.tanh(tanh) * torch.sigmoid(sigmoid)
    return (x + layer.conv1x1_out(z)) * 0.5**0.5, layer.conv1x1_skip(z)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", ["plain", "mel", "mel and speaker", "conditioning bias", "no bias"])
def test_computes_and_learns_as_convolutions(causal, kind):
    torch.manual_seed(0)
    c = None if kind == "plain" else torch.randn(2, 3, 20, dtype=torch.float64)
    g = torch.randn(2, 2, 1, dtype=torch.float64) if kind == "mel and speaker" else None
    layer = ResidualConv1dGLU(
        5, 6, 3, 4, -1 if c is None else 3, -1 if g is None else 2, 0.0, dilation=4, causal=causal,
        bias=kind != "no bias", conditioning_bias=kind == "conditioning bias",
    ).double()  # fmt: skip
    x = torch.randn(2, 5, 20, dtype=torch.float64, requires_grad=True)
    got, want = layer(x, c, g), plain(layer, x, c, g)
    assert all(torch.allclose(a, b) for a, b in zip(got, want)) and got[1].shape == (2, 4, 20)
    weights = [x, *layer.parameters()]
    gradients = lambda out: torch.autograd.grad(out[0].square().sum() + out[1].square().sum(), weights)
    assert all(torch.allclose(a, b) for a, b in zip(gradients(got), gradients(want)))


@torch.no_grad()
def test_takes_the_keys_of_a_checkpoint():
    """r9y9's forward pass, written with six of these layers."""
    golden = Golden("wavenet-r9y9-a")
    model = fastvoc.load(golden.path("checkpoint_step001000000_ema.pth"))
    config, c = model.config, model.upsample_net(golden.tensor("fwd_c"))
    x, skips = model.first_conv(golden.tensor("fwd_x")), 0
    for i, dilation in enumerate(config.dilations):
        sizes = config.residual_channels, config.gate_channels, config.kernel_size, config.skip_out_channels
        layer = ResidualConv1dGLU(*sizes, cin_channels=config.cin_channels, dilation=dilation).eval()
        prefix = f"conv_layers.{i}."
        layer.load_state_dict({k.removeprefix(prefix): v for k, v in model.state_dict().items() if k.startswith(prefix)})
        x, s = layer(x, c)
        skips = skips + s
    h = F.relu(skips * config.skip_scale)
    for layer in model.last_conv_layers[1:]:
        h = layer(h)
    golden.check("fwd_logits", h)


def test_dropout_is_before_the_convolution_alone():
    torch.manual_seed(0)
    layer = ResidualConv1dGLU(4, 6, 3, dropout=1.0).train()
    x = torch.randn(1, 4, 9)
    silent = layer.eval()(torch.zeros_like(x))[0]
    assert torch.allclose(layer.train()(x)[0], x * 0.5**0.5 + silent, atol=1e-6)


def test_what_does_not_fit():
    with pytest.raises(ConfigError, match="even"):
        ResidualConv1dGLU(4, 5, 3)
    with pytest.raises(ConfigError, match="padding must be None"):
        ResidualConv1dGLU(4, 6, 3, padding=1)
    layer = ResidualConv1dGLU(5, 6, 3, cin_channels=3)
    with pytest.raises(ShapeError, match="c is missing"):
        layer(torch.zeros(1, 5, 9))
    with pytest.raises(ShapeError, match="g is given"):
        layer(torch.zeros(1, 5, 9), torch.zeros(1, 3, 9), torch.zeros(1, 2, 1))
    with pytest.raises(ShapeError):
        layer(torch.zeros(1, 5, 9), torch.zeros(1, 3, 8))
    with pytest.raises(ShapeError):
        layer(torch.zeros(1, 4, 9), torch.zeros(1, 3, 9))
