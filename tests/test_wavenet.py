"""The WaveNet module: against the published implementations' numbers, its configuration, bad inputs, copies and files.

tests/data/wavenet-r9y9-a: a checkpoint of r9y9/wavenet_vocoder @ a35fff7 and what that code computes from it;
tests/data/nv-wavenet-a: an export of NVIDIA/nv-wavenet @ 03f6957 and what its CPU reference generates.
"""

import copy
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fastvoc
from fastvoc import WaveNet
from fastvoc.audio.mel import MelConfig
from fastvoc.errors import (
    CheckpointError,
    ConfigError,
    CorruptCheckpointError,
    DeviceError,
    DTypeError,
    FastvocError,
    FeatureError,
    IncompatibleCheckpointError,
    ShapeError,
)
from fastvoc.models import Preprocessing, WaveNetConfig
from fastvoc.models.wavenet_streams import generate
from tests.devices import ISAS, running_on
from tests.goldens import Golden

DATA = Path(__file__).parent / "data"
R9Y9, NV = DATA / "wavenet-r9y9-a", DATA / "nv-wavenet-a"
SMALL = {
    "out_channels": 6, "layers": 2, "stacks": 1, "residual_channels": 4, "gate_channels": 10, "skip_out_channels": 3,
    "kernel_size": 2, "cin_channels": 5, "cin_pad": 1, "upsample_conditional_features": True,
    "upsample_params": {"upsample_scales": [2, 3]}, "scalar_input": True,
}


pytestmark = pytest.mark.usefixtures("one_torch_thread")


def check(golden, name, got):
    assert got.std() > 0
    golden.check(name, got)


def small(seed=0, **changes):
    torch.manual_seed(seed)
    return WaveNet(**{**SMALL, **changes}).eval()


@pytest.fixture(scope="module")
def r9y9():
    return fastvoc.load(R9Y9 / "checkpoint_step001000000_ema.pth"), Golden(R9Y9.name)


@pytest.fixture(scope="module")
def nv():
    return fastvoc.load(NV / "model.pt"), Golden(NV.name)


# ---- r9y9/wavenet_vocoder --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_r9y9_forward(r9y9):
    model, io = r9y9
    check(io, "fwd_logits", model(io.tensor("fwd_x"), io.tensor("fwd_c")))
    check(io, "upsampled_c", model.upsample_net(io.tensor("fwd_c")[:1])[:, ::16])


@pytest.mark.parametrize("isa", ISAS)
def test_r9y9_step_by_step(r9y9, isa):
    """Upstream is fed test_inputs[t] at step t; here sample t - 1 is, and `initial` before the first."""
    model, io = r9y9
    fed = io.tensor("inc_tf_inputs")[:, 0]
    with running_on(isa):
        got = [
            model.infer(c[None], forced=x[None].roll(-1, 1), initial=float(x[0]), padded=True)
            for c, x in zip(io.tensor("inc_tf_c"), fed)
        ]
    check(io, "inc_tf_raw", torch.cat(got))


@pytest.mark.parametrize("isa", ISAS)
def test_r9y9_generation(r9y9, isa):
    model, io = r9y9
    noise = torch.cat([io.tensor("gen_u_mixture"), io.tensor("gen_u_logistic")[..., None]], -1)
    with running_on(isa):
        check(io, "gen_samples", model.infer(io.tensor("gen_c"), noise=noise, temperature=1.0, padded=True)[:, None])


@torch.no_grad()
def test_r9y9_comparison_notices_one_weight(r9y9):
    model, io = r9y9
    wrong = copy.deepcopy(model)
    wrong.conv_layers[2].conv.weight[3, 4, 1] += 0.01
    with pytest.raises(AssertionError):
        check(io, "fwd_logits", wrong(io.tensor("fwd_x"), io.tensor("fwd_c")))


def test_r9y9_parameter_names(r9y9):
    """r9y9's own, without weight norm: its checkpoint has weight_g and weight_v for a weight."""
    model, _ = r9y9
    path = R9Y9 / "checkpoint_step001000000_ema.pth"
    upstream = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    folded = {name.removesuffix("_v"): value.shape for name, value in upstream.items() if not name.endswith("_g")}
    assert {name: value.shape for name, value in model.state_dict().items()} == folded


# ---- nv-wavenet ------------------------------------------------------------------------------------------------------


def layer_conditioning(io):
    return io.tensor("cond_input").permute(1, 2, 0, 3)


