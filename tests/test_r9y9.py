"""r9y9/wavenet_vocoder beyond its outputs: its draws, its parameters' gradients, float64, and the layout of 2018.

The layout of 2018 has no golden file: `forward_of_2018` writes that network down as its code has it, loop by loop.
"""

import copy
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fastvoc
from fastvoc.audio.mel import MelConfig
from fastvoc.checkpoints import r9y9, read_file
from fastvoc.checkpoints.weight_norm import fold_weight_norm
from fastvoc.errors import CheckpointError, ConfigError, ShapeError
from fastvoc.models import WaveNet
from fastvoc.ops.wavenet_generate import wavenet_generate
from tests.devices import ISAS, running_on
from tests.goldens import Golden

FILE = "checkpoint_step001000000_ema.pth"


pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def golden():
    return Golden("wavenet-r9y9-a")


@pytest.fixture(scope="module")
def model(golden):
    return fastvoc.load(golden.path(FILE))


# ---- draws -----------------------------------------------------------------------------------------------------------


def test_named_draws(golden, model):
    noise = {"mixture": golden.tensor("gen_u_mixture"), "logistic": golden.tensor("gen_u_logistic")}
    got = model.infer(golden.tensor("gen_c"), noise=noise, padded=True)
    golden.check("gen_samples", got[:, None])
    side_by_side = torch.cat([noise["mixture"], noise["logistic"][..., None]], -1)
    assert torch.equal(got, model.infer(golden.tensor("gen_c"), noise=side_by_side, padded=True))
    for item, want in zip(got, golden["gen_postprocessed"]):
        np.testing.assert_allclose(model.preprocessing.from_model(item.numpy()), want, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "shapes"),
    [
        ({"out_channels": 16, "scalar_input": False}, {"uniform": ()}),
        ({"out_channels": 2, "output_distribution": "Normal"}, {"normal": ()}),
        ({"out_channels": 6, "output_distribution": "Normal"}, {"mixture": (2,), "normal": ()}),
        ({"out_channels": 3}, {"mixture": (1,), "logistic": ()}),
    ],
)
def test_named_draws_of_every_head(changes, shapes):
    torch.manual_seed(0)
    sizes = {"layers": 2, "stacks": 1, "residual_channels": 4, "gate_channels": 8, "skip_out_channels": 4}
    model = WaveNet(**{**sizes, "scalar_input": True, **changes})
    noise = {name: torch.rand(3, 20, *shape) for name, shape in shapes.items()}
    flat = torch.cat([x.reshape(3, 20, -1) for x in noise.values()], 2)
    with torch.no_grad():  # three items: there is no mel that says how many
        made = model._streams(3, None, 0, range(3), 1.0, "fp32", 1, None, False)
        waves, _ = model._without_mel(made, None, 20, model._checked_noise(noise, 3, 20), None, None)
    made = model._streams(3, None, 0, range(3), 1.0, "fp32", 1, None, False)
    want, _ = model._without_mel(made, None, 20, flat, None, None)
    assert all(torch.equal(a, b) for a, b in zip(waves, want)) and torch.stack(waves).std() > 0
    with pytest.raises(ConfigError, match="noise names .'gumbel'.*this model"):
        model.infer(n_samples=20, noise={"gumbel": torch.rand(1, 20)})
    with pytest.raises(ShapeError, match="noise"):
        model.infer(n_samples=20, noise={name: torch.rand(1, 19, *shape) for name, shape in shapes.items()})


def test_a_fresh_seed_unless_given(model, golden):
    mel = golden.tensor("gen_c")[:1, :, :5]
    one, other = model.infer(mel, padded=True), model.infer(mel, padded=True)
    assert not torch.equal(one, other)
    torch.manual_seed(1)
    one = model.infer(mel, padded=True)
    torch.manual_seed(1)
    assert torch.equal(one, model.infer(mel, padded=True))
    with pytest.raises(ConfigError, match="seed"):
        model.infer(mel, seed=2**64)


