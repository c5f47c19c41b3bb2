"""WaveGlow: NVIDIA's outputs, loss and gradients, both directions, the couplings, training, bad inputs.

tests/data/waveglow-a: checkpoints, and what NVIDIA/waveglow @ 8afb643 computes from them. Layouts of checkpoints are in
test_checkpoints_waveglow.py.
"""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

import fastvoc
from fastvoc.checkpoints import read_file
from fastvoc.checkpoints.waveglow import canonical
from fastvoc.errors import ConfigError, DTypeError, FeatureError, ShapeError
from fastvoc.losses import waveglow_loss
from fastvoc.models import WaveGlow, WaveGlowConfig, waveglow_infer
from fastvoc.models.waveglow_denoiser import Denoiser
from tests.goldens import Golden

torch.set_num_threads(1)
GOLDEN = Golden("waveglow-a")
DTYPES = [torch.float32, torch.float64]
SMALL = {
    "n_mel_channels": 3, "n_flows": 5, "n_group": 6, "n_early_every": 2, "n_early_size": 2, "n_layers": 3, "n_channels": 8,
    "upsample_kernel": 40, "upsample_stride": 12,
}  # fmt: skip


def nvidia(dtype=torch.float32, file="waveglow_256channels_a.pt", **options):
    return fastvoc.load(GOLDEN.path(file), **options).to(dtype)


def small(**changes) -> WaveGlow:
    torch.manual_seed(0)
    model = WaveGlow(**{**SMALL, **changes}).eval()
    for flow in model.flows:  # zero at the start of a training
        nn.init.normal_(flow.coupling.net.end.weight, std=0.1)
    return model


# ---- NVIDIA's code ---------------------------------------------------------------------------------------------------


def inference(model, dtype):
    t = lambda name: GOLDEN.tensor(name, dtype)
    noise = [t("infer_z_0"), t("infer_z_1")]
    denoised = lambda strength: Denoiser(model)(t("denoise_in"), strength)
    return {
        "infer_audio": lambda: model.infer(t("infer_mel"), sigma=GOLDEN["infer_sigma"], noise=noise),
        "denoise_bias_spec": lambda: Denoiser(model).bias_spec,
        "denoise_out_strength0.1": lambda: denoised(0.1),
        "denoise_out_strength1.0": lambda: denoised(1.0),
    }


def tiny(dtype):
    model = nvidia(dtype, "waveglow_tiny_legacy.pt")
    t = lambda name: GOLDEN.tensor("tiny_legacy_infer_" + name, dtype)
    return model.infer(t("mel"), sigma=float(GOLDEN["tiny_legacy_infer_sigma"]), noise=[t("z_0")])


def training(model, dtype, **options):
    """One step of upstream's training through the rewriting of its parameters, gradients under its names."""
    state = read_file(GOLDEN.path("waveglow_256channels_a.pt"))["model"].state_dict()
    state = {name: w.to(dtype).requires_grad_() for name, w in state.items()}
    mel, wave = (GOLDEN.tensor(f"fwd_{name}", dtype).requires_grad_() for name in ("mel", "audio"))
    z, log_s, log_det = functional_call(model, canonical(state), (wave, mel), options)
    loss = waveglow_loss(z, log_s, log_det, float(GOLDEN["fwd_sigma"]))
    names = [name.removeprefix("fwd_gradp:") for name in GOLDEN.checked("fwd_gradp:")]
    gradients = torch.autograd.grad(loss, [mel, wave, *(state[name] for name in names)])
    return {
        "fwd_z": z, "fwd_loss": loss, "fwd_log_det": torch.stack(log_det), "fwd_grad_mel": gradients[0],
        "fwd_grad_audio": gradients[1], **{f"fwd_log_s_{k}": s for k, s in enumerate(log_s)},
        **{f"fwd_gradp:{name}": g for name, g in zip(names, gradients[2:], strict=True)},
    }  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_loss_and_gradients_of_the_public_code(dtype):
    model = nvidia(dtype)
    got = {name: run() for name, run in inference(model, dtype).items()}
    got |= {"tiny_legacy_infer_audio": tiny(dtype), **training(model, dtype)}
    assert set(got) == set(GOLDEN.checked())  # nothing is left out
    for name, value in got.items():
        GOLDEN.check(name, value)


