"""accelerate: a module of a public implementation in, the fastvoc model that is called like it out.

tests/lookalikes.py has modules of the same structure; the pip packages of the originals are used where they are installed.
"""

import sys
import types

import pytest
import torch
from torch import nn

import fastvoc
from fastvoc.errors import ConfigError, DTypeError, IncompatibleCheckpointError, ShapeError
from fastvoc.models.diffwave_schedule import linear_schedule, sampling_steps
from tests import lookalikes
from tests.lookalikes import randomised

LMNT_PARAMS = {
    "residual_channels": 6, "residual_layers": 4, "dilation_cycle_length": 3, "n_mels": 5, "hop_samples": 256,
    "sample_rate": 22050, "n_fft": 1024, "noise_schedule": linear_schedule(1e-4, 0.05, 50),
    "inference_noise_schedule": [1e-4, 1e-3, 1e-2, 0.05, 0.2, 0.5], "audio_len": 300,
}  # fmt: skip
PHILSYN = {"T": 6, "beta_0": 0.001, "beta_T": 0.3}


def close(a, b, atol=1e-5):
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=atol * float(b.abs().max())) and b.std() > 0.01


# ---- DiffWave --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unconditional", [False, True])
def test_lmnts_diffwave(unconditional):
    params = lookalikes.Params(LMNT_PARAMS, unconditional=unconditional)
    original = randomised(lookalikes.LmntDiffWave(params))
    model = fastvoc.accelerate(original)
    audio, step = torch.randn(2, 512), torch.tensor([3.5])
    mel = None if unconditional else torch.rand(2, 5, 2)
    with torch.no_grad():
        want = original(audio, step, mel)
        assert close(model(audio, step, mel), want)
        assert close(model(audio, diffusion_step=step, spectrogram=mel), want)
    assert close(model(audio, step, mel).detach(), want)  # with gradients, layer by layer
    assert model.params is params and not model.training
    start, draws = torch.randn(1, 512), torch.randn(5, 1, 512)
    size = {"n_samples": 512} if unconditional else {}
    made = model.infer(None if unconditional else mel[:1], schedule="fast", noise=(start, draws), **size)
    assert close(made, lmnts_sampler(original, start, draws, None if unconditional else mel[:1]), 1e-4)


def lmnts_sampler(net, x, draws, mel):
    steps = sampling_steps(LMNT_PARAMS["inference_noise_schedule"], LMNT_PARAMS["noise_schedule"])
    with torch.no_grad():
        for i, n in enumerate(range(5, -1, -1)):
            x = steps.c1[n] * (x - steps.c2[n] * net(x, torch.tensor([steps.t[n]]), mel)[:, 0])
            x = (x + (steps.sigma[n] * draws[i] if n else 0)).clamp(-1, 1)
    return x


def test_lmnts_params_can_be_given_and_are_needed():
    original = randomised(lookalikes.LmntDiffWave(lookalikes.Params(LMNT_PARAMS)))
    del original.params
    with pytest.raises(ConfigError, match="Pass params="):
        fastvoc.accelerate(original)
    assert fastvoc.accelerate(original, params=LMNT_PARAMS).config.layers == 4
    with pytest.raises(ConfigError, match=r"unknown option 'parms' for lmnt.*\['params'\]"):
        fastvoc.accelerate(original, parms={})


def test_philsyns_diffwave():
    original = randomised(lookalikes.PhilsynWaveNet())
    model = fastvoc.accelerate(original, diffusion_config=PHILSYN)
    audio, mel, steps = torch.randn(2, 1, 500), torch.randn(2, 7, 2), torch.tensor([[1.0], [5.0]])
    with torch.no_grad():
        assert close(model((audio, mel, steps)), original((audio, mel, steps)))
    start, draws = torch.randn(2, 500), torch.randn(5, 2, 500)
    betas, x = torch.linspace(0.001, 0.3, 6), start[:, None]
    alpha_bar = (1 - betas).cumprod(0)
    with torch.no_grad():
        for i, t in enumerate(range(5, -1, -1)):
            x = (x - betas[t] / (1 - alpha_bar[t]).sqrt() * original((x, mel, t * torch.ones(2, 1)))) / (1 - betas[t]).sqrt()
            if t:
                x = x + (betas[t] * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])).sqrt() * draws[i][:, None]
    assert close(model.infer(mel, n_samples=500, noise=(start, draws)), x[:, 0], 1e-4)
    with pytest.raises(ConfigError, match="Pass diffusion_config"):
        fastvoc.accelerate(original)
    original.residual_layer.residual_blocks[1].dilated_conv_layer.conv.dilation = (5,)
    with pytest.raises(ConfigError, match=r"dilations \[1, 5, 4, 1\] are no cycles"):
        fastvoc.accelerate(original, diffusion_config=PHILSYN)