@pytest.mark.parametrize("isa", ISAS)
def test_draws_from_given_outputs(golden, model, isa):
    """Upstream's sampler alone: what it draws from these network outputs, under teacher forcing and at random."""
    with running_on(isa):
        for name, params, draws in (("inc_tf_samples", "inc_tf_raw", "inc_tf_u"), ("sample_out", "loss_y_hat", "sample_u")):
            y, mixture, logistic = (golden.tensor(n) for n in (params, f"{draws}_mixture", f"{draws}_logistic"))
            drawn = torch.stack([_drawn(model, *item) for item in zip(y, mixture, logistic)])
            golden.check(name, drawn.reshape(golden[name].shape))


def _drawn(model, params, mixture, logistic):
    """(channels, T) outputs and their draws -> (T,), from engines whose last bias is the output."""
    w, out = model.weights(), []
    w.w_logits, w.w_cond = torch.zeros_like(w.w_logits), w.w_cond[:, :, :0].contiguous()
    for y, *draws in zip(params.t(), mixture, logistic[:, None]):
        w.b_logits = y.contiguous()
        plan = wavenet_generate.plan(torch.device("cpu"), w)
        out.append(plan.run([plan.begin(0, 0, 1.0, 0.0)], [1], noise=[torch.cat(draws)[None]])[0][0])
    return torch.cat(out)


# ---- float64 and gradients -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_float64(golden, model):
    state = {name: value.double() for name, value in read_file(golden.path(FILE))["state_dict"].items()}
    exact, rows = copy.deepcopy(model).double(), r9y9.canonical(state)
    upsampler = {k.removeprefix("upsample_net."): v for k, v in rows.items() if k.startswith("upsample_net.")}
    c = torch.func.functional_call(exact.upsample_net, upsampler, (golden.tensor("fwd_c", torch.float64)[:1],))
    assert torch.allclose(c[:, ::16], golden.tensor("upsampled_c_f64"), rtol=0, atol=1e-13)
    inputs = golden.tensor("inc_tf_inputs", torch.float64), golden.tensor("inc_tf_c", torch.float64)
    logits = torch.func.functional_call(exact, rows, inputs)
    assert torch.allclose(logits, golden.tensor("inc_tf_raw_f64"), rtol=0, atol=1e-11)


def test_gradients_reach_weight_norm(golden, model):
    """Fine-tuning from the file's own parameters: the gradient is that through the folded weight."""
    parameters = {k: v.double().requires_grad_() for k, v in read_file(golden.path(FILE))["state_dict"].items()}
    exact, rows = copy.deepcopy(model).double(), r9y9.canonical(parameters)
    inputs = golden.tensor("inc_tf_inputs", torch.float64)[:1], golden.tensor("inc_tf_c", torch.float64)[:1]
    loss = torch.func.functional_call(exact, rows, inputs).square().mean()
    name = "conv_layers.3.conv.weight"
    by_weight, by_g, by_v = torch.autograd.grad(loss, [rows[name], parameters[name + "_g"], parameters[name + "_v"]])
    g, v = parameters[name + "_g"].detach(), parameters[name + "_v"].detach()
    norm = v.flatten(1).norm(dim=1)[:, None, None]
    along = (by_weight * v / norm).sum((1, 2), keepdim=True)
    assert torch.allclose(by_g, along) and by_g.abs().max() > 0
    assert torch.allclose(by_v, g / norm * (by_weight - along * v / norm))


# ---- the layout of 2018 ----------------------------------------------------------------------------------------------

L, R, G, S, K, C = 4, 6, 8, 5, 3, 4
HPARAMS = {"stacks": 2, "input_type": "raw", "upsample_scales": [2, 3], "freq_axis_kernel_size": 3, "cin_channels": C}


