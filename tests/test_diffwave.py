"""DiffWave: the outputs, losses and gradients of lmnt's and philsyn's code, the schedules, the conditions, bad inputs.

tests/data/diffwave-lmnt-a and diffwave-philsyn-a: checkpoints, and what lmnt-com/diffwave @ 0594106 and
philsyn/DiffWave-Vocoder @ b1648aa compute from them.
"""

import json
import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import fastvoc
from fastvoc.checkpoints import diffwave_lmnt, diffwave_philsyn, read_file
from fastvoc.errors import (
    CheckpointError,
    ConfigError,
    DTypeError,
    FeatureError,
    IncompatibleCheckpointError,
    ShapeError,
)
from fastvoc.layers import ResidualBlock, SpectrogramUpsampler
from fastvoc.losses import diffused, diffwave_loss
from fastvoc.models import DiffWave, diffwave_infer
from fastvoc.models.diffwave_schedule import FAST_SCHEDULES, linear_schedule, noise_levels, sampling_steps
from tests.goldens import Golden

LMNT, PHILSYN = Golden("diffwave-lmnt-a"), Golden("diffwave-philsyn-a")
DTYPES = [torch.float32, torch.float64]
SMALL = {
    "n_mels": 5, "residual_channels": 6, "layers": 4, "dilation_cycle": 3, "upsample_scales": [2, 4], "step_channels": 8,
    "step_hidden_channels": 12, "step_out_channels": 10, "noise_schedule": linear_schedule(1e-3, 0.3, 6),
}  # fmt: skip


def lmnt(dtype=torch.float32):
    return fastvoc.load(LMNT.path("weights-1000578.pt")).to(dtype)


def philsyn(dtype=torch.float32):
    return fastvoc.load(PHILSYN.path("1000000.pkl")).to(dtype)


def small(**changes) -> DiffWave:
    torch.manual_seed(0)
    model = DiffWave(**{**SMALL, **changes}).eval()
    nn.init.normal_(model.output_projection.weight, std=0.5)  # zero at the start of a training
    return model


# ---- The public implementations --------------------------------------------------------------------------------------


def lmnt_outputs(model, dtype):
    t = lambda name: LMNT.tensor(name, dtype)
    pair = lambda kind: (t(f"{kind}_noise_init"), t(f"{kind}_noise"))
    network = lambda step: model(t("eps_audio"), LMNT.tensor(step), t("eps_spec"))[:, 0]
    return {
        "fast_audio": lambda: model.infer(t("fast_spec"), schedule="fast", noise=pair("fast")),
        "full_audio": lambda: model.infer(t("full_spec"), noise=pair("full")),
        "eps_int_out": lambda: network("eps_int_step"),
        "eps_frac_out": lambda: network("eps_frac_step"),
        "upsampled_spec": lambda: model.upsample[0](t("eps_spec")[:1])[:, ::16],
    }


def philsyn_outputs(model, dtype):
    t = lambda name: PHILSYN.tensor(name, dtype)
    noise = t("sample_noise_init")[:, 0], t("sample_noise")[:, :, 0]
    return {
        "sample_audio": lambda: model.infer(t("sample_mel"), noise=noise)[:, None],
        "eps_out": lambda: model(t("eps_audio"), PHILSYN.tensor("eps_step"), t("eps_mel")),
        "upsampled_mel": lambda: model.upsample[4](t("eps_mel")[:1])[:, ::16],
    }