# ---- Parallel WaveGAN ------------------------------------------------------------------------------------------------

GENERATORS = {
    "v1": {},
    "a wider kernel": {"kernel": 5, "stacks": 1},
    "causal": {"causal": True, "net": lookalikes.CausalUpsampleNetwork([6]), "context": 0},
    "an activation": {"net": lookalikes.ConvInUpsampleNetwork(4, 2, [3, 2], nn.LeakyReLU(0.3), 3)},
}


@pytest.mark.parametrize("changes", GENERATORS.values(), ids=GENERATORS)
def test_parallel_wavegan(changes):
    original = randomised(lookalikes.PwgGenerator(**changes))
    model = fastvoc.accelerate(original)
    c, x = torch.randn(5, 4), torch.randn(30, 1)
    with torch.no_grad():
        want = original.inference(c, x)
        assert close(model.inference(c, x), want) and close(model.inference(c.numpy(), x.numpy()), want)
        torch.manual_seed(3)
        want = original.inference(c)
        torch.manual_seed(3)
        assert close(model.inference(c), want)  # the same noise, from the same generator
    context = original.aux_context_window
    padded = nn.functional.pad(c.t()[None], (context, context), mode="replicate")
    assert close(model(x.t()[None], padded).detach(), original(x.t()[None], padded).detach())
    with pytest.raises(ConfigError, match="register_stats"):
        model.inference(c, x, normalize_before=True)
    with pytest.raises(ShapeError, match=r"expected \(n_frames, 4\)"):
        model.inference(c[None], x)


def test_parallel_wavegans_statistics():
    original = randomised(lookalikes.PwgGenerator())
    original.register_buffer("mean", torch.randn(4))
    original.register_buffer("scale", torch.rand(4) + 0.5)
    model, c, x = fastvoc.accelerate(original), torch.randn(5, 4), torch.randn(30, 1)
    with torch.no_grad():
        want = original.inference(c, x, normalize_before=True)
        assert close(model.inference(c, x, normalize_before=True), want)
        assert not torch.allclose(model.inference(c, x), want, atol=1e-3)
        assert close(model.infer(c.t()[None].contiguous(), noise=x.t())[0], want[:, 0])


# ---- WaveGlow --------------------------------------------------------------------------------------------------------

GLOWS = {"fused": {}, "a layer each, no early output": {"fused": False, "flows": 2}, "hop 6": {"hop": 6, "window": 12, "C": 4}}


def waveglow(**changes):
    original = randomised(lookalikes.WaveGlow(**changes))
    for conv in original.convinv:  # well conditioned
        conv.conv.weight.data = torch.linalg.qr(torch.randn(*conv.conv.weight.shape[:2]))[0][:, :, None]
    return original


@pytest.mark.parametrize("alternating", [False, True])
@pytest.mark.parametrize("changes", GLOWS.values(), ids=GLOWS)
def test_waveglow(changes, alternating):
    torch.manual_seed(0)
    original, mel = waveglow(**changes), torch.randn(2, 4, 12)
    model = fastvoc.accelerate(original, coupling="alternating" if alternating else "standard")
    groups = 12 * original.upsample.stride[0] // 8
    draws = [torch.randn(shape) for shape in model.noise_shapes(2, groups)]
    with torch.no_grad():
        want = original.infer(mel, 0.7, draws, alternating)
    got = model.infer(mel, 0.7, noise=draws)
    assert close(got, want)
    z, log_s, log_det = model((mel, want))  # the way there
    early, last = draws[1:], draws[0]
    assert close(z.detach(), 0.7 * torch.cat([*early[::-1], last], 1), 1e-3) and len(log_s) == len(log_det) == original.n_flows
    torch.manual_seed(0)
    sigma_1 = model.infer(mel)
    torch.manual_seed(0)
    assert torch.equal(model.infer(mel, sigma=1.0), sigma_1) and model.remove_weightnorm(model) is model


def test_the_order_of_waveglows_couplings_is_in_its_modules_name(monkeypatch):
    original = waveglow()
    assert not fastvoc.accelerate(original).config.alternating
    monkeypatch.setattr(lookalikes.WaveGlow, "__module__", "tacotron2.waveglow.glow_old")
    assert fastvoc.accelerate(original).config.alternating
    with pytest.raises(ConfigError, match="coupling: got 'odd'"):
        fastvoc.accelerate(original, coupling="odd")
    del original.upsample.stride
    with pytest.raises(IncompatibleCheckpointError, match="lacks what a WaveGlow has"):
        fastvoc.accelerate(original)


