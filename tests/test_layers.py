"""The drop-in layers: GatedActivation and CausalConv1d against torch, in one piece and in chunks; their errors.

The upsampling networks are tested with the engine that runs them, in test_wavenet_generate.py.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastvoc.errors import ConfigError, DTypeError, FastvocError, ShapeError
from fastvoc.layers import (
    CausalConv1d,
    ConvInUpsampleNetwork,
    ConvTranspose2dUpsampleNetwork,
    GatedActivation,
    UpsampleNetwork,
)
from fastvoc.layers.upsample import at_frame_rate, at_sample_rate, stretched

SHAPES = [(1, 1, 1, 1, 1), (3, 5, 2, 1, 1), (4, 6, 3, 4, 2), (6, 6, 5, 7, 6)]  # in, out, kernel, dilation, groups


def conv_of(shape, bias=True, dtype=torch.float64):
    torch.manual_seed(0)
    n_in, n_out, k, d, groups = shape
    return CausalConv1d(n_in, n_out, k, dilation=d, groups=groups, bias=bias).to(dtype)


# ---- GatedActivation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "dim"), [((2, 6, 5), 1), ((2, 5, 6), -1), ((2, 5, 6), 2), ((4,), 0), ((2, 0, 3), 1)])
def test_gate_splits_tanh_first(shape, dim):
    x = torch.randn(shape, dtype=torch.float64)
    a, b = x.chunk(2, dim) if x.numel() else (x, x)
    y = GatedActivation(dim)(x)
    assert torch.allclose(y, torch.tanh(a) * torch.sigmoid(b), atol=1e-15)
    assert torch.equal(y, GatedActivation()(a, b))


def test_gate_in_float32_and_its_gradient():
    x = torch.randn(2, 14, 33, requires_grad=True)
    y = GatedActivation()(x)
    exact = torch.tanh(x[:, :7].double()) * torch.sigmoid(x[:, 7:].double())
    assert (y - exact).abs().max() < 1e-6
    assert torch.autograd.gradcheck(GatedActivation(), x.detach().double()[:, :, :3].requires_grad_())


def test_gate_errors():
    with pytest.raises(ShapeError, match=r"\(2, 5, 3\).*even size in dimension 1"):
        GatedActivation()(torch.zeros(2, 5, 3))
    with pytest.raises(ShapeError, match="no dimension 1"):
        GatedActivation()(torch.zeros(4))
    with pytest.raises(ShapeError, match=r"a is \(2, 3\) but b is \(3, 2\)"):
        GatedActivation()(torch.zeros(2, 3), torch.zeros(3, 2))
    with pytest.raises(DTypeError, match=r"int64.*\.float"):
        GatedActivation()(torch.zeros(2, 4, 3, dtype=torch.int64))


# ---- CausalConv1d ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("T", [1, 2, 3, 31, 32, 33])
def test_conv_is_the_padded_convolution(shape, T):
    conv = conv_of(shape)
    x = torch.randn(2, shape[0], T, dtype=torch.float64)
    y = conv(x)
    want = F.conv1d(x, conv.weight, conv.bias, padding=conv.padding, dilation=shape[3], groups=shape[4])[:, :, :T]
    assert torch.allclose(y, want, atol=1e-14) and y.shape == (2, shape[1], T) and y.std() > 0
    with torch.no_grad():
        conv.weight[0, 0, -1] += 0.1
    assert not torch.allclose(conv(x), want, atol=1e-3)


def test_conv_has_conv1ds_parameters_and_start():
    torch.manual_seed(1)
    ours = CausalConv1d(6, 4, 3, dilation=2, groups=2)
    torch.manual_seed(1)
    theirs = nn.Conv1d(6, 4, 3, dilation=2, groups=2)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters()))
    ours.load_state_dict(theirs.state_dict())
    assert [name for name, _ in CausalConv1d(2, 2, 2, bias=False).named_parameters()] == ["weight"]


def test_conv_sees_no_future():
    conv = conv_of((3, 5, 4, 3, 1))
    x = torch.randn(1, 3, 40, dtype=torch.float64)
    changed = x.clone()
    changed[:, :, 20:] = 7
    y, z = conv(x), conv(changed)
    assert torch.equal(y[:, :, :20], z[:, :, :20]) and not torch.equal(y[:, :, 20], z[:, :, 20])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_conv_in_chunks(shape, bias):
    conv = conv_of(shape, bias, torch.float32)
    x = torch.randn(2, shape[0], 100)
    whole, exact = conv(x), conv_of(shape, bias)(x.double())
    state, pieces = conv.begin(2), []
    for n in (0, 1, 1, 2, 0, 7, 29, 60, 0):
        y, state = conv.step(x[:, :, sum(p.shape[2] for p in pieces) :][:, :, :n], state)
        assert y.shape == (2, shape[1], n) and state.shape == (2, shape[0], conv.padding)
        pieces.append(y)
    chunked = torch.cat(pieces, 2)
    floor = torch.finfo(torch.float32).eps * exact.abs().max()
    assert chunked.shape == whole.shape and (chunked - exact).abs().max() <= 2 * (whole - exact).abs().max() + floor


def test_conv_state_is_a_value():
    conv = conv_of((3, 5, 3, 2, 1))
    x = torch.randn(1, 3, 30, dtype=torch.float64)
    _, state = conv.step(x[:, :, :13], conv.begin(1))
    kept = state.clone()
    first, _ = conv.step(x[:, :, 13:], state)
    second, _ = conv.step(x[:, :, 13:], kept)
    assert torch.equal(state, kept) and torch.equal(first, second)


def test_conv_gradients():
    conv = conv_of((2, 4, 3, 2, 2))
    x = torch.randn(1, 2, 6, dtype=torch.float64, requires_grad=True)
    arguments = x, conv.weight, conv.bias

    def whole(x, weight, bias):
        return torch.func.functional_call(conv, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(whole, arguments) and torch.autograd.gradgradcheck(whole, arguments)
    first, state = conv.step(x[:, :, :4], conv.begin(1))
    chunked = torch.cat([first, conv.step(x[:, :, 4:], state)[0]], 2)
    gradients = [torch.autograd.grad(y.sin().sum(), arguments) for y in (chunked, conv(x))]
    for a, b in zip(*gradients):
        assert torch.allclose(a, b, atol=1e-13)


def test_conv_of_nothing():
    conv = conv_of((3, 5, 3, 2, 1))
    assert conv(torch.zeros(2, 3, 0, dtype=torch.float64)).shape == (2, 5, 0)
    assert conv(torch.zeros(0, 3, 4, dtype=torch.float64)).shape == (0, 5, 4)
    y, state = conv.step(torch.zeros(0, 3, 4, dtype=torch.float64), conv.begin(0))
    assert y.shape == (0, 5, 4) and state.shape == (0, 3, 4)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"kernel_size": 0}, "kernel_size must be at least 1, got 0"), ({"dilation": -1}, "dilation .* got -1"),
        ({"groups": 0}, "groups .* got 0"), ({"groups": 4}, "groups must divide"), ({"in_channels": 0}, "in_channels"),
    ],
)
def test_conv_configuration_errors(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        CausalConv1d(**{"in_channels": 6, "out_channels": 6, "kernel_size": 2, **kwargs})


def test_conv_input_errors():
    conv = CausalConv1d(3, 5, 3, dilation=2)
    for x in (torch.zeros(3, 7), torch.zeros(1, 7, 3), torch.zeros(1, 3)):
        with pytest.raises(ShapeError, match=r"expected \(B, 3, T\)"):
            conv(x)
    with pytest.raises(DTypeError, match=r"float64, the weights are torch.float32.*\.to"):
        conv(torch.zeros(1, 3, 7, dtype=torch.float64))
    with pytest.raises(ShapeError, match=r"state is \(2, 3, 4\), expected \(1, 3, 4\).*begin"):
        conv.step(torch.zeros(1, 3, 7), conv.begin(2))
    with pytest.raises(ShapeError, match="state"):
        conv.step(torch.zeros(1, 3, 7), torch.zeros(1, 3, 3))
    with pytest.raises(FastvocError, match="meta"):
        conv(torch.zeros(1, 3, 7, device="meta"))
    with pytest.raises(ShapeError, match="-1"):
        conv.begin(-1)
    assert conv(torch.zeros(1, 3, 7)).isfinite().all()


every_linear_network = pytest.mark.parametrize("network", [
    ConvInUpsampleNetwork([4, 4], cin_channels=3, cin_pad=2), UpsampleNetwork([2, 4, 2], cin_pad=1), UpsampleNetwork([16]),
    UpsampleNetwork([4, 4], mode="bilinear"), UpsampleNetwork([4, 4], mode="bicubic", use_causal_conv=True),
    ConvInUpsampleNetwork([5, 4], cin_channels=3, cin_pad=1, use_causal_conv=True), UpsampleNetwork([1, 17], mode="area"),
])  # fmt: skip


@every_linear_network
def test_samples_as_sums_of_few_frames(network):
    torch.manual_seed(0)
    for p in network.parameters():
        torch.nn.init.normal_(p, 0, 0.5)
    for n_frames in (1, 2, 7, 20, 33):
        c = torch.randn(2, 3, n_frames + 2 * network.context)
        for low, high in {(0, n_frames), (n_frames // 2, n_frames // 2 + 1), (n_frames // 3, n_frames)}:
            with torch.inference_mode():
                want = network(c)[:, :, low * network.scale : high * network.scale].transpose(1, 2)
                low_rate = at_frame_rate(network, c, low, high)
            assert low_rate.shape == want.shape and torch.allclose(low_rate.expanded(), want, atol=1e-5), (n_frames, low, high)
            assert low_rate.taps.shape[1] <= min(12, n_frames + 2 * network.context) and low_rate.frames.shape[1] <= c.shape[2]


@every_linear_network
def test_projections_at_frame_rate_and_their_gradients(network):
    """And no frame outside `seen` matters."""
    torch.manual_seed(0)
    network = copy.deepcopy(network).double()
    for p in network.parameters():
        torch.nn.init.normal_(p, 0, 0.5)
    weight = torch.randn(5, 3).double()
    low, high = getattr(network, "upsample", network).seen
    for n_frames in (1, 2, 7, 23):
        c = torch.randn(2, 3, n_frames + 2 * network.context).double().requires_grad_()
        inputs, dy = (c, *network.parameters()), torch.randn(2, n_frames * network.scale, 5).double()
        want, cond = F.linear(network(c).transpose(1, 2), weight), stretched(network, c)
        ours = cond.linear(weight)
        assert cond.shape == (2, n_frames * network.scale, 3) and cond.blocks.shape[2] == high - low + 1 <= 9
        torch.testing.assert_close(ours, want)
        for a, b in zip(torch.autograd.grad(ours, inputs, dy), torch.autograd.grad(want, inputs, dy)):
            torch.testing.assert_close(a, b)


def test_what_is_not_a_sum_of_few_frames():
    c = torch.randn(1, 3, 9)
    rough = UpsampleNetwork([4, 4], "LeakyReLU", {"negative_slope": 0.4})
    with torch.inference_mode():
        for network in (None, rough, UpsampleNetwork([4, 4], freq_axis_kernel_size=3), UpsampleNetwork([4]),
                        ConvTranspose2dUpsampleNetwork([4, 4])):  # fmt: skip
            assert at_frame_rate(network, c, 0, 9) is None and stretched(network, c) is None
        assert at_frame_rate(UpsampleNetwork([4, 4]), c, 0, 9) is not None
    assert at_frame_rate(UpsampleNetwork([4, 4]), c, 0, 9) is None  # with a gradient


@pytest.mark.parametrize("network", [
    ConvInUpsampleNetwork([4, 3], cin_channels=7, cin_pad=2), UpsampleNetwork([2, 5], cin_pad=1),
    UpsampleNetwork([3, 2], mode="bilinear", freq_axis_kernel_size=3), ConvTranspose2dUpsampleNetwork([4, 4]),
    ConvTranspose2dUpsampleNetwork([3, 4]), UpsampleNetwork([2, 3], use_causal_conv=True),
])  # fmt: skip
def test_compiled_upsampling_is_the_networks(network):
    """And where a network cannot be compiled (odd scales, causal), it runs itself."""
    torch.manual_seed(0)
    for p in network.parameters():
        torch.nn.init.normal_(p, 0, 0.5)
    mel = torch.randn(3, 7, 9)
    with torch.inference_mode():
        want = network.double()(mel.double()).transpose(1, 2)
        theirs = network.float()(mel).transpose(1, 2)
        ours = at_sample_rate(network, mel)
    worst = lambda y: float((y - want).abs().max())
    assert ours.shape == want.shape and ours.is_contiguous()
    assert worst(ours) <= 2 * worst(theirs) + torch.finfo(torch.float32).eps * float(want.abs().max())