@pytest.mark.parametrize("isa", ISAS)
def test_nv_wavenet_generation(nv, isa):
    """Classes are equal: every selector keeps its distance from a class boundary."""
    model, io = nv
    with running_on(isa):
        wave = model.infer(
            layer_conditioning=layer_conditioning(io), noise=io.tensor("ar_selectors")[..., None], initial=128, temperature=1.0
        )
    decoded = fastvoc.audio.mulaw.mulaw_decode(io.tensor("ar_class").long(), 256)
    assert torch.equal(wave, decoded) and len(wave.unique()) > 50
    assert torch.allclose(wave, io.tensor("ar_wave"), atol=1e-6)


def test_nv_wavenet_probabilities(nv):
    model, io = nv
    logits = model.infer(layer_conditioning=layer_conditioning(io), forced=io.tensor("ar_class").long(), initial=128)
    assert logits.shape == (2, 256, 160)
    check(io, "ar_prob", logits.softmax(1)[:, :, io.tensor("ar_prob_steps")].permute(2, 0, 1))


# ---- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stacks": 3}, r"layers must be a multiple of stacks, got layers=2, stacks=3"),
        ({"stacks": 0}, "stacks=0"), ({"layers": 0}, "dilations"),
        ({"dilations": [1, 2, 4]}, r"got \[1, 2, 4\], expected 2 integers"), ({"dilations": [1, 0]}, r"\[1, 0\]"),
        ({"gate_channels": 7}, "even.*got 7"), ({"gate_channels": 0}, "got 0"),
        ({"kernel_size": 0}, "at least 1, got 0"),
        ({"residual_channels": 0}, "residual_channels must lie in 1…65536, got 0"),
        ({"skip_out_channels": 10**9}, "skip_out_channels .*got 1000000000"), ({"out_channels": -1}, "out_channels"),
        ({"output_distribution": "Cauchy"}, "got 'Cauchy', expected 'Logistic' or 'Normal'"),
        ({"out_channels": 4}, "out_channels=4 fits no scalar output"), ({"out_channels": 2}, "out_channels=2"),
        ({"upsample_net": "Nearest"}, "got 'Nearest', expected one of.*ConvInUpsampleNetwork"),
        ({"use_speaker_embedding": True}, "needs gin_channels and n_speakers"),
        ({"upsample_params": {"upsample_scales": [2], "upsample_activation": "Swish"}}, "got 'Swish', expected one of"),
        ({"upsample_params": {"upsample_scales": [2], "mode": "cubic"}}, "cubic"),
    ],
)
def test_configuration_errors(changes, message):
    with pytest.raises(ConfigError, match=message):
        small(**changes)


def test_upsampler_configuration_errors():
    with pytest.raises(ConfigError, match="window 10 is no multiple of its stride 4"):
        small(upsample_net="ConvTranspose1dUpsampleNetwork", upsample_params={"window": 10, "stride": 4})


UNSTAGED = {  # networks that the engine has no stages for
    "odd transposed": ("ConvTranspose2dUpsampleNetwork", {"upsample_scales": [3, 2]}, 0),
    "ELU": ("ConvInUpsampleNetwork", {"upsample_scales": [2, 3], "upsample_activation": "ELU"}, 1),
    "bicubic": ("ConvInUpsampleNetwork", {"upsample_scales": [2, 3], "mode": "bicubic", "freq_axis_kernel_size": 3}, 1),
    "indented, Tanh": ("UpsampleNetwork", {"upsample_scales": [3], "upsample_activation": "Tanh"}, 2),
    "PReLU": ("UpsampleNetwork", {"upsample_scales": [3], "upsample_activation": "PReLU"}, 0),
}