def test_training_in_float64_is_exact():
    for name, value in training(nvidia(torch.float64), torch.float64).items():
        want = torch.from_numpy(GOLDEN[name + "_f64"])
        assert torch.allclose(value, want, rtol=0, atol=1e-12 * float(want.abs().max()))


@pytest.mark.parametrize("name", ["flows.0.convinv.conv.weight", "flows.1.coupling.net.start.bias", "upsample.bias"])
def test_a_changed_weight_is_noticed(name):
    model = nvidia()
    with torch.no_grad():
        model.get_parameter(name)[0] += 1e-2
    for output, run in inference(model, torch.float32).items():
        if not output.startswith("denoise_out"):
            with pytest.raises(AssertionError):
                GOLDEN.check(output, run())


def test_bf16_is_near_fp32():
    t = lambda name: GOLDEN.tensor(f"infer_{name}")
    options = {"sigma": float(GOLDEN["infer_sigma"]), "noise": [t("z_0"), t("z_1")]}
    want = nvidia().infer(t("mel"), **options)
    got = nvidia().infer(t("mel"), precision="bf16", **options)
    assert torch.equal(got, fastvoc.load(GOLDEN.path("waveglow_256channels_a.pt"), precision="bf16").infer(t("mel"), **options))
    error = got - want
    assert 0 < float(error.std()) < 0.02 * float(want.std()) and float(error.abs().max()) < 0.2


