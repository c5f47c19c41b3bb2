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
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=atol * float(b.abs().max())) and b.std() > 0.01 * b.abs().max()


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


def test_sigma_of_infer_onnx():
    """It scales the last flows' noise, not the early outputs'."""
    original, mel = waveglow(fused=False), torch.randn(2, 4, 12)
    model = fastvoc.accelerate(original)
    draws = [torch.randn(shape) for shape in model.noise_shapes(2, 12 * original.upsample.stride[0] // 8)]
    with torch.no_grad():
        want = original.infer(mel, 1.0, [0.7 * draws[0], *draws[1:]])
    z = torch.cat(draws, 1)
    assert len(draws) > 1 and close(model.infer_onnx(mel, z, 0.7), want) and close(model.infer_onnx(mel, z[..., None], 0.7), want)
    with pytest.raises(ShapeError, match=r"z is \(2, 7, .*expected \(B, 8, n_groups\)"):
        model.infer_onnx(mel, z[:, 1:])


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


# ---- r9y9's WaveNet --------------------------------------------------------------------------------------------------

ConvIn, Upsample = lookalikes.ConvInUpsampleNetwork, lookalikes.UpsampleNetwork
WAVENETS = {
    "mixture of logistics": {"net": ConvIn(4, 1, [2, 3])},
    "Gaussian": {"out_channels": 2, "distribution": "Normal", "net": Upsample([2, 3], nn.ReLU(), 3)},
    "softmax, speakers": {"out_channels": 200, "scalar_input": False, "gin": 3, "n_speakers": 5, "net": Upsample([6])},
    "softmax without a mel": {"out_channels": 20, "scalar_input": False, "cin": -1},
    "context cut off": {"kernel": 1, "net": lookalikes.IndentedUpsampleNetwork(2, [2, 3])},
    "speakers without a mel": {"cin": -1, "gin": 3, "n_speakers": 5},
    "mel at sample rate": {"stacks": 1, "kernel": 2},
    "2018": {"of_2018": True, "net": lookalikes.R9y9Upsampler2018([2, 3])},
    "2018 without a mel": {"of_2018": True, "out_channels": 9, "cin": -1},
    "2018, softmax": {
        "of_2018": True, "out_channels": 256, "scalar_input": False, "net": lookalikes.R9y9Upsampler2018([6], 1), "gin": 3,
    },
}  # fmt: skip


def one_hot(classes, n):
    return nn.functional.one_hot(classes, n).transpose(1, 2).float()


@pytest.mark.parametrize("changes", WAVENETS.values(), ids=WAVENETS)
def test_r9y9s_wavenet(changes):
    torch.manual_seed(0)
    original = randomised(lookalikes.R9y9WaveNet(**changes))
    model, A = fastvoc.accelerate(original), original.out_channels
    T, hop = 24, 1 if changes.get("net") is None else 6
    c = torch.randn(1, 4, T // hop + 2 * model.context_frames) if original.cin_channels > 0 else None
    gin = changes.get("gin", -1)
    g = None if gin < 0 else torch.tensor([[2]]) if original.embed_speakers is not None else torch.randn(1, gin, 1)
    x = torch.rand(1, 1, T) * 2 - 1 if original.scalar_input else one_hot(torch.randint(A, (1, T)), A)
    with torch.no_grad():
        want = original(x, c, g)
        assert close(model(x, c, g), want)
        assert close(model(x, c, g, softmax=True), original(x, c, g, softmax=True))
    if isinstance(changes.get("net"), Upsample) and changes["net"].up_layers[-1].__class__ is nn.ReLU:
        assert model.config.upsample_params["nonlinear_activation"] == "ReLU"

    seen = []
    bar = lambda steps: (seen.append(n) or n for n in steps)
    torch.manual_seed(1)
    y = model.incremental_forward(c=c, g=g, T=T, tqdm=bar, softmax=True, quantize=True, log_scale_min=-7.0)
    assert seen == list(range(T)) and y.shape == (1, 1 if original.scalar_input else A, T)
    torch.manual_seed(1)
    assert torch.equal(model.incremental_forward(c=c, g=g, T=T), y)
    if original.scalar_input:
        assert y.abs().max() <= 1 and y.std() > 0.01
    else:
        assert torch.equal(y.sum(1), torch.ones(1, T)) and len(y.argmax(1).unique()) > 3
    # The outputs on the way, with what was drawn fed back, are the original's
    start = torch.zeros(1, 1, 1) if original.scalar_input else one_hot(torch.tensor([[127 if A > 127 else (A - 1) // 2]]), A)
    with torch.no_grad():
        ours = model.infer(c, None if g is None else g.reshape(1, -1) if g.is_floating_point() else g.reshape(-1),
                           forced=y[:, 0] if original.scalar_input else y.argmax(1),
                           initial=None if original.scalar_input else float(start.argmax()),
                           **({"n_samples": T} if c is None else {"padded": True}))  # fmt: skip
        assert close(ours, original(torch.cat([start, y[:, :, :-1]], 2), c, g))


def test_incremental_forwards_of_other_kinds():
    model = fastvoc.accelerate(randomised(lookalikes.R9y9WaveNet(20, False, cin=-1)))
    first = one_hot(torch.tensor([[7]]), 20)
    torch.manual_seed(0)
    y = model.incremental_forward(first, T=5)
    torch.manual_seed(0)
    assert torch.equal(model.incremental_forward(first.transpose(1, 2), T=5), y)
    model.make_generation_fast_()
    model.clear_buffer()
    with pytest.raises(ConfigError, match="takes no test_inputs"):
        model.incremental_forward(test_inputs=first)
    with pytest.raises(ConfigError, match="softmax and quantize must be True"):
        model.incremental_forward(T=5, quantize=False)
    with pytest.raises(ConfigError, match=r"items from \[7.0, 3.0\]"):
        model.incremental_forward(one_hot(torch.tensor([[7], [3]]), 20), T=5)
    conditioned = fastvoc.accelerate(randomised(lookalikes.R9y9WaveNet(net=ConvIn(4, 1, [2, 3]))))
    with pytest.raises(ShapeError, match="c covers 12 samples, T is 24"):
        conditioned.incremental_forward(c=torch.zeros(1, 4, 4), T=24)
    broken = lookalikes.R9y9WaveNet()
    del broken.scalar_input
    with pytest.raises(IncompatibleCheckpointError, match="lacks what r9y9's WaveNet has"):
        fastvoc.accelerate(broken)


# ---- ClariNet --------------------------------------------------------------------------------------------------------


TEACHERS = [{}, {"kernel": 3, "blocks": 1}, {"blocks": 3, "layers": 2}, {"kernel": 3, "blocks": 3, "layers": 5}]


@pytest.mark.parametrize("sizes", TEACHERS, ids=str)
def test_clarinets_teacher(sizes):
    torch.manual_seed(0)
    original = randomised(lookalikes.ClarinetTeacher(**sizes))
    model, c, x = fastvoc.accelerate(original), torch.randn(1, 4, 5), torch.randn(1, 1, 40)
    with torch.no_grad():
        assert close(model.upsample(c), original.upsample(c)) and close(model(x, c), original(x, c))
    torch.manual_seed(1)
    y = model.generate(37, c)
    torch.manual_seed(1)
    assert torch.equal(model.generate(num_samples=37, c=c), y) and y.shape == (1, 1, 37) and y.std() > 0.01
    forced = model.infer(c, forced=nn.functional.pad(y[:, 0], (0, 3)))
    with torch.no_grad():
        assert close(forced, original(nn.functional.pad(y, (1, 2)), c))
    with pytest.raises(ShapeError, match="c covers 40 samples, num_samples is 41"):
        model.generate(41, c)
    with pytest.raises(ConfigError, match="a ClariNet teacher itself"):
        fastvoc.accelerate(original, teacher=original)
    original.causal = False
    with pytest.raises(ConfigError, match="made with causal=False"):
        fastvoc.accelerate(original)


@pytest.mark.parametrize("blocks", [(1,), (2, 1, 3)])
def test_clarinets_student(blocks):
    torch.manual_seed(0)
    original, teacher = randomised(lookalikes.ClarinetStudent(blocks)), randomised(lookalikes.ClarinetTeacher())
    model, alone = fastvoc.accelerate(original, teacher=teacher), fastvoc.accelerate(original)
    c, z = torch.randn(2, 4, 5), torch.randn(2, 1, 40)
    with torch.no_grad():
        c_up = teacher.upsample(c)
        want = original.generate(z, c_up)
    assert close(model.generate(z, c_up), want) and close(alone.generate(z, c_up), want)
    assert close(model.infer(c, noise=z[:, 0]), want[:, 0])
    alone.remove_weight_norm()
    with pytest.raises(ConfigError, match="came without its teacher"):
        alone.infer(c)
    with pytest.raises(ShapeError, match=r"z is \(2, 40\), expected \(B, 1, T\)"):
        alone.generate(z[:, 0], c_up)
    with pytest.raises(IncompatibleCheckpointError, match="lacks what ClariNet's modules have"):
        fastvoc.accelerate(original, teacher=nn.Linear(1, 1))


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


def test_halves_come_in_where_the_original_was_half():
    """The model keeps its weights in float32, rounded as they were."""
    torch.manual_seed(0)
    glow, lmnt = waveglow(), randomised(lookalikes.LmntDiffWave(lookalikes.Params(LMNT_PARAMS)))
    mel, audio, halves = torch.randn(1, 4, 12), torch.randn(1, 512), lambda *x: [v.half() for v in x]
    model = fastvoc.accelerate(glow.half())
    draws = [torch.randn(shape) for shape in model.noise_shapes(1, 12 * glow.upsample.stride[0] // 8)]
    assert torch.equal(model.infer(mel.half(), noise=draws), model.infer(mel.half().float(), noise=draws))
    wave = torch.rand(1, 48)
    assert torch.equal(model(halves(mel, wave))[0], model([x.float() for x in halves(mel, wave)])[0])
    model, bands, step = fastvoc.accelerate(lmnt.half()), torch.rand(1, 5, 2), torch.tensor([3])
    with torch.no_grad():
        want = model(audio.half().float(), step, bands.half().float())
        assert torch.equal(model(audio.half(), step, bands.half()), want)
    net = fastvoc.accelerate(randomised(lookalikes.R9y9WaveNet(net=ConvIn(4, 1, [2, 3]))).half())
    c, waves = torch.randn(1, 4, 6), []
    for given in (c.half(), c.half().float()):
        torch.manual_seed(0)
        waves.append(net.incremental_forward(c=given, T=24))
    assert torch.equal(*waves)


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


MELGAN = {"in_channels": 5, "out_channels": 5, "channels": 16, "kernel_size": 5, "upsample_scales": [4, 2], "stacks": 2}


def melgan(causal: bool, **changes) -> dict:
    """Options of a generator that a MelGANGenerator upsamples for."""
    net = {"upsample_net": "MelGANGenerator", "aux_context_window": 0, "use_causal_conv": causal}
    return {**net, "upsample_params": {**MELGAN, "use_causal_conv": causal, **changes}}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kernel_size": 5, "use_causal_conv": True},
        melgan(False),
        melgan(True, pad="ConstantPad1d", pad_params={"value": 0.3}, nonlinear_activation_params={"negative_slope": 0.1}),
    ],
    ids=str,
)
def test_the_package_parallel_wavegan(monkeypatch, options):
    import scipy.signal

    # It takes this name from where SciPy had it until 1.13
    monkeypatch.setattr(scipy.signal, "kaiser", scipy.signal.windows.kaiser, raising=False)
    package = pytest.importorskip("parallel_wavegan.models.parallel_wavegan", reason="pip install parallel_wavegan")
    torch.manual_seed(0)
    original = package.ParallelWaveGANGenerator(
        layers=6, stacks=2, residual_channels=8, gate_channels=16, skip_channels=6, aux_channels=5,
        **{"upsample_params": {"upsample_scales": [4, 3]}, **options},
    ).eval()  # fmt: skip
    if "upsample_net" in options:  # whose weights begin too near to zero to be seen
        for conv in original.upsample_net.modules():
            if hasattr(conv, "weight_g"):
                conv.weight_g.data *= 10
    original.register_buffer("mean", torch.randn(5))
    original.register_buffer("scale", torch.rand(5) + 0.5)
    model, c = fastvoc.accelerate(original), torch.randn(7, 5)
    for normalise in (False, True):
        with torch.no_grad():
            torch.manual_seed(1)
            want = original.inference(c, normalize_before=normalise)
            torch.manual_seed(1)
            assert close(model.inference(c, normalize_before=normalise), want)


@pytest.mark.parametrize(
    "options",
    [
        {"out_channels": 30, "scalar_input": True, "upsample_conditional_features": True, "upsample_scales": [4, 3]},
        {"out_channels": 256, "cin_channels": 5, "legacy": False},
        {"out_channels": 256, "gin_channels": 4, "n_speakers": 3},
    ],
    ids=str,
)
def test_the_package_wavenet_vocoder(options):
    package = pytest.importorskip("wavenet_vocoder", reason="pip install wavenet_vocoder")
    torch.manual_seed(0)
    cin = 5 if options.get("upsample_conditional_features") else options.get("cin_channels", -1)
    sizes = {"layers": 4, "stacks": 2, "residual_channels": 8, "gate_channels": 12, "skip_out_channels": 6}
    original = package.WaveNet(**{**sizes, **options, "cin_channels": cin}).eval()
    model = fastvoc.accelerate(original)
    T, A = 24, options["out_channels"]
    c = None if cin < 0 else torch.rand(1, 5, 2 if options.get("upsample_conditional_features") else T)
    g = torch.tensor([[1]]) if "gin_channels" in options else None
    scalar = options.get("scalar_input", False)
    x = torch.rand(1, 1, T) * 2 - 1 if scalar else one_hot(torch.randint(A, (1, T)), A)
    with torch.no_grad():
        assert close(model(x, c, g), original(x, c, g))
        theirs, ours = original.incremental_forward(c=c, g=g, T=T), model.incremental_forward(c=c, g=g, T=T)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