FAMILIES = {
    "lmnt": (LMNT, lmnt, lmnt_outputs, "output_projection.bias"),
    "philsyn": (PHILSYN, philsyn, philsyn_outputs, "step_biases.bias"),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_of_the_public_code(family, dtype):
    golden, load, outputs, _ = FAMILIES[family]
    made = outputs(load(dtype), dtype)
    assert [name for name in golden.checked() if not name.startswith("train_")] == [*made]  # nothing is left out
    for name, run in made.items():
        golden.check(name, run())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_weight_is_noticed(family):
    golden, load, outputs, name = FAMILIES[family]
    model = load()
    with torch.no_grad():
        model.get_parameter(name)[0] += 1e-2
    for name, run in outputs(model, torch.float32).items():
        if not name.startswith("upsampled"):
            with pytest.raises(AssertionError):
                golden.check(name, run())


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_is_near(family):
    golden, load, *_ = FAMILIES[family]
    model, name = load(), "eps_spec" if family == "lmnt" else "eps_mel"
    want = model.infer(golden.tensor(name), schedule="fast", seed=1)
    model.precision = "bf16"
    got = model.infer(golden.tensor(name), schedule="fast", seed=1)
    assert 0 < (got - want).square().mean().sqrt() < 0.01 * want.std()


def test_lmnts_table_of_the_steps():
    assert np.array_equal(lmnt().step_table.numpy(), LMNT["embedding_table"])


def training(golden, model, module, file, key, dtype, norm, step, mel):
    """(loss, x_t, gradients by the upstream's names): one training step through the rewriting of the parameters."""
    state = {name: w.to(dtype).requires_grad_() for name, w in read_file(golden.path(file))[key].items()}
    t = lambda name: golden.tensor(name, dtype)
    mel = t(mel).requires_grad_()
    audio, noise = (t(f"train_{name}").reshape(len(mel), -1) for name in ("audio", "noise"))
    noisy = diffused(audio, noise, model.noise_level(golden.tensor(step)))
    predicted = functional_call(model, module.canonical(state), (noisy, golden.tensor(step), mel))
    loss = diffwave_loss(predicted, noise, norm, "mean")
    loss.backward()
    return loss, noisy, {**{name: w.grad for name, w in state.items()}, "": mel.grad}


@pytest.mark.parametrize("dtype", DTYPES)
def test_lmnts_loss_and_gradients(dtype):
    model = lmnt(dtype)
    args = LMNT, model, diffwave_lmnt, "weights-1000578.pt", "model", dtype, "l1", "train_t", "eps_spec"
    loss, noisy, grads = training(*args)
    got = {"train_loss": loss, "train_noisy": noisy, "train_grad_spec": grads[""]}
    got |= {f"train_gradp:{name}": grad for name, grad in grads.items() if name}
    assert set(LMNT.checked("train_")) <= set(got)
    for name in LMNT.checked("train_"):
        LMNT.check(name, got[name])


@pytest.mark.parametrize("dtype", DTYPES)
def test_philsyns_loss_and_its_gradients(dtype):
    model = philsyn(dtype)
    args = PHILSYN, model, diffwave_philsyn, "1000000.pkl", "model_state_dict", dtype, "l2", "train_t", "eps_mel"
    loss, _, grads = training(*args)
    PHILSYN.check("train_loss", loss)
    # The upstream cannot run backward. Of a weight-normed pair, v's gradient is orthogonal to v
    block = "residual_layer.residual_blocks.1.dilated_conv_layer.conv.weight_"
    v = read_file(PHILSYN.path("1000000.pkl"))["model_state_dict"][block + "v"].to(dtype)
    dv = grads[block + "v"]
    assert dv.abs().max() > 1e-5 and (dv * v).sum((1, 2)).abs().max() < 1e-4 * (dv.norm() * v.norm())
    # The last layer's residual goes nowhere; of a v with one element only the sign counts
    idle = "residual_layer.residual_blocks.5.res_conv.", "init_conv.0.conv.weight_v"
    assert [n for n, g in grads.items() if not n.startswith(idle) and not g.abs().max() > 0] == []


def test_philsyns_gradient_is_the_slope_of_its_loss():
    model = philsyn(torch.float64)
    args = PHILSYN, model, diffwave_philsyn, "1000000.pkl", "model_state_dict", torch.float64, "l2", "train_t", "eps_mel"
    grads = training(*args)[2]
    state = {k: w.double() for k, w in read_file(PHILSYN.path("1000000.pkl"))["model_state_dict"].items()}
    t, step = lambda name: PHILSYN.tensor(name, torch.float64), PHILSYN.tensor("train_t")
    noise = t("train_noise")[:, 0]
    noisy = diffused(t("train_audio")[:, 0], noise, model.noise_level(step))

    def loss(name, change):
        moved = {**state, name: state[name] + change}
        predicted = functional_call(model, diffwave_philsyn.canonical(moved), (noisy, step, t("eps_mel")))
        return diffwave_loss(predicted, noise, "l2", "mean")

    blocks = "residual_layer.residual_blocks.2."
    with torch.no_grad():
        for name in ("fc_t.weight", "upsample_conv2d.0.weight_v", "res_conv.weight_g", "mel_conv.conv.weight_v"):
            torch.manual_seed(1)
            direction = torch.randn_like(state[blocks + name])
            slope = (loss(blocks + name, 1e-7 * direction) - loss(blocks + name, -1e-7 * direction)) / 2e-7
            assert torch.isclose(slope, (grads[blocks + name] * direction).sum(), rtol=1e-5, atol=1e-10), name


def test_a_folder_keeps_the_model(tmp_path):
    for name, model, golden, mel in (("lmnt", lmnt(), LMNT, "eps_spec"), ("philsyn", philsyn(), PHILSYN, "eps_mel")):
        model.save_pretrained(tmp_path / name)
        again = fastvoc.load(tmp_path / name)
        assert again.config == model.config and again.preprocessing == model.preprocessing
        want = model.infer(golden.tensor(mel), schedule="fast", seed=1)
        assert torch.equal(again.infer(golden.tensor(mel), schedule="fast", seed=1), want) and want.std() > 0.05


def test_the_conventions_of_their_mels():
    mel = lmnt().mel_config
    assert (mel.mel_scale, mel.stft_divisor, mel.fmin, mel.fmax, mel.win_length) == ("htk", "normalized", 20, 11025, 1024)
    mel = philsyn().mel_config
    assert (mel.log, mel.floor, mel.fmin, mel.fmax, mel.hop_length, mel.n_mels) == ("ln", 1e-5, 0, 8000, 256, 80)
    assert lmnt().sample_rate == 22050 and lmnt().hop_length == 256


# ---- The network -----------------------------------------------------------------------------------------------------


def by_conv1d(model, audio, step, mel, label):
    """DiffWave as figure 2 of the paper draws it, with a label as in its section 5.3: channels first, one 1×1 for each."""
    c = model.config
    x = F.relu(model.input_projection(audio[:, None]))
    biases = model.layer_biases(step)
    skips, up = 0.0, None
    for i, layer in enumerate(model.stack.layers):
        u = x + biases[:, i, :, None]
        d = c.dilations[i]
        a = F.conv1d(u, layer.conv.weight, layer.conv.bias, padding=d * (c.kernel_size - 1) // 2, dilation=d)
        if mel is not None:
            up = model.upsample[i if len(model.upsample) > 1 else 0](mel)[:, :, : audio.shape[1]]
            a = a + F.conv1d(up, layer.cond.weight[:, : c.n_mels])
        if label is not None:
            a = a + F.conv1d(model.label_embedding(label)[:, :, None], layer.cond.weight[:, c.n_mels :])
        filter, gate = a.chunk(2, 1)
        out = layer.out(torch.tanh(filter) * torch.sigmoid(gate))
        residual, skip = out[:, : c.residual_channels], out[:, c.residual_channels :]
        x = ((u if c.step_in_residual else x) + residual) / math.sqrt(2)
        skips = skips + skip
    return model.output_projection(F.relu(model.skip_projection(skips)))


VARIANTS = {
    "mel": {},
    "mel, a wide kernel": {"kernel_size": 5, "skip_channels": 3, "gate_channels": 10},
    "mel per layer": {"shared_upsampler": False, "step_in_residual": True, "step_embedding": "decreasing", "clamp": False},
    "odd hop": {"upsample_scales": [3, 5], "upsample_freq_kernel": 1},
    "odd hop, mel per layer": {"upsample_scales": [5], "shared_upsampler": False},
    "nothing": {"n_mels": 0},
    "label": {"n_mels": 0, "n_labels": 10, "label_channels": 7},
    "mel and label": {"n_labels": 3},
    "mel per layer and label": {"n_labels": 3, "shared_upsampler": False},
}


def inputs(model, B=2, frames=4):
    torch.manual_seed(1)
    c = model.config
    T = frames * model.hop_length - 3
    mel = torch.randn(B, c.n_mels, frames).to(model.step_biases.weight) if c.n_mels else None
    label = torch.arange(B) % c.n_labels if c.n_labels else None
    return torch.randn(B, T).to(model.step_biases.weight), torch.tensor([0.0, 3.7][:B]), mel, label


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_is_the_network_of_the_paper(changes):
    model = small(**changes).double()
    audio, step, mel, label = inputs(model)
    got = model(audio, step, mel, label)
    assert torch.allclose(got, by_conv1d(model, audio, step, mel, label), rtol=0, atol=1e-12) and got.std() > 0.01
    assert torch.equal(model(audio[:, None], step[:, None], mel, label), got)  # philsyn's shapes
    alone = model(audio[:1], torch.tensor(0), None if mel is None else mel[:1], None if label is None else label[:1])
    assert torch.allclose(alone, got[:1], atol=1e-12)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_infer_is_the_papers_algorithm(changes):
    model = small(**changes)
    _, _, mel, label = inputs(model)
    n = 4 * model.hop_length if mel is not None else 29
    B = 1 if mel is None and label is None else 2
    start, draws = torch.randn(B, n), torch.randn(5, B, n)
    size = {} if mel is not None else {"n_samples": n}
    got = model.infer(mel, label=label, noise=(start, draws), **size)
    betas, x = model.config.noise_schedule, start
    alpha_bar = np.cumprod([1 - b for b in betas])
    with torch.no_grad():
        for i, t in enumerate(range(5, -1, -1)):
            eps = model(x, torch.tensor(t), mel, label)[:, 0]
            x = (x - betas[t] / math.sqrt(1 - alpha_bar[t]) * eps) / math.sqrt(1 - betas[t])
            if t:
                x = x + math.sqrt((1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * betas[t]) * draws[i]
            x = x.clamp(-1, 1) if model.config.clamp else x
    assert torch.allclose(got, x, atol=2e-5) and got.dtype == torch.float32 and 0.05 < got.std() < 50


@pytest.mark.parametrize("kept_bytes", [0, 1 << 30])
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_long_utterance_goes_in_stretches(changes, kept_bytes, monkeypatch):
    model = small(**changes, layers=2)  # reach 3 samples at kernel 3
    _, _, mel, label = inputs(model, frames=9)
    n = {"n_samples": 9 * model.hop_length - 2}
    want = model.infer(mel, label=label, seed=3, **n)
    seen = []
    run = model.stack.infer
    monkeypatch.setattr(model.stack, "infer", lambda x, *a, **k: (seen.append(x.shape[1]), run(x, *a, **k))[1])
    for name, value in {"STRETCH": 16, "SHORTEST": 7, "KEPT_BYTES": kept_bytes}.items():
        monkeypatch.setattr(diffwave_infer, name, value)
    got = model.infer(mel, label=label, seed=3, **n)
    assert torch.allclose(got, want, atol=1e-5) and want.std() > 0.05
    assert max(seen) <= 16 + 2 * model.stack.reach and len(seen) > 2 * 6


@pytest.mark.parametrize("changes", [VARIANTS[n] for n in ("mel", "odd hop, mel per layer", "label", "mel and label")])
def test_how_much_is_projected_changes_no_bit(changes, monkeypatch):
    model = small(**changes)
    _, _, mel, label = inputs(model)
    waves, n_layers, run = [], [], model.stack.infer
    monkeypatch.setattr(model.stack, "infer", lambda x, c, *a, **k: (n_layers.append(len(c.layers)), run(x, c, *a, **k))[1])
    bytes_of_cond = 2 * 15 * 4 * model.config.cond_channels * max(len(model.upsample), 1)
    bytes_of_layer = 2 * 15 * 4 * model.stack.plan()._packed_here().gate_width
    for n_bytes in (0, bytes_of_cond + bytes_of_layer * 3 // 2, 1 << 30):
        monkeypatch.setattr(diffwave_infer, "KEPT_BYTES", n_bytes)
        waves.append(model.infer(mel, label=label, seed=3, n_samples=15))
        assert torch.equal(waves[-1], waves[0])
    assert set(n_layers) == {0, 1, model.config.layers}
    monkeypatch.undo()
    monkeypatch.setattr(diffwave_infer, "PROJECTED_FROM", 99)
    assert torch.allclose(model.infer(mel, label=label, seed=3, n_samples=15), waves[0], atol=1e-5)


def test_labels_make_a_difference_and_get_gradients():
    model = small(**VARIANTS["label"])
    audio, step, _, label = inputs(model)
    assert not torch.allclose(model(audio, step, label=label), model(audio, step, label=label + 1), atol=1e-3)
    model(audio, step, label=label).square().sum().backward()
    assert model.label_embedding.weight.grad[label].abs().min() > 0


def test_a_seed_names_the_noise_of_every_item():
    model = small()
    mel = torch.randn(3, 5, 6)
    both = model.infer(mel, seed=5)
    assert torch.equal(model.infer(mel, seed=5), both)
    assert torch.allclose(model.infer(mel[:1], seed=5), both[:1], atol=1e-6)  # not the company
    assert not torch.allclose(both[0], model.infer(mel[:1], seed=6)[0], atol=1e-2)
    torch.manual_seed(0)
    first = model.infer(mel)
    torch.manual_seed(0)
    assert torch.equal(model.infer(mel), first) and not torch.equal(model.infer(mel), first)


def test_lengths_are_items_alone():
    model = small()
    mel = torch.randn(3, 5, 6)
    start, draws = torch.randn(3, 48), torch.randn(5, 3, 48)
    got = model.infer(mel, lengths=[2, 6, 3], noise=(start, draws))
    for b, frames in enumerate([2, 6, 3]):
        n = frames * 8
        alone = model.infer(mel[b : b + 1, :, :frames], noise=(start[b : b + 1, :n], draws[:, b : b + 1, :n]))
        assert torch.allclose(got[b, :n], alone[0], atol=1e-6) and not got[b, n:].any()
    assert torch.equal(model.infer(mel, lengths=[6, 6, 6], seed=1), model.infer(mel, seed=1))
    by_seed = model.infer(mel, lengths=[2, 6, 3], seed=1)
    assert torch.allclose(by_seed[1:2], model.infer(mel, seed=1)[1:2], atol=1e-6)


def test_no_item_no_audio_and_every_step_is_reported():
    model, seen = small(), []
    assert model.infer(torch.zeros(0, 5, 3), seed=1).shape == (0, 24)
    model.infer(torch.zeros(1, 5, 1), schedule=[0.1, 0.2, 0.3], progress=lambda *a: seen.append(a))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    unconditional = small(n_mels=0, audio_len=17)
    assert unconditional.infer(seed=1).shape == (1, 17)
    assert unconditional.infer(n_samples=5, batch=2, seed=1).shape == (2, 5)
    assert unconditional.infer(noise=(torch.zeros(3, 11), torch.zeros(5, 3, 11))).shape == (3, 11)


def test_infer_leaves_the_model_trainable():
    model = small()
    model.infer(torch.zeros(1, 5, 2), seed=0)
    audio, step, mel, _ = inputs(model)
    model(audio, step, mel).sum().backward()
    assert model.stack.layers[0].conv.weight.grad.abs().max() > 0


# ---- Schedules -------------------------------------------------------------------------------------------------------


def test_the_constants_of_lmnts_six_steps():
    steps = sampling_steps(FAST_SCHEDULES[1], linear_schedule(1e-4, 0.05, 50))
    assert np.array_equal(steps.t, LMNT["fast_T"])
    assert np.allclose(steps.c1, [1.00005, 1.0005, 1.005038, 1.025978, 1.118034, 1.414214], rtol=0, atol=1e-6)
    assert np.allclose(steps.c2, [0.01, 0.030153, 0.094963, 0.203221, 0.401264, 0.632854], rtol=0, atol=1e-6)
    assert np.allclose(steps.sigma[1:], [0.009535, 0.031494, 0.095704, 0.220758, 0.446086], rtol=0, atol=1e-6)


def test_the_paper_uses_another_last_step_for_a_longer_training_schedule():
    steps = sampling_steps(FAST_SCHEDULES[0], linear_schedule(1e-4, 0.02, 200))
    assert np.allclose(steps.t, [0, 3.2007, 13.4303, 33.8203, 73.9825, 170.6051], rtol=0, atol=1e-4)
    longer = DiffWave(**{**SMALL, "noise_schedule": linear_schedule(1e-4, 0.02, 200)})
    assert longer.config.fast_schedule == FAST_SCHEDULES[0] and lmnt().config.fast_schedule == FAST_SCHEDULES[1]


def test_the_full_schedule_meets_itself():
    for n in (1, 2, 50, 200):
        betas = linear_schedule(1e-4, 0.02, n)
        assert np.array_equal(sampling_steps(betas, betas).t, np.arange(n))


def test_philsyns_constants_are_rounded_as_its_code_rounds_them():
    betas = philsyn().config.noise_schedule
    assert np.array_equal(np.float32(betas), PHILSYN["schedule_Beta"])
    assert np.array_equal(noise_levels(betas, True).astype(np.float32), PHILSYN["schedule_Alpha_bar"])
    steps = sampling_steps(betas, betas, True)
    assert np.array_equal(np.float32(steps.sigma[1:]), PHILSYN["schedule_Sigma"][1:])
    assert np.allclose(steps.c1, PHILSYN["schedule_Alpha"].astype(np.float64) ** -0.5, rtol=1e-15)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ([*FAST_SCHEDULES[1][:5], 0.7], "after step 5 ᾱ is 0.225472, more noise than the last of the model's 50 training steps"),
        ([1e-5, 0.1], "after step 0 ᾱ is 0.99999, less noise than the first"),
        ([], "is empty"),
        ([0.1, 1.0], r"schedule\[1\] is 1.0, expected 0 < β < 1"),
        ([-0.1], r"schedule\[0\] is -0.1"),
        ([float("nan")], r"schedule\[0\] is nan"),
        (["a"], "expected a list of numbers"),
        (6, "expected a list of numbers"),
        ("slow", "expected 'full', 'fast' or a list"),
    ],
)
def test_schedules_that_cannot_be_used(schedule, message):
    with pytest.raises(ConfigError, match=message):
        lmnt().infer(LMNT.tensor("full_spec"), schedule=schedule)


def test_a_schedule_of_ones_own_and_a_model_without_a_fast_one():
    audio = lmnt().infer(LMNT.tensor("full_spec"), schedule=[0.01, 0.1, 0.4], seed=1)
    assert audio.std() > 0.05 and audio.abs().max() <= 1
    with pytest.raises(ConfigError, match="no fast schedule"):
        small().infer(torch.zeros(1, 5, 2), schedule="fast")


# ---- Losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_loss_is_its_formula_and_its_gradient(norm):
    torch.manual_seed(0)
    predicted, noise = torch.randn(3, 1, 7, dtype=torch.float64, requires_grad=True), torch.randn(3, 7, dtype=torch.float64)
    power = {"l1": 1, "l2": 2}[norm]
    assert torch.allclose(diffwave_loss(predicted, noise, norm), (noise - predicted[:, 0]).abs() ** power, atol=1e-15)
    assert torch.autograd.gradcheck(lambda p: diffwave_loss(p, noise, norm, "mean"), predicted)
    lengths = torch.tensor([7, 2, 4])
    padded = noise.clone()
    padded[1, 2:], padded[2, 4:] = math.nan, math.inf
    want = torch.cat([(noise - predicted[:, 0])[b, :n].abs() ** power for b, n in enumerate([7, 2, 4])]).mean()
    got = diffwave_loss(predicted, padded, norm, "mean", lengths)
    assert torch.allclose(got, want) and not torch.autograd.grad(got, predicted)[0].isnan().any()


def test_errors_of_the_loss():
    with pytest.raises(ShapeError, match="1 channel, got 2"):
        diffwave_loss(torch.zeros(1, 2, 5), torch.zeros(1, 5))
    with pytest.raises(ConfigError, match=r"norm must be one of \['l1', 'l2'\], got 'l3'"):
        diffwave_loss(torch.zeros(1, 1, 5), torch.zeros(1, 5), "l3")
    with pytest.raises(DTypeError, match="noise must have the dtype"):
        diffwave_loss(torch.zeros(1, 1, 5), torch.zeros(1, 5).double())
    with pytest.raises(ShapeError, match="One ᾱ for each item"):
        diffused(torch.zeros(2, 5), torch.zeros(2, 5), torch.zeros(3))
    with pytest.raises(ShapeError, match="expected \\(B, T\\) both"):
        diffused(torch.zeros(2, 5), torch.zeros(2, 6), torch.zeros(2))


# ---- Bad input -------------------------------------------------------------------------------------------------------

MEL = torch.zeros(2, 5, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ConfigError, "conditioned on a mel"),
        ({"mel": MEL[:, :4]}, ShapeError, "5 mel bands"),
        ({"mel": MEL[0]}, ShapeError, "batch axis"),
        ({"mel": MEL.double()}, DTypeError, "float32"),
        ({"mel": MEL + math.nan}, FeatureError, "(?i)nan"),
        ({"mel": MEL, "label": torch.zeros(2).long()}, ConfigError, "without a label"),
        ({"mel": MEL, "n_samples": 25}, ShapeError, "n_samples is 25, but 3 mel frames cover 24"),
        ({"mel": MEL, "n_samples": -1}, ConfigError, "n_samples must be a positive integer"),
        ({"mel": MEL, "batch": 2}, ConfigError, "batch is for a model without"),
        ({"mel": MEL, "lengths": [1, 4]}, ShapeError, r"lengths are \[1, 4\], expected 2 numbers in 1…3"),
        ({"mel": MEL, "seed": -1}, ConfigError, "seed"),
        ({"mel": MEL, "seed": 1, "noise": (torch.zeros(2, 24), torch.zeros(5, 2, 24))}, ConfigError, "not both"),
        ({"mel": MEL, "noise": torch.zeros(2, 24)}, ConfigError, "noise must be a pair"),
        ({"mel": MEL, "noise": (torch.zeros(2, 23), torch.zeros(5, 2, 24))}, ShapeError, r"draws, is .*expected \(5, 2, 23\)"),
        ({"mel": MEL, "noise": (torch.zeros(2, 25), torch.zeros(5, 2, 25))}, ShapeError, "n_samples is 25, but 3 .* cover 24"),
        ({"mel": MEL, "noise": (torch.zeros(3, 24), torch.zeros(5, 3, 24))}, ShapeError, r"the start, is \(3, 24\)"),
        ({"mel": MEL, "noise": (torch.zeros(24), torch.zeros(5, 24))}, ShapeError, r"the start, is \(24,\)"),
        ({"mel": MEL, "n_samples": 9, "noise": (torch.zeros(2, 8), torch.zeros(5, 2, 8))}, ShapeError, r"expected \(2, 9\)"),
        ({"mel": MEL, "noise": (torch.zeros(2, 24), torch.zeros(6, 2, 24))}, ShapeError, r"draws, is \(6, 2, 24\), expected \(5"),
    ],
)
def test_errors_of_infer(arguments, error, message):
    with pytest.raises(error, match=message):
        small().infer(**arguments)