@pytest.mark.parametrize("network", UNSTAGED)
def test_upsamplers_outside_of_the_engine(network):
    name, params, pad = UNSTAGED[network]
    model = small(upsample_net=name, upsample_params=params, cin_pad=pad)
    for conv in model.upsample_net.modules():
        if isinstance(conv, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            torch.nn.init.normal_(conv.weight, std=0.5)
    assert model.upsample_net.stages() is None
    mel = torch.randn(2, 5, 7 + 2 * pad)
    wave = model.infer(mel, seed=0, padded=True)
    forced = wave.clamp(-1, 1)
    raw = model.infer(mel, forced=forced, padded=True)
    want = model(torch.cat([torch.zeros(2, 1, 1), forced[:, None, :-1]], 2), mel)
    assert wave.shape == (2, 7 * model.hop_length) and torch.allclose(raw, want, atol=1e-5) and want.std() > 0.01
    streams = [model.stream(seed=0, stream=b, padded=True) for b in range(2)]
    for stream, frames in zip(streams, mel):
        stream.push(frames[:, :3])
        assert stream.n_ready() == 0  # which need the last frame
        stream.push(frames[:, 3:], last=True)
    saved = [stream.state_dict() for stream in streams]
    assert torch.equal(torch.stack(generate(streams)[0]), wave)
    for stream, state in zip(streams, saved):
        stream.load_state_dict(state)
    assert torch.equal(torch.stack(generate(streams)[0]), wave)


@pytest.mark.parametrize(
    ("changes", "head"),
    [
        ({"scalar_input": False}, "softmax"), ({}, "mol"), ({"out_channels": 3}, "mol"),
        ({"output_distribution": "Normal"}, "mog"), ({"output_distribution": "Normal", "out_channels": 2}, "gaussian"),
        ({"output_distribution": "Normal", "out_channels": 3}, "gaussian"),
    ],
)
def test_heads(changes, head):
    model = small(**changes)
    assert model.config.head == head and model.infer(torch.randn(1, 5, 2)).shape == (1, 12)


def test_receptive_field():
    config = WaveNetConfig(layers=4, stacks=2, kernel_size=3)
    assert config.dilations == [1, 2, 1, 2] and config.receptive_field == 2 * 6 + 1
    model = small()  # what the formula says is what the network does
    x = torch.zeros(1, 1, 30, requires_grad=True)
    model(x, torch.randn(1, 5, 7))[0, :, 20].sum().backward()
    seen = x.grad[0, 0].nonzero()[:, 0].tolist()
    assert seen == list(range(21 - model.config.receptive_field, 21))


def test_state_dict_names_and_shapes():
    names = {"first_conv.weight": (4, 1, 1), "first_conv.bias": (4,)}
    for i in range(2):
        names |= {
            f"conv_layers.{i}.conv.weight": (10, 4, 2), f"conv_layers.{i}.conv.bias": (10,),
            f"conv_layers.{i}.conv1x1c.weight": (10, 5, 1), f"conv_layers.{i}.conv1x1g.weight": (10, 8, 1),
            f"conv_layers.{i}.conv1x1_out.weight": (4, 5, 1), f"conv_layers.{i}.conv1x1_out.bias": (4,),
            f"conv_layers.{i}.conv1x1_skip.weight": (3, 5, 1), f"conv_layers.{i}.conv1x1_skip.bias": (3,),
        }
    names |= {
        "last_conv_layers.1.weight": (3, 3, 1), "last_conv_layers.1.bias": (3,),
        "last_conv_layers.3.weight": (6, 3, 1), "last_conv_layers.3.bias": (6,), "embed_speakers.weight": (7, 8),
        "upsample_net.conv_in.weight": (5, 5, 3), "upsample_net.upsample.up_layers.1.weight": (1, 1, 1, 5),
        "upsample_net.upsample.up_layers.3.weight": (1, 1, 1, 7),
    }
    model = small(gin_channels=8, n_speakers=7, use_speaker_embedding=True)
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == names


# ---- forward ---------------------------------------------------------------------------------------------------------


def test_forward_sees_no_future_and_learns():
    model, c = small(), torch.randn(1, 5, 6)
    x = torch.rand(1, 1, 24)
    changed = x.clone()
    changed[..., 10:] = 0
    y, z = model(x, c), model(changed, c)
    assert torch.equal(y[..., :10], z[..., :10]) and not torch.equal(y[..., 10], z[..., 10])
    y.sum().backward()
    unused = {f"conv_layers.1.conv1x1_out.{kind}" for kind in ("weight", "bias")}  # the last layer's residual
    assert {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()} == unused


def test_forward_of_classes_and_one_hot():
    model, c = small(scalar_input=False), torch.randn(2, 5, 6)
    x = torch.randint(6, (2, 24))
    y = model(x, c, softmax=True)
    one_hot = torch.nn.functional.one_hot(x, 6).transpose(1, 2).float()
    assert torch.allclose(y, model(one_hot, c).softmax(1), atol=1e-6) and torch.allclose(y.sum(1), torch.ones(2, 24))


def test_forward_errors():
    model = small()
    with pytest.raises(ShapeError, match="conditioned on 5 mel bands: c is missing"):
        model(torch.zeros(1, 1, 24))
    with pytest.raises(ShapeError, match="mel covers 24 samples, x has 20.*1 context frames"):
        model(torch.zeros(1, 1, 20), torch.zeros(1, 5, 6))
    with pytest.raises(ShapeError, match="g is missing"):
        small(gin_channels=3)(torch.zeros(1, 1, 24), torch.zeros(1, 5, 6))


# ---- infer: bad inputs -----------------------------------------------------------------------------------------------

MEL = torch.zeros(2, 5, 4)
NAN_MEL = MEL.clone()
NAN_MEL[1, 2, 3] = float("nan")
BAD = [
    (dict(), ConfigError, "pass one of mel, layer_conditioning and n_samples, got none"),
    (dict(mel=MEL, n_samples=4), ConfigError, r"got \['mel', 'n_samples'\]"),
    (dict(n_samples=4), ConfigError, "conditioned on 5 mel bands: pass mel"),
    (dict(mel=MEL.numpy()), DTypeError, r"ndarray, expected a torch.Tensor \(B, 5, n_frames\).*from_numpy"),
    (dict(mel=MEL.double()), DTypeError, r"mel is torch.float64, expected torch.float32.*\.float"),
    (dict(mel=MEL.long()), DTypeError, "int64"),
    (dict(mel=MEL.to("meta")), DeviceError, r"mel is on meta, the model on cpu.*\.to\(device\)"),
    (dict(mel=MEL[0]), ShapeError, r"mel is \(5, 4\), expected \(B, 5, n_frames\).*mel\[None\]"),
    (dict(mel=MEL.transpose(1, 2)), ShapeError, r"\(2, 4, 5\).*found on the last axis: transpose"),
    (dict(mel=torch.zeros(2, 80, 4)), ShapeError, r"\(2, 80, 4\).*must hold 5 mel bands.*another model"),
    (dict(mel=NAN_MEL), FeatureError, r"nan at index \(1, 2, 3\).*logarithm"),
    (dict(mel=MEL / 0), FeatureError, "nan|inf"),
    (dict(mel=MEL[:, :, :0]), ShapeError, "mel has 0 frames, expected at least 1"),
    (dict(mel=MEL[:, :, :2], padded=True), ShapeError, "mel has 2 frames, expected at least 3"),
    (dict(mel=MEL, lengths=[4]), ShapeError, r"lengths are \[4\], expected 2 numbers in 1…4"),
    (dict(mel=MEL, lengths=[4, 5]), ShapeError, r"\[4, 5\]"), (dict(mel=MEL, lengths=[0, 4]), ShapeError, r"\[0, 4\]"),
    (dict(mel=MEL, temperature=-1.0), ConfigError, "at least 0, got -1"),
    (dict(mel=MEL, temperature=float("nan")), ConfigError, "finite.*nan"),
    (dict(mel=MEL, noise=torch.zeros(2, 24)), ShapeError, r"noise is \(2, 24\), expected .* = \(2, 24, 3\)"),
    (dict(mel=MEL, forced=torch.zeros(2, 23)), ShapeError, r"forced is \(2, 23\), expected .* = \(2, 24\)"),
    (dict(mel=MEL, precision="fp8"), ConfigError, "got 'fp8', expected one of.*fp32.*bf16"),
    (dict(mel=MEL, noise=torch.full((2, 24, 3), float("nan"))), FeatureError, r"noise holds nan at index \(0, 0, 0\)"),
    (dict(mel=MEL, noise=torch.full((2, 24, 3), 1.5)), ConfigError, "noise holds 1.5…1.5 where uniform.*mol draws"),
    (dict(mel=MEL, noise=torch.zeros(2, 24, 3, device="meta")), DeviceError, "noise is on meta"),
    (dict(mel=MEL, noise=torch.zeros(2, 24, 3) + 1j), DTypeError, "noise is torch.complex64"),
    (dict(mel=MEL, noise="white"), DTypeError, "noise is a str"),
    (dict(mel=MEL, forced=torch.zeros(2, 24) / 0), FeatureError, "forced holds nan"),
    (dict(mel=MEL, forced=torch.zeros(2, 24, device="meta")), DeviceError, "forced is on meta"),
    (dict(mel=MEL, temperature="hot"), ConfigError, "temperature must be a number, got 'hot'"),
    (dict(mel=MEL, initial=float("nan")), ConfigError, "initial must be finite, got nan"),
    (dict(mel=MEL, initial="first"), ConfigError, "initial must be a number, got 'first'"),
    (dict(mel=MEL, lengths=[1.5, 2]), ConfigError, r"lengths must be whole numbers, got \[1.5, 2\]"),
    (dict(mel=MEL, lengths=4), ConfigError, "lengths must be whole numbers, got 4"),
    (dict(mel=MEL, streams=[0.5, 1]), ConfigError, "streams must be whole numbers"),
    (dict(mel=MEL, streams=[0]), ConfigError, r"streams are \[0\], expected 2 numbers"),
    (dict(mel=MEL, seed=1.5), ConfigError, "seed must be an integer in 0…2⁶⁴ - 1, got 1.5"),
    (dict(mel=MEL.to_sparse()), DTypeError, r"mel is torch.sparse_coo.*to_dense"),
    (dict(mel=MEL, threads=0), ConfigError, "whole number in 1…1024, got 0"),
    (dict(mel=MEL, threads=1.5), ConfigError, "whole number in 1…1024, got 1.5"),
    (dict(mel=MEL, threads=10**6), ConfigError, "whole number in 1…1024, got 1000000"),
    (dict(layer_conditioning=torch.zeros(1, 2, 10, 0)), ShapeError, "layer_conditioning has 0 samples"),
    (dict(layer_conditioning="x"), DTypeError, "layer_conditioning is a str"),
    (dict(mel=MEL, speaker=1), ConfigError, "trained without speakers"),
    (dict(layer_conditioning=torch.zeros(1, 2, 9, 4)), ShapeError, r"\(1, 2, 9, 4\), expected \(B, layers.*\(2, 10\)"),
    (dict(layer_conditioning=torch.zeros(2, 10, 4)), ShapeError, r"\(2, 10, 4\), expected \(B, layers"),
    (dict(layer_conditioning=torch.zeros(1, 2, 10, 4) / 0), FeatureError, "nan"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_infer_refuses(arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        small().infer(**arguments)
    assert isinstance(caught.value, FastvocError)


@pytest.mark.parametrize(
    ("model", "arguments", "error", "message"),
    [
        ("speakers", dict(mel=MEL), ConfigError, r"pass speaker=….*numbered 0…6"),
        ("speakers", dict(mel=MEL, speaker=[1, 7]), ConfigError, r"\[1, 7\] is out of range: the model knows 0…6"),
        ("speakers", dict(mel=MEL, speaker=-1), ConfigError, "out of range"),
        ("speakers", dict(mel=MEL, speaker=[1, 2, 3]), ShapeError, "3 speakers for a batch of 2"),
        ("speakers", dict(mel=MEL, speaker=torch.zeros(2, 9)), ShapeError, r"\(2, 9\), expected \(2, 8\)"),
        ("speakers", dict(mel=MEL, speaker="bob"), DTypeError, "speaker is a str"),
        ("speakers", dict(mel=MEL, speaker=torch.full((2, 8), float("nan"))), FeatureError, "speaker holds nan"),
        ("classes", dict(mel=MEL, initial=6), ConfigError, "class in 0…5, got 6"),
        ("classes", dict(mel=MEL, initial=2.5), ConfigError, "class in 0…5, got 2.5"),
        ("classes", dict(mel=MEL, forced=torch.full((2, 24), 6)), IndexError, "classes 6…6, the model has 0…5"),
        ("classes", dict(mel=MEL, forced=torch.full((2, 24), -1)), IndexError, "-1"),
        ("classes", dict(mel=MEL, noise=torch.zeros(2, 24, 3)), ShapeError, r"\(2, 24, 1\)"),
        ("no mel", dict(mel=MEL), ConfigError, "trained without a mel.*n_samples"),
        ("no mel", dict(n_samples=0), FastvocError, "n_samples"),
        ("no mel", dict(n_samples=-3), FastvocError, "n_samples"),
        ("no mel", dict(n_samples=2.5), ConfigError, "n_samples must be whole numbers"),
    ],
)
def test_infer_refuses_for_other_models(model, arguments, error, message):
    changes = {
        "speakers": {"gin_channels": 8, "n_speakers": 7, "use_speaker_embedding": True},
        "classes": {"scalar_input": False},
        "no mel": {"cin_channels": -1, "upsample_conditional_features": False},
    }
    with pytest.raises(error, match=message):
        small(**changes[model]).infer(**arguments)


def test_stream_errors():
    stream = small().stream()
    with pytest.raises(ShapeError, match="ended without a mel frame.*Push"):
        stream.push(last=True)
    with pytest.raises(ShapeError, match=r"\(4, 5\), expected \(5, n_frames\).*transpose"):
        stream.push(MEL[0].t())
    stream.push(MEL[0])
    with pytest.raises(ShapeError, match=r"asked for \[1000\] samples, the mel so far determines.*Push more mel"):
        generate([stream], [1000])
    stream.push(last=True)
    assert stream.n_ready() == 24
    with pytest.raises(RuntimeError, match=r"ended; make a new one with model\.stream"):
        stream.push(MEL[0])
    with pytest.raises(ConfigError, match="takes no mel"):
        small(cin_channels=-1, upsample_conditional_features=False).stream().push(MEL[0])


# ---- infer: what it gives --------------------------------------------------------------------------------------------


def test_one_frame_is_a_mel():
    assert small().infer(MEL[:, :, :1], seed=0).shape == (2, 6)


def test_numpys_and_torchs_numbers_are_numbers():
    model, lengths = small(gin_channels=8, n_speakers=7, use_speaker_embedding=True), torch.tensor([2, 4])
    want = model.infer(MEL, [1, 2], seed=3, lengths=[2, 4], temperature=0.5)
    got = model.infer(MEL, np.array([1, 2]), seed=np.int64(3), lengths=lengths, temperature=torch.tensor(0.5))
    assert torch.equal(got, want)
    stream = model.stream(speaker=model.embed_speakers.weight[1], seed=3, temperature=0.5)
    stream.push(MEL[0, :, :2], last=True)
    assert torch.equal(generate([stream])[0][0], want[0, :12])


def test_infer_of_nothing():
    model = small()
    n_samples = model.infer(MEL[:1]).shape[1]
    assert model.infer(MEL[:0]).shape == (0, n_samples)
    forced = torch.zeros(0, n_samples)
    assert model.infer(MEL[:0], forced=forced).shape == (0, model.config.out_channels, n_samples)


def test_infer_takes_any_layout_of_mel():
    model = small()
    mel = torch.randn(2, 4, 5).transpose(1, 2)
    assert torch.equal(model.infer(mel, seed=0), model.infer(mel.contiguous(), seed=0))
    assert torch.equal(model.infer(mel[:1].expand(3, -1, -1), seed=0)[0], model.infer(mel[:1], seed=0)[0])


def test_infer_without_mel_and_with_progress():
    model = small(cin_channels=-1, upsample_conditional_features=False)
    wave = model.infer(n_samples=50, seed=3)
    assert wave.shape == (1, 50) and wave.std() > 0 and torch.equal(wave, model.infer(n_samples=50, seed=3))
    model, seen = small(), []
    mel = torch.randn(2, 5, 1000)
    wave = model.infer(mel, seed=0, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4096, 6000), (6000, 6000)] and torch.equal(wave, model.infer(mel, seed=0))


def test_infer_in_the_reference_backend():
    model, mel = small(), torch.randn(2, 5, 3)
    with fastvoc.backend("reference"):
        slow = model.infer(mel, lengths=[3, 1], seed=0)
        with pytest.raises(fastvoc.errors.BackendUnavailableError, match="'reference' declined"):
            model.infer(mel, precision="bf16", seed=0)
    assert torch.allclose(slow, model.infer(mel, lengths=[3, 1], seed=0), atol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_kernels_of_one_tap(isa, precision):
    """The engine, which always looks back, looks at nothing; whatever the dilations are."""
    model, mel = small(kernel_size=1, layers=3, stacks=1), torch.randn(2, 5, 9)
    assert model.config.receptive_field == 1
    with running_on(isa):
        wave = model.infer(mel, seed=0, precision=precision)
        raw = model.infer(mel, forced=wave, precision=precision)
        with torch.no_grad():
            x, c = torch.cat([torch.zeros(2, 1), wave[:, :-1]], 1)[:, None], F.pad(mel, (1, 1), mode="replicate")
            want = model(x, c)
    assert torch.allclose(raw, want, atol=1e-5 if precision == "fp32" else 0.1) and want.std() > 0.01


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scalar_input": False, "out_channels": 20},
        {"upsample_conditional_features": False, "cin_pad": 0, "gin_channels": 3, "kernel_size": 3},
        {"upsample_net": "ConvTranspose2dUpsampleNetwork", "upsample_params": {"upsample_scales": [2, 3]}, "cin_pad": 0},
    ],
    ids=str,
)
def test_float64(changes):
    """In plain torch: outputs as exact as those of forward, the samples of float32's draws."""
    model = small(**changes)
    exact, mel = copy.deepcopy(model).double(), torch.randn(2, 5, 4)
    speaker = torch.randn(2, 3) if model.config.gin_channels > 0 else None
    wide = None if speaker is None else speaker.double()
    wave = model.infer(mel, speaker, seed=0)
    again = exact.infer(mel.double(), wide, seed=0)
    assert again.dtype == torch.float32 and torch.allclose(again, wave, atol=1e-5) and wave.std() > 0.01
    forced = wave.double() if model.config.scalar_input else torch.randint(20, wave.shape)
    raw = exact.infer(mel.double(), wide, forced=forced)
    start = forced.new_full((2, 1), 0 if model.config.scalar_input else 10)
    x = torch.cat([start, forced[:, :-1]], 1)
    n = model.context_frames
    with torch.no_grad():
        want = exact(x[:, None] if model.config.scalar_input else x, F.pad(mel.double(), (n, n), mode="replicate"), wide)
    assert raw.dtype == torch.float64 and torch.allclose(raw, want, rtol=0, atol=1e-12)
    with pytest.raises(DTypeError, match="mel is torch.float32, expected torch.float64"):
        exact.infer(mel, speaker)
    with pytest.raises(fastvoc.errors.BackendUnavailableError):
        exact.infer(mel.double(), wide, precision="bf16")


def test_forced_samples_may_be_waves_or_classes():
    model, mel = small(scalar_input=False, out_channels=256), torch.randn(1, 5, 4)
    classes = torch.randint(256, (1, 24))
    wave = fastvoc.audio.mulaw.mulaw_decode(classes, 256)
    assert torch.equal(model.infer(mel, forced=classes), model.infer(mel, forced=wave))


def test_temperature_comes_from_the_preprocessing():
    model, mel = small(), torch.randn(1, 5, 4)
    warm, cold = model.infer(mel, seed=0), model.infer(mel, temperature=0.0, seed=0)
    model.preprocessing = preprocessing(temperature=0.0)
    assert torch.equal(model.infer(mel, seed=0), cold) and not torch.equal(warm, cold)


def test_speaker_numbers_and_features():
    model, mel = small(gin_channels=8, n_speakers=7, use_speaker_embedding=True), torch.randn(2, 5, 4)
    one, other = model.infer(mel, 1, seed=0), model.infer(mel, [1, 2], seed=0)
    assert torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1])
    assert torch.equal(model.infer(mel, model.embed_speakers.weight[[1, 2]], seed=0), other)


