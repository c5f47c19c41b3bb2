"""The layers of WaveGlow as drop-in modules: names and calls of the originals, inverses, gradients, bad inputs."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from fastvoc.checkpoints import read_file
from fastvoc.checkpoints.weight_norm import fold_weight_norm
from fastvoc.errors import ConfigError, ShapeError
from fastvoc.layers import WN, AffineCoupling, Invertible1x1Conv
from tests.goldens import Golden
from tests.test_waveglow import nvidia

torch.set_num_threads(1)
GOLDEN = Golden("waveglow-a")


def golden_wn(k):
    """NVIDIA's WN.k, its state_dict loaded under its own names."""
    state = read_file(GOLDEN.path("waveglow_256channels_a.pt"))["model"].state_dict()
    wn = WN(4 if k < 2 else 3, 32, n_layers=3, n_channels=32, kernel_size=3)
    own = {key.removeprefix(f"WN.{k}."): value for key, value in state.items() if key.startswith(f"WN.{k}.")}
    assert wn.load_state_dict(own).missing_keys == []
    return wn


@pytest.mark.parametrize("k", [0, 3])
def test_wn_is_the_network_of_the_model(k):
    audio, spect = torch.randn(2, 4 if k < 2 else 3, 50), torch.randn(2, 32, 50)
    want = nvidia().flows[k].coupling.net((audio, spect.transpose(1, 2)))
    got = golden_wn(k)((audio, spect))
    assert got.shape == want.shape and torch.allclose(got, want, atol=1e-5) and got.std() > 0.05