def test_errors_of_infer_without_a_mel():
    with pytest.raises(ConfigError, match="pass n_samples"):
        small(n_mels=0).infer()
    with pytest.raises(ConfigError, match="without a mel"):
        small(n_mels=0).infer(MEL, n_samples=5)
    with pytest.raises(ConfigError, match="takes no mel"):
        small(n_mels=0).infer(n_samples=5, lengths=[1])
    labelled = small(**VARIANTS["label"])
    with pytest.raises(ConfigError, match="conditioned on a label"):
        labelled.infer(n_samples=5)
    with pytest.raises(ConfigError, match="label holds 0…10, the model has 0…9"):
        labelled.infer(n_samples=5, label=torch.tensor([0, 10]))
    with pytest.raises(DTypeError, match="label must be an int64 tensor"):
        labelled.infer(n_samples=5, label=[1])


def test_errors_of_forward():
    model, audio = small(), torch.zeros(2, 24)
    with pytest.raises(ConfigError, match="step runs from 0 to 6, the model has 0…5"):
        model(audio, torch.tensor([0, 6]), MEL)
    with pytest.raises(ConfigError, match="step runs from -0.5"):
        model(audio, torch.tensor([-0.5, 1]), MEL)
    with pytest.raises(ShapeError, match=r"step is \(3,\)"):
        model(audio, torch.zeros(3), MEL)
    with pytest.raises(ShapeError, match="3 mel frames cover 24 samples, but there are 25"):
        model(torch.zeros(2, 25), torch.tensor(1), MEL)
    with pytest.raises(ShapeError, match=r"audio is \(2, 2, 24\)"):
        model(torch.zeros(2, 2, 24), torch.tensor(1), MEL)
    with pytest.raises(ShapeError, match=r"mel is \(1, 5, 3\), expected \(2, 5"):
        model(audio, torch.tensor(1), MEL[:1])