# ---- copies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(duplicate):
    model, mel = small(), torch.randn(1, 5, 3)
    wave = model.infer(mel, seed=0)
    other = duplicate(model)
    assert torch.equal(other.infer(mel, seed=0), wave)
    with torch.no_grad():
        other.first_conv.weight += 1
    assert not torch.equal(other.infer(mel, seed=0), wave) and torch.equal(model.infer(mel, seed=0), wave)


def test_changed_weights_are_packed_anew():
    model, mel = small(), torch.randn(1, 5, 3)
    first, plan = model.infer(mel, seed=0), model.plan()
    assert model.plan() is plan
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(torch.rand(1, 1, 18), torch.randn(1, 5, 5)).square().mean().backward()
    optimizer.step()
    second = model.infer(mel, seed=0)
    assert model.plan() is not plan and not torch.equal(first, second)
    model.load_state_dict(small(seed=1).state_dict())
    assert torch.equal(model.infer(mel), small(seed=1).infer(mel))
    with torch.inference_mode():
        model.first_conv.bias.data = model.first_conv.bias.data + 1
    assert not torch.equal(model.infer(mel), small(seed=1).infer(mel))


# ---- files -----------------------------------------------------------------------------------------------------------


def preprocessing(**changes):
    mel = MelConfig(sample_rate=16000, n_fft=64, hop_length=6, win_length=64, n_mels=5, fmin=0.0, fmax=8000.0)
    return Preprocessing(mel, **changes)


