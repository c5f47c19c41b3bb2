"""Parallel WaveNet: its flows, its noise, the logistic student, bfs18's variables, and distillation at tiny size."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fastvoc
from fastvoc.errors import CheckpointError, ConfigError, CorruptCheckpointError, DTypeError, FeatureError, ShapeError
from fastvoc.losses import power_loss
from fastvoc.models import ParallelWaveNet, ParallelWaveNetConfig, WaveNet
from fastvoc.ops.noise import logistic
from fastvoc.training.distillation import distill

UPSAMPLER = {"upsample_net": "DeconvUpsampleNetwork", "upsample_params": {"kernels": [4, 5], "strides": [2, 2], "channels": 7}}
KINDS = {
    "gaussian": {
        "dilations": [[1, 2], [1, 2, 4]], "residual_channels": 6, "gate_channels": 10, "skip_channels": 5, "front_kernel": 4,
        "cin_channels": 3, "upsample_params": {"upsample_scales": [2, 2]},
    },
    "logistic": dict(
        vars(ParallelWaveNetConfig.original(
            dilations=[[1, 2], [1, 2, 1]], residual_channels=6, gate_channels=8, cin_channels=3, cond_channels=7,
            quantise=None, **UPSAMPLER,
        ))
    ),
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_torch_thread")


def student(kind, seed=0, **changes):
    torch.manual_seed(seed)
    model = ParallelWaveNet(**{**KINDS[kind], **changes}).eval()
    with torch.no_grad():
        for flow in model.flows:  # away from the quiet start
            flow.last.weight.normal_(std=0.2)
    return model


def mel_of(B=2, n_frames=12, seed=1):
    return torch.rand(B, 3, n_frames, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_totals_are_the_sample(kind):
    model = student(kind).double()
    z = torch.randn(2, 48, dtype=torch.float64)
    x, mean, log_scale = model(z, mel_of().double())
    first = model.first_sample
    assert torch.allclose(x[:, first:], z[:, first:] * log_scale.exp() + mean, atol=1e-12)
    assert x.std() > 0.1 and mean.shape == (2, 48 - first) and (x[:, :first] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_sees_its_own_noise_and_the_past(kind):
    model = student(kind).double()
    z = torch.randn(1, 48, dtype=torch.float64, requires_grad=True)
    x, mean, _ = model(z, mel_of(1).double())
    at = 20
    (by_x,) = torch.autograd.grad(x[0, at], z, retain_graph=True)
    (by_mean,) = torch.autograd.grad(mean[0, at - model.first_sample], z)
    assert (by_x[0, at + 1 :] == 0).all() and by_x[0, at] != 0 and by_x[0, at - 1] != 0
    assert (by_mean[0, at:] == 0).all() and by_mean[0, at - 1] != 0
    reach = model.config.receptive_field
    assert (by_x[0, : max(at - reach, 0)] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_infer_is_forward(kind):
    model, mel, z = student(kind), mel_of(), torch.randn(2, 48)
    want = model(z * 0.5, mel)[0].detach()
    assert torch.allclose(model.infer(mel, noise=z, temperature=0.5), want, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_seeds(kind):
    model, mel = student(kind), mel_of()
    wave = model.infer(mel, seed=3)
    assert wave.shape == (2, 48) and wave.dtype == torch.float32
    assert torch.equal(wave, model.infer(mel, seed=3)) and not torch.equal(wave, model.infer(mel, seed=4))
    assert not torch.equal(model.infer(mel), model.infer(mel))  # a fresh seed each
    assert torch.allclose(wave[:1], model.infer(mel[:1], seed=3), atol=1e-6)  # noise by position
    assert model.infer(mel[:0]).shape == (0, 48)


def test_logistic_noise_is_logistic():
    u = student("logistic").normal_noise((1, 20000), 5, transform=logistic)[0].double().sigmoid()
    assert abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.002


def test_quantised():
    model = student("logistic", quantise=256)
    wave = model.infer(mel_of(), seed=0, temperature=3.0)
    assert torch.equal(wave * 128, (wave * 128).round()) and wave.max() <= 1 - 1 / 128 and wave.min() >= -1
    assert len(wave.unique()) > 20


def test_context_frames():
    changes = {"upsample_net": "ConvInUpsampleNetwork", "upsample_params": {"upsample_scales": [2, 2], "cin_pad": 1}}
    model, mel, z = student("gaussian", **changes), mel_of(), torch.randn(2, 48)
    padded = F.pad(mel, (1, 1), mode="replicate")
    assert torch.equal(model.infer(mel, noise=z), model.infer(padded, noise=z, padded=True))


CONV_IN = {"upsample_net": "ConvInUpsampleNetwork", "upsample_params": {"upsample_scales": [2, 2], "cin_pad": 1}}


@pytest.mark.parametrize(("kind", "changes"), [("gaussian", {}), ("gaussian", CONV_IN), ("logistic", {})])
def test_lengths_leave_every_item_alone(kind, changes):
    model, mel, z, lengths, seen = student(kind, **changes), mel_of(3), torch.randn(3, 48), [12, 5, 1], []
    waves = model.infer(mel, noise=z, lengths=lengths, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, 6) for i in range(6)]
    for b, n in enumerate(lengths):
        alone = model.infer(mel[b : b + 1, :, :n].contiguous(), noise=z[b : b + 1, : 4 * n])
        assert torch.equal(waves[b, : 4 * n], alone[0]) and not waves[b, 4 * n :].any()
    assert torch.equal(model.infer(mel, seed=3, lengths=[12] * 3), model.infer(mel, seed=3))
    if model.context_frames:
        padded = F.pad(mel, (1, 1), mode="replicate")[:2]
        padded[1, :, 6:] = padded[1, :, 5:6]  # the frame behind an item's last is its context
        again = model.infer(padded, noise=z[:2], lengths=torch.tensor([12, 5]), padded=True)
        assert torch.equal(again, waves[:2])
    for wrong in ([12, 5], [12, 5, 0], [13, 5, 1]):
        with pytest.raises(ShapeError, match="lengths are"):
            model.infer(mel, lengths=wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(kind, tmp_path):
    model = student(kind)
    model.save_pretrained(tmp_path)
    again = fastvoc.load(tmp_path)
    assert again.config == model.config and torch.equal(again.infer(mel_of(), seed=1), model.infer(mel_of(), seed=1))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mel": torch.zeros(2, 4, 5)}, ShapeError, "3 mel bands"),
        ({"mel": torch.zeros(2, 3, 5).double()}, DTypeError, "torch.float32"),
        ({"mel": torch.full((1, 3, 2), float("nan"))}, FeatureError, "nan"),
        ({"noise": torch.zeros(2, 47)}, ShapeError, "noise is .2, 47., expected .2, 48."),
        ({"temperature": -1.0}, ConfigError, "temperature"),
        ({"seed": -1}, ConfigError, "seed"),
    ],
)
def test_infer_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        student("gaussian").infer(**{"mel": mel_of(), **arguments})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dilations": []}, "dilations"),
        ({"dilations": [[]]}, "dilations"),
        ({"distribution": "uniform"}, "distribution: got 'uniform'"),
        ({"scale": "square"}, "scale: got"),
        ({"upsample_net": "none"}, "upsample_net"),
        ({"upsample_params": {"scales": [2]}}, "upsample_params do not fit"),
        ({"gate_channels": 5}, "gate_channels must be even"),
        ({"quantise": 1}, "quantise"),
        ({"front_kernel": 0}, "front_kernel"),
    ],
)
def test_configuration_errors(changes, message):
    with pytest.raises(ConfigError, match=message):
        ParallelWaveNet(**{**KINDS["gaussian"], **changes})


def test_noise_of_another_length():
    with pytest.raises(ShapeError, match="covers 48 samples"):
        student("gaussian")(torch.zeros(2, 40), mel_of())


# ---- bfs18/nsynth_wavenet ----------------------------------------------------------------------------------------------


def bfs18_variables(seed=0, flows=(2, 3), R=6, G=8, C=3, width=7):
    rng = np.random.default_rng(seed)
    values = {}

    def conv(name, k, a, b):
        values[f"{name}/W"] = (rng.normal(size=(1, k, a, b)) / (k * a) ** 0.5).astype(np.float32)
        values[f"{name}/biases"] = (rng.normal(size=b) * 0.1).astype(np.float32)

    for i, (k, a) in enumerate(((8, C), (12, width))):
        values[f"iaf_share/trans_conv_{i + 1}/kernel"] = rng.normal(size=(1, k, width, a)).astype(np.float32) * 0.3
        values[f"iaf_share/trans_conv_{i + 1}/bias"] = rng.normal(size=width).astype(np.float32) * 0.1
    for f, layers in enumerate(flows):
        conv(f"iaf_{f + 1}/start_conv", 3, 1, R)
        for i in range(layers):
            conv(f"iaf_{f + 1}/dilated_conv_{i + 1}", 3, R, G)
            conv(f"iaf_{f + 1}/mel_cond_{i + 1}", 1, width, G)
            conv(f"iaf_{f + 1}/res_{i + 1}", 1, G // 2, R)
        conv(f"iaf_{f + 1}/out1", 1, R, R)
        conv(f"iaf_{f + 1}/mel_cond_out1", 1, width, R)
        conv(f"iaf_{f + 1}/out2_mean", 1, R, 1)
        conv(f"iaf_{f + 1}/out2_scale", 1, R, 1)
    return values


def bfs18_reference(v, z, mel, cycle):
    """z (T,), mel (n_frames, C), sample by sample from upstream's description, in numpy."""
    sigmoid = lambda a: 1 / (1 + np.exp(-a))
    c = mel
    for i in (1, 2):
        kernel, bias = v[f"iaf_share/trans_conv_{i}/kernel"][0].astype(np.float64), v[f"iaf_share/trans_conv_{i}/bias"]
        k, s = len(kernel), len(kernel) // 4
        full = np.zeros((len(c) * s + k, kernel.shape[1]))
        for n, frame in enumerate(c):
            full[n * s : n * s + k] += kernel @ frame
        c = full[(k - s) // 2 :][: len(c) * s] + bias
        c = np.where(c < 0, 0.4 * c, c)

    def conv(name, x, dilation=1):
        w, b = v[f"{name}/W"][0].astype(np.float64), v[f"{name}/biases"]
        padded = np.concatenate([np.zeros(((len(w) - 1) * dilation, x.shape[1])), x])
        return b + sum(padded[j * dilation : j * dilation + len(x)] @ w[j] for j in range(len(w)))

    x, total = z, np.ones_like(z)
    for f in (1, 2):
        h = conv(f"iaf_{f}/start_conv", np.concatenate([[0], x[:-1]])[:, None])
        i = 1
        while f"iaf_{f}/res_{i}/W" in v:
            d = conv(f"iaf_{f}/dilated_conv_{i}", h, 2 ** ((i - 1) % cycle)) + conv(f"iaf_{f}/mel_cond_{i}", c)
            m = d.shape[1] // 2
            h, i = h + conv(f"iaf_{f}/res_{i}", sigmoid(d[:, :m]) * np.tanh(d[:, m:])), i + 1
        h = conv(f"iaf_{f}/out1", np.maximum(h, 0)) + conv(f"iaf_{f}/mel_cond_out1", c)
        h = np.maximum(h, 0)
        scale = np.clip(np.log1p(np.exp(conv(f"iaf_{f}/out2_scale", h)[:, 0])), np.exp(-9), np.exp(7))
        x, total = x * scale + conv(f"iaf_{f}/out2_mean", h)[:, 0], total * scale
    return np.floor(np.clip(x, -1, 1 - 2 / 65536) * 32768) / 32768


@pytest.mark.parametrize("averaged", [False, True])
def test_bfs18_computes_as_described(tmp_path, averaged):
    v = bfs18_variables()
    stored = v
    if averaged:
        stored = {f"{k}/ExponentialMovingAverage": a for k, a in v.items()} | {k: a + 1 for k, a in v.items()}
    np.savez(tmp_path / "student.npz", global_step=np.int64(7), **stored)
    model = fastvoc.load(tmp_path / "student.npz", cycle=2)
    assert model.hop_length == 6 and model.config.dilations == [[1, 2], [1, 2, 1]] and model.sample_rate == 16000
    mel, z = mel_of(1, 9), torch.randn(1, 54) * 0.3
    want = bfs18_reference(v, z[0].double().numpy(), mel[0].T.double().numpy(), cycle=2)
    got = model.infer(mel, noise=z)[0].double().numpy()
    assert np.abs(want).max() > 0.3 and len(np.unique(want)) > 20
    assert np.abs(got - want).max() <= 1 / 32768 + 1e-9 and (got == want).mean() > 0.7  # rounding may cross a step


def test_bfs18_that_does_not_fit(tmp_path):
    path, v = tmp_path / "student.npz", bfs18_variables()
    np.savez(path, **{k: a for k, a in v.items() if k != "iaf_2/out1/W"})
    with pytest.raises(CheckpointError, match="missing.*iaf_2/out1/W"):
        fastvoc.load(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CorruptCheckpointError, match="damaged"):
        fastvoc.load(path)
    np.savez(path, a=np.array([None], dtype=object))
    with pytest.raises(CorruptCheckpointError, match="damaged"):
        fastvoc.load(path)


# ---- distillation ------------------------------------------------------------------------------------------------------


def teacher(head, seed=9):
    torch.manual_seed(seed)
    changes = {"gaussian": {"out_channels": 2, "output_distribution": "Normal"}, "mol": {"out_channels": 9}}[head]
    return WaveNet(
        layers=3, stacks=1, residual_channels=6, gate_channels=8, skip_out_channels=6, kernel_size=2, cin_channels=3,
        upsample_conditional_features=True, upsample_net="ConvTranspose2dUpsampleNetwork",
        upsample_params={"upsample_scales": [2, 2]}, scalar_input=True, **changes,
    ).eval()  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "direction"), [("gaussian", "reverse"), ("gaussian", "forward"), ("logistic", "reverse")]
)
def test_distillation_learns(kind, direction):
    """From the recipe's own quiet start, a few steps on one batch bring the student nearer to its teacher."""
    torch.manual_seed(0)
    model, master = ParallelWaveNet(**KINDS[kind]), teacher("gaussian" if kind == "gaussian" else "mol")
    mel, z, wave = mel_of(4), torch.randn(4, 48), torch.rand(4, 48) - 0.5
    uniform = torch.rand(8, 4, 48).clamp(1e-5, 1 - 1e-5)
    if kind == "logistic":
        z = torch.logit(uniform[0])
    options = {"uniform": uniform, "direction": direction, "spectral_loss": lambda x, y: power_loss(x, y, 16, 4)}
    optimizer, totals = torch.optim.Adam(model.parameters(), 1e-2), []
    for _ in range(25):
        loss = distill(model, master, mel, z, wave, **options)
        optimizer.zero_grad()
        loss["total"].backward()
        optimizer.step()
        totals.append(loss["total"].item())
    assert totals[-1] < 0.7 * totals[0] if totals[0] > 0 else totals[-1] < totals[0]
    assert all(p.grad is None for p in master.parameters())
    assert loss["kl"].item() > -0.1 and set(loss) == {"total", "kl", "regularisation", "spectral"}


def test_contrast_is_subtracted():
    model, master = student("gaussian"), teacher("gaussian")
    mel, z = mel_of(), torch.randn(2, 48)
    loss = distill(model, master, mel, z, other_mel=mel.flip(0), regularisation=0.0, contrastive_weight=0.3)
    assert loss["mismatched_kl"] != loss["kl"]
    assert torch.allclose(loss["total"], loss["kl"] - 0.3 * loss["mismatched_kl"])


def test_teachers_that_do_not_fit():
    model, z = student("gaussian"), torch.randn(2, 48)
    with pytest.raises(ConfigError, match="needs a teacher with the head 'gaussian'"):
        distill(model, teacher("mol"), mel_of(), z)
    with pytest.raises(ConfigError, match="direction"):
        distill(model, teacher("gaussian"), mel_of(), z, direction="sideways")
    with pytest.raises(ConfigError, match="uniform draws"):
        distill(student("logistic"), teacher("mol"), mel_of(), z)