@pytest.mark.parametrize(
    "change",
    [{"layers": 0}, {"n_mels": -1}, {"kernel_size": 2}, {"step_channels": 7}, {"step_embedding": "up"}, {"audio_len": 0},
     {"noise_schedule": [0.1, 2.0]}, {"upsample_scales": []}, {"upsample_scales": [1.5]}, {"dilation_cycle": 40},
     {"residual_channels": "64"}, {"gate_channels": 3}, {"noise_schedule": None}],
    ids=str,
)  # fmt: skip
def test_configurations_that_make_no_model(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        small(**change)


# ---- Checkpoint files ------------------------------------------------------------------------------------------------


def lmnt_file(path, change):
    contents = read_file(LMNT.path("weights-1000578.pt"))
    change(contents)
    torch.save(contents, path)
    return path


def test_an_unconditional_file_of_lmnt(tmp_path):
    def change(contents):
        contents["model"] = {
            k: v for k, v in contents["model"].items() if "conditioner" not in k and "upsampler" not in k
        }
        contents["params"] |= {"unconditional": True, "audio_len": 300}

    model = fastvoc.load(lmnt_file(tmp_path / "weights.pt", change))
    assert model.n_mels == 0 and model.config.audio_len == 300 and model.mel_config is None
    assert model.infer(schedule="fast", seed=1).shape == (1, 300)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("params"), "lacks 'params'"),
        (lambda c: c["params"].pop("noise_schedule"), "lacks noise_schedule"),
        (lambda c: c["params"].update(residual_layers=7), "residual_layers is 6 in the weights, 7 in its params"),
        (lambda c: c["params"].update(hop_samples=300), "hop_samples is 256 in the weights, 300"),
        (
            lambda c: [c["model"].pop(f"residual_layers.{i}.output_projection.bias") for i in (3, 5)],
            "missing: residual_layers.3.output_projection.bias, residual_layers.5.output_projection.bias",
        ),
        (lambda c: c["model"].pop("skip_projection.bias"), r"missing: skip_projection.bias\)"),
        (lambda c: c["model"].update({"residual_layers.2.output_projection.bias": torch.zeros(31)}), r"is \(31,\), .* \(32,\)"),
        (lambda c: c["model"].update({"extra.weight": torch.zeros(3)}), "unexpected: extra.weight"),
        (lambda c: c["model"]["skip_projection.weight"].fill_(math.nan), "NaN or infinity"),
        (
            lambda c: [
                c["model"].update({k: c["model"][k][..., None]})
                for k in list(c["model"])
                if k.startswith("diffusion_embedding") and k.endswith("weight")
            ],
            "before 2020-09-23",
        ),
    ],
)
def test_files_of_lmnt_that_do_not_fit(tmp_path, change, message):
    path = lmnt_file(tmp_path / "weights.pt", change)
    with pytest.raises(CheckpointError, match=message):
        fastvoc.load(path)


