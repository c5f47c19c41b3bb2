"""nv-wavenet's training checkpoint, a pickled module: every array of the golden, and files that do not fit."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

import fastvoc
from fastvoc.audio.mulaw import mulaw_decode, mulaw_encode
from fastvoc.checkpoints import nv_wavenet, read_file
from fastvoc.errors import CheckpointError, ConfigError, IncompatibleCheckpointError
from tests.goldens import Golden

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def golden():
    return Golden("nv-wavenet-a")


@pytest.fixture
def model(golden):
    return fastvoc.load(golden.path("wavenet_120000"))


def trained_state(golden):
    return read_file(golden.path("wavenet_120000"))["model"].state_dict()


def upstream_logits(call, classes, features, hop):
    """Upstream's forward: the audio covers a part of the features, and column t is the distribution of sample t."""
    T = classes.shape[1]
    padded = F.pad(classes, (0, features.shape[2] * hop - T))
    return F.pad(call(padded, features)[:, :, : T - 1], (1, 0))


def test_configuration(model):
    assert model.config.dilations == [1, 2, 4, 8, 1, 2] and not model.training
    assert (model.hop_length, model.n_mels, model.sample_rate) == (40, 10, 16000)
    assert (model.mel_config.n_fft, model.mel_config.log, model.mel_config.fmax) == (160, "ln", 8000)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward(golden, model, dtype):
    model, features = model.to(dtype), golden.tensor("fwd_features", dtype)
    logits = upstream_logits(model, golden.tensor("fwd_samples").long(), features, 40)
    golden.check("fwd_logits", logits)
    golden.check("loss", F.cross_entropy(logits, golden.tensor("fwd_samples").long()))
    with pytest.raises(AssertionError):  # the comparison notices one tap
        model.conv_layers[3].conv.weight[3, 4, 1] += 0.01
        golden.check("fwd_logits", upstream_logits(model, golden.tensor("fwd_samples").long(), features, 40))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_upstreams_parameters(golden, model, dtype):
    """Through the rewriting of its parameters into ours."""
    state = {name: value.to(dtype).requires_grad_() for name, value in trained_state(golden).items()}
    features = golden.tensor("fwd_features", dtype).requires_grad_()
    classes = golden.tensor("fwd_samples").long()
    call = lambda *args: functional_call(model.to(dtype), nv_wavenet.canonical(state, 40), args)
    F.cross_entropy(upstream_logits(call, classes, features, 40), classes).backward()
    golden.check("loss_grad_features", features.grad)
    names = [name for name in golden.checked("loss_gradp:")]
    assert len(names) == 3
    for name in names:
        golden.check(name, state[name.removeprefix("loss_gradp:")].grad)


@torch.no_grad()
def test_conditioning(golden, model):
    """get_cond_input: (2R, B, layers, n_samples)."""
    made = torch.stack(list(model._conditioning(golden.tensor("ar_features"), 160)), 1)  # (B, layers, n_samples, 2R)
    golden.check("cond_input", made.permute(3, 0, 1, 2))


def test_generation_from_the_mel(golden, model):
    wave = model.infer(golden.tensor("ar_features"), noise=golden.tensor("ar_selectors")[..., None], threads=1)
    classes = golden.tensor("ar_class").long()
    assert torch.equal(wave, mulaw_decode(classes, 256)) and len(classes.unique()) > 50
    assert torch.allclose(wave, golden.tensor("ar_wave"), atol=1e-6)
    logits = model.infer(golden.tensor("ar_features"), forced=classes, threads=1)
    golden.check("ar_prob", logits.softmax(1)[:, :, golden.tensor("ar_prob_steps")].permute(2, 0, 1))


def test_mu_law(golden):
    assert torch.equal(mulaw_encode(golden.tensor("mulaw_wave"), 256), golden.tensor("mulaw_class").long())
    got = mulaw_decode(golden.tensor("mulaw_class").long(), 256)
    assert torch.allclose(got, golden.tensor("mulaw_decoded"), rtol=1e-6, atol=1e-7)


def test_training_file_and_export_agree(golden, model):
    export, trained = fastvoc.load(golden.path("model.pt")).state_dict(), model.state_dict()
    assert all(torch.equal(trained[name], value) for name, value in export.items())
    state = trained_state(golden)
    weights = nv_wavenet.exported(state)
    for name, want in read_file(golden.path("model.pt")).items():
        if name != "max_dilation":
            for a, b in zip(weights[name], want, strict=True) if isinstance(want, list) else [(weights[name], want)]:
                assert torch.equal(torch.as_tensor(a), torch.as_tensor(b)), name


@torch.no_grad()
@pytest.mark.parametrize("window", [30, 100, 130])
def test_windows_that_are_no_multiple_of_the_stride(tmp_path, golden, window):
    """Also a state_dict alone, with DataParallel's prefix; the upsampler against torch's own."""
    state = {**trained_state(golden), "upsample.weight": torch.randn(10, 10, window) / window**0.5}
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match="max_dilation"):
        fastvoc.load(tmp_path / "x.pt")
    model = fastvoc.load(tmp_path / "x.pt", max_dilation=8, upsample_stride=40)
    mel = torch.randn(2, 10, 7)
    want = F.conv_transpose1d(mel, state["upsample.weight"], state["upsample.bias"], stride=40)
    want = F.pad(want, (0, 40))[:, :, :280]
    if window < 40:  # torch ends with the last window; what is behind it is the bias
        want[:, :, 240 + window :] = state["upsample.bias"][:, None]
    torch.testing.assert_close(model.upsample_net(mel), want, rtol=1e-5, atol=1e-5)
    assert model.infer(mel, seed=1, threads=1).shape == (2, 280)


@pytest.mark.parametrize("name, value, error, words", [
    ("res_layers.2.conv.bias", None, IncompatibleCheckpointError, "missing: res_layers.2.conv.bias.* nv-wavenet"),
    ("res_layers.5.conv.bias", torch.ones(16), IncompatibleCheckpointError, "unexpected: res_layers.5.conv.bias"),
    ("embed.weight", torch.full((256, 16), torch.nan), CheckpointError, "NaN"),
    ("embed.weight", torch.ones(255, 16), IncompatibleCheckpointError, "embedding|255"),
    ("cond_layers.conv.weight", torch.ones(191, 10, 1), IncompatibleCheckpointError, "cond_layers.conv.weight"),
    ("upsample.weight", torch.ones(3), IncompatibleCheckpointError, "upsample.weight"),
    ("upsample.bias", 3, IncompatibleCheckpointError, "is a int"),
    ("dilate_layers.0.conv.weight", torch.ones(32, 16, 3), IncompatibleCheckpointError, r"\(32, 16, 3\)"),
])  # fmt: skip
def test_weights_that_do_not_fit(tmp_path, golden, name, value, error, words):
    state = {k: v for k, v in {**trained_state(golden), name: value}.items() if v is not None}
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(error, match=words):
        fastvoc.load(tmp_path / "x.pt", max_dilation=8, upsample_stride=40)