# ---- Both directions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"alternating": True}, {"n_flows": 2, "n_group": 2}, {"n_early_every": 1, "n_group": 12}, {"kernel_size": 1},
        {"n_early_size": 0},
    ],
)  # fmt: skip
def test_forward_undoes_infer(changes):
    model = small(**changes).double()
    mel = torch.randn(2, 3, 7, dtype=torch.float64)
    shapes = model.noise_shapes(2, 84 // model.config.n_group)
    noise = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    wave = model.infer(mel, sigma=0.8, noise=noise)
    z, log_s, log_det = model(wave.double(), mel)
    assert [s.shape[1] for s in log_s] == [c // 2 for c in model.config.channels] and len(log_det) == len(model.flows)
    # z has the early outputs first, in the order they leave; infer draws them last to first
    want = torch.cat(noise[:0:-1] + noise[:1], 1)
    assert torch.allclose(z, want * 0.8, atol=1e-5) and want.std() > 0.5


def by_the_paper(model, x, cond):
    """z and log-determinants of small signals, from a Jacobian: the definition of what the lists must sum to."""
    jacobian = torch.autograd.functional.jacobian(lambda wave: model(wave[None], cond)[0].flatten(), x)
    return torch.linalg.slogdet(jacobian)[1]


@pytest.mark.parametrize("alternating", [False, True])
def test_the_log_determinants_are_the_jacobians(alternating):
    model, mel = small(alternating=alternating).double(), torch.randn(1, 3, 3, dtype=torch.float64)
    wave = torch.randn(1, 30, dtype=torch.float64)
    _, log_s, log_det = model(wave, mel)
    total = sum(s.sum() for s in log_s) + sum(log_det)
    assert torch.allclose(total, by_the_paper(model, wave[0], mel), rtol=1e-9)


def test_alternating_couplings_move_the_first_half_in_odd_flows():
    model = small(alternating=True)
    for k, flow in enumerate(model.flows):
        x, cond = torch.randn(1, model.config.channels[k], 9), torch.randn(1, 9, 18)
        mixed = flow.convinv(x)[0]
        y, _, _ = flow(x, cond)
        half = x.shape[1] // 2
        kept, moved = (slice(half, None), slice(half)) if k % 2 else (slice(half), slice(half, None))
        assert torch.equal(y[:, kept], mixed[:, kept]) and not torch.isclose(y[:, moved], mixed[:, moved]).any()
    assert not torch.allclose(small().infer(torch.zeros(1, 3, 4), seed=0), model.infer(torch.zeros(1, 3, 4), seed=0))


def test_samples_beyond_the_last_group_and_frames_beyond_the_wave_are_left_out():
    model, mel, wave = small(), torch.randn(1, 3, 9), torch.randn(1, 65)
    z, _, _ = model(wave, mel)
    assert z.shape == (1, 6, 10) and torch.equal(z, model(wave[:, :60], mel)[0])
    assert torch.allclose(z, model(wave, mel[:, :, :6])[0], atol=1e-6)


# ---- Generation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"upsample_kernel": 12}, {"upsample_kernel": 31, "upsample_stride": 7}])
def test_stretches_give_what_one_piece_gives(monkeypatch, changes):
    model, mel = small(**changes), torch.randn(2, 3, 60)
    want = model.infer(mel, seed=1)
    monkeypatch.setattr(waveglow_infer, "STRETCH", 22)
    monkeypatch.setattr(waveglow_infer, "SHORTEST", 9)
    made = []
    inner = type(model)._conditioning
    monkeypatch.setattr(type(model), "_conditioning", lambda self, *a: made.append(a) or inner(self, *a))
    got = model.infer(mel, seed=1)
    assert len(made) >= 5 * 5 and max(high - low for _, low, high in made) < 30  # bounded, whatever the length
    assert torch.allclose(got, want, atol=1e-5) and got.shape == want.shape


@pytest.mark.parametrize("changes", [{}, {"upsample_kernel": 12}, {"upsample_kernel": 31, "upsample_stride": 7}])
def test_the_conditioning_of_infer_is_that_of_forward(changes):
    model, mel = small(**changes).double(), torch.randn(2, 3, 11, dtype=torch.float64)
    n = 11 * model.hop_length // 6
    want = model.conditioning(mel, 2, n)
    for low, high in ((0, n), (0, 1), (n - 1, n), (3, 7)):
        got = model._conditioning(mel, low, high)
        assert got.shape == want[:, low:high].shape and torch.allclose(got, want[:, low:high], rtol=0, atol=1e-14)
    with torch.no_grad():
        model.upsample.bias += 1
    assert torch.allclose(model._conditioning(mel, 0, n), want + 1)


@pytest.mark.parametrize("changes", [{}, {"upsample_kernel": 12}, {"upsample_kernel": 31, "upsample_stride": 7}])
def test_the_upsamplers_product_is_its_transposed_convolution(changes):
    model, mel = small(**changes).double(), torch.randn(2, 3, 5, dtype=torch.float64)
    weights = [model.upsample.weight, model.upsample.bias]
    want, got = model.upsample(mel), model._upsampled(mel)[:, :, : model.upsample(mel).shape[2]]
    assert torch.allclose(got, want, rtol=0, atol=1e-14)
    dy = torch.randn_like(want)
    for mine, theirs in zip(torch.autograd.grad(got, weights, dy), torch.autograd.grad(want, weights, dy)):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)


def test_an_item_does_not_depend_on_the_others_or_on_the_padding():
    model, mel = small(), torch.randn(3, 3, 8)
    mel[1, :, 5:] = 1e3
    wave = model.infer(mel, seed=4, lengths=torch.tensor([8, 5, 1]))
    assert torch.allclose(wave[0], model.infer(mel[:1], seed=4)[0], atol=1e-6)
    noise = list(model.normal_noise((3, 6, 16), 4)[1:2, :, :10].split([2, 2, 2], 1))
    assert torch.allclose(wave[1:2, :60], model.infer(mel[1:2, :, :5], noise=noise), atol=1e-6)
    assert not wave[1, 60:].any() and not wave[2, 12:].any() and wave[2, :12].all()


def test_seeds_and_sigma():
    model, mel = small(), torch.randn(1, 3, 4)
    assert torch.equal(model.infer(mel, seed=1), model.infer(mel, seed=1))
    assert not torch.allclose(model.infer(mel, seed=1), model.infer(mel, seed=2))
    torch.manual_seed(3)
    unseeded = model.infer(mel)
    torch.manual_seed(3)
    assert torch.equal(model.infer(mel), unseeded) and not torch.equal(model.infer(mel), unseeded)
    noise = list(model.normal_noise((1, 6, 8), 1).split([2, 2, 2], 1))
    assert torch.equal(model.infer(mel, seed=1), model.infer(mel, noise=noise, sigma=0.6))
    assert torch.equal(model.infer(mel, sigma=0, seed=1), model.infer(mel, sigma=0.0, seed=2))


def test_progress():
    seen = []
    small().infer(torch.zeros(2, 3, 4), lengths=[4, 2], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 10) for i in range(1, 11)]