def philsyn_folder(tmp_path, change):
    for name in ("1000000.pkl", "config.json"):
        shutil.copy(PHILSYN.path(name), tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    change(values)
    (tmp_path / "config.json").write_text(json.dumps(values))
    return tmp_path / "1000000.pkl"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("diffusion_config"), "T must be a number"),
        (lambda v: v["diffusion_config"].update(T=0), "T must be an integer in 1"),
        (lambda v: v["diffusion_config"].update(beta_T=1.5), "expected 0 < β < 1"),
        (lambda v: v["wavenet_config"].update(num_res_layers=30), "num_res_layers is 6 in the weights, 30 in"),
        (lambda v: v["trainset_config"].update(hop_length=300), "upsamples by 256, .* has hop_length 300"),
        (lambda v: v["wavenet_config"].pop("dilation_cycle"), "dilation_cycle must be a number"),
    ],
)
def test_folders_of_philsyn_that_do_not_fit(tmp_path, change, message):
    with pytest.raises((ConfigError, IncompatibleCheckpointError), match=message):
        fastvoc.load(philsyn_folder(tmp_path, change))


def test_philsyns_configuration_can_lie_elsewhere(tmp_path):
    path = philsyn_folder(tmp_path, lambda v: None)
    other = (tmp_path / "config.json").rename(tmp_path / "config_ch16_T50.json")
    with pytest.raises(ConfigError, match="pass config=PATH"):
        fastvoc.load(path)
    assert fastvoc.load(path, config=other).config == philsyn().config