def state_of_2018(out=6, inputs=1, speakers=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def conv(name, *shape, axis=0):
        v = torch.randn(shape, generator=generator)
        state[f"{name}.weight_v"], norm = v, v.flatten(1).norm(dim=1).reshape(-1, *[1] * (len(shape) - 1))
        state[f"{name}.weight_g"] = torch.rand(norm.shape, generator=generator) + 0.5
        state[f"{name}.bias"] = torch.randn(shape[axis], generator=generator) * 0.1

    conv("first_conv", R, inputs, 1)
    for i in range(L):
        layer = {"conv": (G, R, K), "conv1x1c": (G, C, 1), "conv1x1_out": (R, G // 2, 1), "conv1x1_skip": (S, G // 2, 1)}
        for name, shape in layer.items():
            conv(f"conv_layers.{i}.{name}", *shape)
        if speakers:
            conv(f"conv_layers.{i}.conv1x1g", G, 2, 1)
    conv("last_conv_layers.1", S, S, 1)
    conv("last_conv_layers.3", out, S, 1)
    for i, scale in ((0, 2), (2, 3)):
        conv(f"upsample_conv.{i}", 1, 1, 3, scale, axis=1)
    if speakers:
        state["embed_speakers.weight"] = torch.randn(3, 2, generator=generator)
    return state


def forward_of_2018(state, x, c, g=None, legacy=True):
    def w(name):
        v, g = state[f"{name}.weight_v"].double(), state[f"{name}.weight_g"].double()
        return g * v / v.flatten(1).norm(dim=1).reshape(g.shape), state[f"{name}.bias"].double()

    x, c = x.double(), c.double()[:, None]
    for i, scale in ((0, 2), (2, 3)):
        c = F.relu(F.conv_transpose2d(c, *w(f"upsample_conv.{i}"), stride=(1, scale), padding=(1, 0)))
    c, skips = c[:, 0], None
    x = F.conv1d(x, *w("first_conv"))
    for i in range(L):
        d = 2 ** (i % 2)
        a = F.conv1d(F.pad(x, ((K - 1) * d, 0)), *w(f"conv_layers.{i}.conv"), dilation=d)
        a = a + F.conv1d(c, *w(f"conv_layers.{i}.conv1x1c"))
        if g is not None:
            a = a + F.conv1d(g[:, :, None].double(), *w(f"conv_layers.{i}.conv1x1g"))
        z = torch.tanh(a[:, : G // 2]) * torch.sigmoid(a[:, G // 2 :])
        s = F.conv1d(z, *w(f"conv_layers.{i}.conv1x1_skip"))
        skips = s if skips is None else (skips + s) * (math.sqrt(0.5) if legacy else 1.0)
        x = (F.conv1d(z, *w(f"conv_layers.{i}.conv1x1_out")) + x) * math.sqrt(0.5)
    h = F.conv1d(F.relu(skips), *w("last_conv_layers.1"))
    return F.conv1d(F.relu(h), *w("last_conv_layers.3"))


def file_of_2018(folder, state, **hparams):
    torch.save({"state_dict": state, "global_step": 1}, folder / "checkpoint.pth")
    (folder / "hparams.json").write_text(json.dumps({**HPARAMS, **hparams}))
    return fastvoc.load(folder / "checkpoint.pth")


@pytest.mark.parametrize("legacy", [None, True, False])
def test_2018_computes_as_its_code(tmp_path, legacy):
    state = state_of_2018()
    model = file_of_2018(tmp_path, state, **({} if legacy is None else {"legacy": legacy}))
    x, c = torch.randn(2, 1, 30), torch.rand(2, C, 5) - 0.2
    want = forward_of_2018(state, x, c, legacy=legacy is not False)
    assert torch.allclose(model(x, c).double(), want, atol=2e-5) and want.std() > 0.1
    # step by step on the engine: sample t is predicted from those before it
    raw = model.infer(c, forced=x[:, 0].roll(-1, 1), initial=float(x[0, 0, 0]), threads=1)[:1]
    assert torch.allclose(raw.double(), want[:1], atol=2e-5)
    exact = torch.func.functional_call(
        copy.deepcopy(model).double(), r9y9.canonical({k: v.double() for k, v in state.items()}, legacy), (x.double(), c.double())
    )
    assert torch.allclose(exact, want, rtol=0, atol=1e-12)


def test_2018_softmax_starts_in_the_middle(tmp_path):
    model = file_of_2018(tmp_path, state_of_2018(out=16, inputs=16), input_type="mulaw-quantize")
    assert model.config.head == "softmax" and model.config.start == 8
    wave = model.infer(torch.rand(1, C, 9), seed=0)
    s = torch.arange(16) * 2 / 16 - 1  # upstream's µ is the number of classes
    levels = s.sign() * (torch.exp(s.abs() * math.log(17)) - 1) / 16
    assert torch.isclose(wave[0][:, None], levels, atol=1e-6).any(1).all() and len(wave.unique()) > 5


def test_2018_speakers(tmp_path):
    state = state_of_2018(speakers=True)
    model = file_of_2018(tmp_path, state, gin_channels=2, n_speakers=3)
    x, c, g = torch.randn(1, 1, 30), torch.rand(1, C, 5), torch.tensor([2])
    want = forward_of_2018(state, x, c, state["embed_speakers.weight"][g])
    assert torch.allclose(model(x, c, g).double(), want, atol=2e-5)
    raw = model.infer(c, [2], forced=x[:, 0].roll(-1, 1), initial=float(x[0, 0, 0]), threads=1)
    assert torch.allclose(raw.double(), want, atol=2e-5)


def test_2018_hears_lws_mels(tmp_path):
    model = file_of_2018(tmp_path, state_of_2018(), sample_rate=16000, fft_size=1024, hop_size=256, fmin=125, fmax=7600)
    want = MelConfig.preset("r9y9_2018", sample_rate=16000, n_mels=model.n_mels)
    assert model.mel_config == want and model.preprocessing.gain == 1.0
    levels = {"min_level_db": -80, "ref_level_db": 0}
    changed = file_of_2018(tmp_path, state_of_2018(), sample_rate=16000, fft_size=1024, hop_size=256, **levels).mel_config
    assert changed.affine == (80, 80) and abs(changed.floor - 1e-4) < 1e-12


def test_2018_with_a_hop_that_lws_has_not(tmp_path, caplog):
    model = file_of_2018(tmp_path, state_of_2018(), fft_size=1024, hop_size=6)
    assert model.preprocessing is None and "mels must come from elsewhere" in caplog.text
    assert model.infer(torch.rand(1, C, 2), seed=0).shape == (1, 2 * model.hop_length)


def test_the_weight_of_a_prelu_is_no_convolution(tmp_path):
    torch.manual_seed(0)
    net = {"upsample_scales": [2, 3], "upsample_activation": "PReLU", "cin_channels": 5, "cin_pad": 1}
    sizes = {"layers": 2, "stacks": 1, "out_channels": 6, "cin_channels": 5, "cin_pad": 1}
    model = WaveNet(
        **sizes, residual_channels=4, gate_channels=6, skip_out_channels=3, upsample_conditional_features=True,
        upsample_params=net, scalar_input=True,
    ).eval()  # fmt: skip
    torch.save({"state_dict": model.state_dict()}, tmp_path / "checkpoint.pth")
    (tmp_path / "hparams.json").write_text(json.dumps({**sizes, "input_type": "raw", "upsample_params": net}))
    again = fastvoc.load(tmp_path / "checkpoint.pth")
    mel = torch.randn(1, 5, 3)
    assert torch.equal(again.infer(mel, seed=0), model.infer(mel, seed=0))


def test_2018_incomplete(tmp_path):
    state = state_of_2018()
    del state["conv_layers.2.conv1x1c.bias"]
    with pytest.raises(CheckpointError, match="missing: conv_layers.2.conv1x1c.bias"):
        file_of_2018(tmp_path, state)


def test_2018_without_conditioning(tmp_path):
    """Nothing in its weights shows the time; its hparams.json does."""
    state = {k: v for k, v in state_of_2018().items() if "conv1x1c" not in k and not k.startswith("upsample_conv.")}
    none = {"cin_channels": -1, "upsample_conditional_features": False}
    model = file_of_2018(tmp_path, state, weight_normalization=True, **none)
    later = file_of_2018(tmp_path, state, **none)
    skips = [m.conv_layers[1].conv1x1_skip.weight * m.config.skip_scale for m in (model, later)]
    weight = fold_weight_norm(state)["conv_layers.1.conv1x1_skip.weight"]
    assert torch.allclose(skips[0], weight * 0.5 ** ((L - 1) / 2)) and torch.allclose(skips[1], weight / math.sqrt(L))