@pytest.fixture
def folder(tmp_path):
    model = small()
    model.preprocessing = preprocessing(preemphasis=0.85, gain=0.5, temperature=0.7)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_saved_and_loaded(folder):
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    model, mel = small(), torch.randn(1, 5, 3)
    model.preprocessing = preprocessing(preemphasis=0.85, gain=0.5, temperature=0.7)
    for loaded in (WaveNet.from_pretrained(folder), fastvoc.load(folder), fastvoc.load(str(folder))):
        assert loaded.config == model.config and loaded.preprocessing == model.preprocessing and not loaded.training
        assert torch.equal(loaded.infer(mel, seed=0), model.infer(mel, seed=0))
        assert np.array_equal(loaded.vocode(mel, seed=0)[0], model.vocode(mel, seed=0)[0])


def test_saving_over_a_model(folder):
    small(seed=1).save_pretrained(folder)
    mel = torch.randn(1, 5, 3)
    assert torch.equal(fastvoc.load(folder).infer(mel, temperature=1, seed=0), small(seed=1).infer(mel, temperature=1, seed=0))


def test_missing_files(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="did you mean model"):
        fastvoc.load(tmp_path / "modle")
    with pytest.raises(CheckpointError, match="no config.json.*Expected config.json, model.safetensors"):
        fastvoc.load(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model.safetensors is missing"):
        fastvoc.load(folder)


@pytest.mark.parametrize("n", [0, 4, 100, -1])
def test_truncated_weights(folder, n):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:n])
    with pytest.raises(CorruptCheckpointError, match="model.safetensors is damaged.*again"):
        fastvoc.load(folder)