def test_the_noise_of_every_channel_is_its_own():
    rows = small().normal_noise((2, 6, 500), 0).flatten(0, 1)
    assert float(torch.corrcoef(rows).fill_diagonal_(0).abs().max()) < 0.25


def test_a_model_follows_its_weights():
    model, mel = small(), torch.randn(1, 3, 4)
    before = model.infer(mel, seed=0)
    for name in ("flows.2.convinv.conv.weight", "flows.2.coupling.net.end.weight", "flows.2.coupling.net.start.bias"):
        with torch.no_grad():
            model.get_parameter(name).mul_(1.5)
        after = model.infer(mel, seed=0)
        assert not torch.allclose(after, before)
        before = after
    assert torch.equal(copy.deepcopy(model).infer(mel, seed=0), before)


def test_model_folder(tmp_path):
    model = nvidia()
    model.save_pretrained(tmp_path)
    again = fastvoc.load(tmp_path)
    assert again.config == model.config and again.mel_config == model.mel_config and again.sample_rate == 22050
    mel = GOLDEN.tensor("infer_mel")
    assert torch.equal(again.infer(mel, seed=0), model.infer(mel, seed=0)) and again.hop_length == 256


# ---- Training --------------------------------------------------------------------------------------------------------


def step_of(model, optimizer, wave, mel):
    loss = waveglow_loss(*model(wave, mel))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def test_fine_tuning_with_weight_norm():
    model = nvidia(weight_norm=True)
    wave, mel = GOLDEN.tensor("fwd_audio"), GOLDEN.tensor("fwd_mel")
    plain = nvidia()
    normed = [name for name, _ in model.named_parameters() if name.endswith("original0")]
    assert len(normed) == 4 * (1 + 3 * 3) and not any(x in name for name in normed for x in ("upsample", ".end", "convinv"))
    for a, b in zip(model(wave, mel), plain(wave, mel)):
        assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(a, b))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = [step_of(model, optimizer, wave, mel) for _ in range(5)]
    assert all(b < a for a, b in zip(losses, losses[1:])) and losses[-1] < losses[0] - 0.05
    infer = lambda: model.infer(GOLDEN.tensor("infer_mel"), seed=0)
    trained = infer()
    assert not torch.allclose(trained, plain.infer(GOLDEN.tensor("infer_mel"), seed=0), atol=1e-2)
    model.remove_weight_norm()
    assert set(model.state_dict()) == set(plain.state_dict()) and torch.allclose(infer(), trained, atol=1e-5)


def test_a_folder_of_a_model_with_weight_norm_has_plain_weights(tmp_path):
    model = small().apply_weight_norm()
    model.save_pretrained(tmp_path)
    mel = torch.randn(1, 3, 4)
    assert torch.allclose(fastvoc.load(tmp_path).infer(mel, seed=0), model.infer(mel, seed=0), atol=1e-5)