# ---- Any of them -----------------------------------------------------------------------------------------------------


def test_wrapped_half_precision_and_new_weight_norm():
    original = randomised(lookalikes.PwgGenerator())
    c, x = torch.randn(5, 4), torch.randn(30, 1)
    want = fastvoc.accelerate(original).inference(c, x)
    assert torch.equal(fastvoc.accelerate(nn.DataParallel(original)).inference(c, x), want)
    for module in [*original.modules()]:
        if hasattr(module, "weight_g"):
            nn.utils.remove_weight_norm(module)
            nn.utils.parametrizations.weight_norm(module)
    assert close(fastvoc.accelerate(original).inference(c, x), want)
    rounded = fastvoc.accelerate(original.half()).inference(c, x)
    assert rounded.dtype == torch.float32 and 0 < (rounded - want).abs().max() < 0.05


def test_the_copy_is_independent_and_can_be_saved(tmp_path):
    original = randomised(lookalikes.PwgGenerator())
    model, c, x = fastvoc.accelerate(original), torch.randn(5, 4), torch.randn(30, 1)
    want = model.inference(c, x)
    with torch.no_grad():
        for p in original.parameters():
            p.zero_()
    assert torch.equal(model.inference(c, x), want)
    model.save_pretrained(tmp_path)
    again = fastvoc.load(tmp_path)
    mel = c.t()[None].contiguous()
    assert torch.equal(again.infer(mel, noise=x.t()), model.infer(mel, noise=x.t()))


def test_errors_of_accelerate():
    with pytest.raises(DTypeError, match="is a str.*fastvoc.load"):
        fastvoc.accelerate("model.pt")
    with pytest.raises(IncompatibleCheckpointError, match="Linear is no module that fastvoc knows.*Supported are: NVIDIA"):
        fastvoc.accelerate(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="precision: got 'fp8'"):
        fastvoc.accelerate(nn.Linear(2, 2), precision="fp8")
    broken = lookalikes.PwgGenerator()
    del broken.aux_context_window
    with pytest.raises(IncompatibleCheckpointError, match="lacks what a ParallelWaveGANGenerator has"):
        fastvoc.accelerate(broken)


# ---- The originals, where pip has put them ---------------------------------------------------------------------------


def test_the_package_diffwave(monkeypatch):
    pytest.importorskip("diffwave", reason="pip install diffwave")
    monkeypatch.setitem(sys.modules, "torchaudio", types.ModuleType("torchaudio"))  # which it uses to write files only
    import diffwave.inference as theirs
    from diffwave.model import DiffWave
    from diffwave.params import AttrDict

    torch.manual_seed(0)
    original = DiffWave(AttrDict(LMNT_PARAMS)).eval()
    nn.init.normal_(original.output_projection.weight)
    monkeypatch.setattr(theirs, "models", {"original": original, "fast": fastvoc.accelerate(original)})
    mel = torch.rand(2, 5, 2)
    for fast in (True, False):
        torch.manual_seed(1)
        want, _ = theirs.predict(mel, "original", device="cpu", fast_sampling=fast)
        torch.manual_seed(1)
        got, rate = theirs.predict(mel, "fast", device="cpu", fast_sampling=fast)
        assert close(got, want, 1e-4) and rate == 22050


@pytest.mark.parametrize("options", [{}, {"kernel_size": 5, "use_causal_conv": True}], ids=str)
def test_the_package_parallel_wavegan(monkeypatch, options):
    import scipy.signal

    # It takes this name from where SciPy had it until 1.13
    monkeypatch.setattr(scipy.signal, "kaiser", scipy.signal.windows.kaiser, raising=False)
    package = pytest.importorskip("parallel_wavegan.models.parallel_wavegan", reason="pip install parallel_wavegan")
    torch.manual_seed(0)
    original = package.ParallelWaveGANGenerator(
        layers=6, stacks=2, residual_channels=8, gate_channels=16, skip_channels=6, aux_channels=5,
        upsample_params={"upsample_scales": [4, 3]}, **options,
    ).eval()  # fmt: skip
    original.register_buffer("mean", torch.randn(5))
    original.register_buffer("scale", torch.rand(5) + 0.5)
    model, c = fastvoc.accelerate(original), torch.randn(7, 5)
    for normalise in (False, True):
        with torch.no_grad():
            torch.manual_seed(1)
            want = original.inference(c, normalize_before=normalise)
            torch.manual_seed(1)
            assert close(model.inference(c, normalize_before=normalise), want)