def test_weights_that_do_not_fit(folder):
    change(folder / "config.json", residual_channels=5)
    with pytest.raises(IncompatibleCheckpointError, match=r"weight is \(4, 1, 1\), the config makes it \(5, 1, 1\)"):
        fastvoc.load(folder)
    change(folder / "config.json", residual_channels=4, layers=3, dilations=[1, 2, 4])
    with pytest.raises(IncompatibleCheckpointError, match=r"missing: conv_layers\.2\.conv"):
        fastvoc.load(folder)
    change(folder / "config.json", layers=1, dilations=[1])
    with pytest.raises(IncompatibleCheckpointError, match=r"unexpected: conv_layers\.1\.conv"):
        fastvoc.load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(folder, value):
    model = small()
    with torch.no_grad():
        model.first_conv.weight[2] = value
    model.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="NaN or infinity in first_conv.weight .1 of"):
        fastvoc.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"residual_chanels": 4}, "unknown key 'residual_chanels'.*mean 'residual_channels'"),
        ({"zzz": 4}, "unknown key 'zzz'.*Known are"), ({"format_version": 2}, "format_version 2.*Upgrade"),
        ({"format_version": "x"}, "'x'"), ({"layers": "two"}, "layers must be int, got 'two'"),
        ({"family": "hifigan"}, r"unsupported architecture 'hifigan'; supported: .*wavenet"),
        ({"gate_channels": 7}, "even"), ({"residual_channels": 10**9}, "67108864"), ({"residual_channels": 10**5}, "65536"),
    ],
)
def test_configurations_that_cannot_be(folder, changes, message):
    change(folder / "config.json", **changes)
    with pytest.raises(ConfigError, match=message):
        fastvoc.load(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"), ("[1]", "must hold a JSON object, not list"), ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": 1, "a": 2}', "'a' appears twice"), ("[" * 100_000, "not valid JSON"),
    ],
)
def test_configurations_that_are_no_json(folder, text, message):
    (folder / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        fastvoc.load(folder)


def test_a_byte_order_mark_is_no_fault(folder):
    path = folder / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert fastvoc.load(folder).config.layers == 2


def test_a_plain_torch_file_holds_the_same(folder):
    """state_dict is what it looks like: it can be stored and loaded by torch alone."""
    buffer = io.BytesIO()
    torch.save(small().state_dict(), buffer)
    buffer.seek(0)
    other = small(seed=1)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    mel = torch.randn(1, 5, 2)
    assert torch.equal(other.infer(mel, seed=0), small().infer(mel, seed=0))


def test_autocast_leaves_the_logits_in_float32():
    model = WaveNet(32, layers=2, stacks=1, residual_channels=8, gate_channels=16, skip_out_channels=8, kernel_size=2)
    classes = torch.randint(32, (1, 50))
    exact = model(classes)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(classes)
    assert logits.dtype == torch.float32
    assert (logits != logits.bfloat16().float()).float().mean() > 0.9  # not bf16 numbers in another coat
    torch.testing.assert_close(logits, exact, rtol=0.1, atol=0.1)
    logits.sum().backward()