def test_training_from_scratch_starts_as_a_rotation():
    torch.manual_seed(0)
    model = WaveGlow(**SMALL)
    wave, mel = torch.randn(2, 120), torch.randn(2, 3, 10)
    z, log_s, log_det = model(wave, mel)
    assert not any(s.any() for s in log_s) and all(abs(d.item()) < 1e-3 for d in log_det)
    assert torch.allclose(z.square().sum(), wave.square().sum(), rtol=1e-5)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = [step_of(model, optimizer, wave, mel) for _ in range(30)]
    assert losses[-1] < losses[0] - 0.1


def test_gradcheck():
    model = small(n_flows=3, n_channels=2, n_layers=2, n_mel_channels=1, upsample_kernel=12).double()
    wave, mel = (torch.randn(2, *shape, dtype=torch.float64, requires_grad=True) for shape in ((24,), (1, 2)))
    run = lambda wave, mel, *parameters: waveglow_loss(*model(wave, mel), sigma=0.7)
    assert torch.autograd.gradcheck(run, (wave, mel, *model.parameters()), fast_mode=True)


def test_loss_is_the_negative_log_likelihood():
    z, sigma = torch.randn(2, 4, 5, dtype=torch.float64), 0.7
    log_s, log_det = [torch.randn(2, 2, 5, dtype=torch.float64)], [torch.tensor(1.5, dtype=torch.float64)]
    normal = torch.distributions.Normal(0.0, sigma).log_prob(z).sum() + torch.tensor(sigma).log() * z.numel()
    normal = normal + 0.5 * torch.log(torch.tensor(2 * torch.pi)) * z.numel()
    want = -(normal + log_s[0].sum() + 1.5) / z.numel()
    assert torch.allclose(waveglow_loss(z, log_s, log_det, sigma), want)


# ---- Bad inputs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [-0.1, float("nan"), float("inf"), "1", True, None])
def test_sigma(sigma):
    with pytest.raises(ConfigError, match="sigma must be"):
        small().infer(torch.zeros(1, 3, 2), sigma=sigma)
    with pytest.raises(ConfigError, match="sigma must be a positive number"):
        waveglow_loss(torch.zeros(1, 2, 3), [], [], sigma)


def test_errors_of_infer():
    model, mel = small(), torch.zeros(1, 3, 4)
    with pytest.raises(ShapeError, match=r"axis 1 must hold 3 mel bands.*transpose it"):
        model.infer(torch.zeros(1, 4, 3))
    with pytest.raises(ShapeError, match=r"mel\[None\]"):
        model.infer(mel[0])
    with pytest.raises(DTypeError, match="mel is torch.float64"):
        model.infer(mel.double())
    with pytest.raises(FeatureError):
        model.infer(mel + torch.nan)
    with pytest.raises(ShapeError, match=r"noise is 1 of them, expected a list of 3 tensors"):
        model.infer(mel, noise=[torch.zeros(1, 2, 8)])
    with pytest.raises(ShapeError, match=r"noise\[0\] is \(1, 2, 7\), expected \(1, 2, 8\)"):
        model.infer(mel, noise=[torch.zeros(1, 2, 7)] * 3)
    with pytest.raises(ShapeError, match="noise is a Tensor"):
        model.infer(mel, noise=torch.zeros(1, 6, 8))
    with pytest.raises(ConfigError, match="not both"):
        model.infer(mel, noise=[], seed=1)
    with pytest.raises(ConfigError, match="seed must be an integer"):
        model.infer(mel, seed=-1)
    with pytest.raises(ShapeError, match=r"lengths are \[5\], expected 1 numbers in 1…4"):
        model.infer(mel, lengths=[5])
    with torch.no_grad():
        model.flows[1].convinv.conv.weight.zero_()
    with pytest.raises(ConfigError, match="singular"):
        model.infer(mel)