def test_wn_by_conv1d():
    torch.manual_seed(0)
    wn = WN(2, 5, n_layers=3, n_channels=4, kernel_size=5)
    nn.init.normal_(wn.end.weight)
    audio, spect = torch.randn(2, 2, 30, requires_grad=True), torch.randn(2, 5, 30, requires_grad=True)

    def plain():
        x, cond, output = wn.start(audio), wn.cond_layer(spect).chunk(3, 1), 0.0
        for i, (layer, res_skip) in enumerate(zip(wn.in_layers, wn.res_skip_layers)):
            a = F.conv1d(x, layer.weight, layer.bias, dilation=2**i, padding=2 * 2**i) + cond[i]
            rs = res_skip(torch.tanh(a[:, :4]) * torch.sigmoid(a[:, 4:]))
            x, output = x + rs[:, :4], output + rs[:, -4:]
        return wn.end(output)

    leaves = [audio, spect, *wn.parameters()]
    ours, theirs = wn((audio, spect)), plain()
    assert torch.allclose(ours, theirs, atol=1e-5)
    dy = torch.randn_like(theirs)
    for a, b in zip(torch.autograd.grad(ours, leaves, dy), torch.autograd.grad(theirs, leaves, dy), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_a_new_wn_does_nothing():
    wn = WN(3, 8, 2, 4, 3)
    assert not wn((torch.randn(1, 3, 9), torch.randn(1, 8, 9))).any()
    assert {n.split(".")[0] for n, _ in wn.named_parameters()} == {"start", "cond_layer", "in_layers", "res_skip_layers", "end"}


def test_gradcheck():
    torch.manual_seed(0)
    wn = WN(1, 2, n_layers=2, n_channels=2, kernel_size=3).double()
    nn.init.normal_(wn.end.weight)
    layer = AffineCoupling(wn, swap=True)
    conv = Invertible1x1Conv(2).double()
    audio, spect = (torch.randn(2, 2, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    forward = lambda audio, spect, *parameters: layer(conv(audio)[0], spect)
    backward = lambda audio, spect, *parameters: conv(layer(audio, spect, reverse=True), reverse=True)
    for run in (forward, backward):
        inputs = (audio, spect, *layer.parameters(), *conv.parameters())
        assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradcheck(lambda z, w: conv(z), (audio, conv.conv.weight))


def test_invertible_conv_is_glows():
    torch.manual_seed(0)
    conv = Invertible1x1Conv(6)
    assert list(conv.state_dict()) == ["conv.weight"] and conv.conv.weight.shape == (6, 6, 1)
    W = conv.conv.weight[:, :, 0]
    assert torch.allclose(W @ W.t(), torch.eye(6), atol=1e-5) and torch.det(W) > 0
    with torch.no_grad():
        conv.conv.weight.mul_(1.5).add_(0.1 * torch.randn(6, 6, 1))
    z = torch.randn(3, 6, 40)
    y, log_det = conv(z)
    assert torch.allclose(y, conv.conv(z), atol=1e-5)
    assert torch.allclose(log_det, 3 * 40 * torch.slogdet(W)[1], rtol=1e-5) and log_det.shape == ()
    assert torch.allclose(conv.log_det(z), log_det)
    for context in (torch.no_grad, torch.enable_grad):
        with context():
            assert torch.allclose(conv(y, reverse=True), z, atol=1e-5)
    with torch.no_grad():  # the kept inverse follows its weight
        before = conv(z, reverse=True)
        conv.conv.weight.mul_(2)
        assert torch.allclose(conv(z, reverse=True), before / 2, atol=1e-6)
        assert torch.equal(copy.deepcopy(conv)(z, reverse=True), conv(z, reverse=True))


@pytest.mark.parametrize("swap", [False, True])
def test_affine_coupling_undoes_itself(swap):
    torch.manual_seed(0)
    layer = AffineCoupling(WN(3, 4, 2, 8, 3), swap)
    nn.init.normal_(layer.net.end.weight, std=0.3)
    audio, spect = torch.randn(2, 6, 30), torch.randn(2, 4, 30)
    y, log_s = layer(audio, spect)
    kept = slice(3, 6) if swap else slice(0, 3)
    assert torch.equal(y[:, kept], audio[:, kept]) and log_s.shape == (2, 3, 30) and log_s.std() > 0.01
    assert torch.allclose(layer(y, spect, reverse=True), audio, atol=1e-5) and not torch.allclose(y, audio, atol=0.1)


def test_autocast_networks_are_taken():
    """Under autocast a network gives bfloat16 and the flow stays float32."""
    layer = AffineCoupling(golden_wn(0))
    audio, spect = torch.randn(1, 8, 20), torch.randn(1, 32, 20)
    want = layer(audio, spect)[0]
    with torch.autocast("cpu", torch.bfloat16):
        got = AffineCoupling(lambda inputs: layer.net.end(layer.net.start(inputs[0])))(audio, spect)[0]
    assert got.dtype == torch.float32 and want.dtype == torch.float32


def test_errors():
    with pytest.raises(ConfigError, match="c must be at least 1"):
        Invertible1x1Conv(0)
    with pytest.raises(ShapeError, match=r"x is \(1, 4, 9\) and weight \(3, 3\)"):
        Invertible1x1Conv(3)(torch.zeros(1, 4, 9))
    with pytest.raises(ShapeError, match="an even number of channels"):
        AffineCoupling(WN(3, 4, 2, 8, 3))(torch.zeros(1, 5, 9), torch.zeros(1, 4, 9))
    conv = Invertible1x1Conv(3)
    nn.init.zeros_(conv.conv.weight)
    with pytest.raises(ConfigError, match="singular"):
        conv(torch.zeros(1, 3, 4), reverse=True)
    for changes, message in (
        ({"kernel_size": 4}, "kernel_size must be odd"), ({"n_channels": 3}, "n_channels must be even"),
        ({"n_layers": 0}, "n_layers must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            WN(**{"n_in_channels": 2, "n_mel_channels": 4, "n_layers": 2, "n_channels": 4, "kernel_size": 3, **changes})
    with pytest.raises(ShapeError, match=r"audio is \(1, 4, 9\) and spect \(1, 4, 9\), expected \(B, 2, T\)"):
        WN(2, 4, 2, 4, 3)((torch.zeros(1, 4, 9), torch.zeros(1, 4, 9)))


def test_folding_a_layers_weight_norm_changes_nothing():
    wn = golden_wn(1)
    folded = fold_weight_norm(wn.state_dict())
    assert torch.allclose(folded["start.weight"], wn.start.weight, atol=1e-6) and "cond_layer.weight" in folded


def test_compiled_with_lengths_that_vary():
    torch.manual_seed(0)
    conv, layer = Invertible1x1Conv(4), AffineCoupling(WN(2, 3, 3, 4, 3))
    nn.init.normal_(layer.net.end.weight)

    def flow(x, spect):
        y, log_det = conv(x)
        return *layer(y, spect), log_det

    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(flow, fullgraph=True, backend=counter)
    for T in (17, 33, 64, 100):
        x, spect = torch.randn(2, 4, T, requires_grad=True), torch.randn(2, 3, T)
        got, want = compiled(x, spect), flow(x, spect)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(got, want, strict=True))
        loss = lambda y, log_s, log_det: y.square().sum() - log_s.sum() - log_det
        (a,), (b,) = (torch.autograd.grad(loss(*out), x) for out in (got, want))
        assert torch.allclose(a, b, atol=1e-4)
    assert counter.frame_count <= 3