def test_philsyns_repository_has_the_configurations_at_its_root(tmp_path):
    folder = tmp_path / "exp/ch16_T50_betaT0.05/logs/checkpoint"
    folder.mkdir(parents=True)
    path = philsyn_folder(folder, lambda v: None).rename(folder / "1000000.pkl")
    (folder / "config.json").rename(tmp_path / "config_16.json")
    (tmp_path / "config_128.json").write_text(json.dumps({"wavenet_config": {"res_channels": 128}}))
    assert fastvoc.load(path).config == philsyn().config


# ---- Drop-in layers --------------------------------------------------------------------------------------------------


def lmnts_block(block, x, step, conditioner):
    """diffwave.model.ResidualBlock.forward, as its paper's figure 2 with the sigmoid half first."""
    y = x + block.diffusion_projection(step).unsqueeze(-1)
    y = block.dilated_conv(y)
    if conditioner is not None:
        y = y + block.conditioner_projection(conditioner)
    gate, filter = y.chunk(2, 1)
    residual, skip = block.output_projection(torch.sigmoid(gate) * torch.tanh(filter)).chunk(2, 1)
    return (x + residual) / math.sqrt(2), skip


@pytest.mark.parametrize("uncond", [False, True])
def test_residual_block_is_lmnts(uncond):
    torch.manual_seed(0)
    block = ResidualBlock(5, 4, 2, uncond=uncond).double()
    names = {"dilated_conv", "diffusion_projection", "output_projection"} | (set() if uncond else {"conditioner_projection"})
    assert {name.split(".")[0] for name, _ in block.named_parameters()} == names
    x, step = torch.randn(3, 4, 11).double().requires_grad_(), torch.randn(3, 512).double().requires_grad_()
    mel = None if uncond else torch.randn(3, 5, 11).double().requires_grad_()
    leaves = [*block.parameters(), x, step, *([] if uncond else [mel])]
    ours, theirs = block(x, step, mel), lmnts_block(block, x, step, mel)
    weights = [torch.randn_like(y) for y in theirs]
    for a, b in zip(ours, theirs):
        assert torch.allclose(a, b, rtol=0, atol=1e-12) and a.shape == (3, 4, 11)
    for a, b in zip(torch.autograd.grad(ours, leaves, weights), torch.autograd.grad(theirs, leaves, weights), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-11)
    with pytest.raises(ShapeError, match="takes no conditioner" if uncond else "conditioner is missing"):
        block(x, step, torch.zeros(3, 5, 11) if uncond else None)
    one, each = block(x, step[:1], mel)[0], block(x, step[:1].expand(3, -1), mel)[0]  # a step for the whole batch
    assert torch.allclose(one, each, rtol=0, atol=1e-12)


def test_the_drop_ins_take_lmnts_weights():
    state = read_file(LMNT.path("weights-1000578.pt"))["model"]
    take = lambda prefix: {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    upsampler = SpectrogramUpsampler(80)
    upsampler.load_state_dict(take("spectrogram_upsampler."))
    LMNT.check("upsampled_spec", upsampler(LMNT.tensor("eps_spec")[:1])[:, ::16])
    for i in range(6):
        ResidualBlock(80, 16, 2 ** (i % 3)).load_state_dict(take(f"residual_layers.{i}."))