def test_errors_of_forward():
    model, mel = small(), torch.zeros(1, 3, 4)
    with pytest.raises(ShapeError, match=r"wave is \(1, 1, 60\), expected \(B, n_samples\)"):
        model(torch.zeros(1, 1, 60), mel)
    with pytest.raises(ShapeError, match="at least 6 samples"):
        model(torch.zeros(1, 5), mel)
    with pytest.raises(ShapeError, match=r"mel is \(1, 4, 3\), expected \(1, 3, n_frames\)"):
        model(torch.zeros(1, 60), mel.transpose(1, 2))
    with pytest.raises(ShapeError, match="4 mel frames cover 76 samples, but there are 78"):
        model(torch.zeros(1, 80), mel)
    with pytest.raises(DTypeError, match="wave is torch.float64"):
        model(torch.zeros(1, 60).double(), mel)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_group": 7}, "n_group must be even"),
        ({"n_group": 0}, "n_group must lie in 1"),
        ({"n_early_size": 3}, "n_early_size must be even"),
        ({"n_flows": 12}, "leaves -4 channels for the last flow"),
        ({"kernel_size": 4}, "kernel_size must be odd"),
        ({"n_channels": 5}, "n_channels must be even"),
        ({"n_layers": 21}, "n_layers must lie in 1…20"),
        ({"n_flows": 1.5}, "n_flows must be an integer"),
        ({"n_channels": 10**9}, "n_channels must lie in"),
        ({"upsample_kernel": 5}, "upsample_kernel must be at least upsample_stride"),
        ({"alternating": 1}, "alternating must be true or false"),
    ],
)
def test_errors_of_the_config(changes, message):
    with pytest.raises(ConfigError, match=message):
        WaveGlowConfig(**{**SMALL, **changes})


def test_presets():
    assert WaveGlowConfig.preset("256") == WaveGlowConfig() and WaveGlowConfig.preset("512").n_channels == 512
    assert WaveGlowConfig.preset("256").channels == [8] * 4 + [6] * 4 + [4] * 4
    with pytest.raises(ConfigError, match="there is no WaveGlow preset '128'"):
        WaveGlowConfig.preset("128")


def test_errors_of_the_loss():
    z, s, d = torch.zeros(2, 4, 5), torch.zeros(2, 2, 5), torch.tensor(0.0)
    with pytest.raises(ShapeError, match=r"z is \(2, 4\)"):
        waveglow_loss(z[..., 0], [s], [d])
    with pytest.raises(ShapeError, match="log_s has 2 flows and log_det 1"):
        waveglow_loss(z, [s, s], [d])
    with pytest.raises(ShapeError, match=r"log_s\[0\] is \(1, 2, 5\), expected \(2, channels, 5\)"):
        waveglow_loss(z, [s[:1]], [d])
    with pytest.raises(DTypeError, match="z is torch.int64"):
        waveglow_loss(z.long(), [s], [d])


# ---- The denoiser ----------------------------------------------------------------------------------------------------


def test_the_denoiser_takes_the_hum_away():
    model = nvidia()
    denoiser = Denoiser(model)
    hum = model.infer(torch.zeros(1, 4, 20), sigma=0.0)
    assert denoiser(hum, 0.0).shape == (1, 1, 5120)
    assert torch.allclose(denoiser(hum, 0.0)[:, 0], hum, atol=1e-4 * float(hum.abs().max()))
    inside = slice(1024, -1024)
    assert float(denoiser(hum, 1.0)[:, 0, inside].std()) < 0.5 * float(hum[:, inside].std())


def test_errors_of_the_denoiser():
    model = nvidia()
    denoiser = Denoiser(model, filter_length=256, mode="normal")
    with pytest.raises(ConfigError, match="strength must be"):
        denoiser(torch.zeros(1, 4000), -0.1)
    with pytest.raises(ShapeError, match="more than 128 samples"):
        denoiser(torch.zeros(1, 128))
    with pytest.raises(ConfigError, match="multiple of n_overlap"):
        Denoiser(model, filter_length=1000, n_overlap=3)
    with pytest.raises(ConfigError, match="mode: got 'noise'"):
        Denoiser(model, mode="noise")
