"""Parallel WaveGAN: upstream's numbers, forward and backward; options against plain convolutions; bad files and inputs."""

import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import fastvoc
from fastvoc.checkpoints import parallel_wavegan as reader
from fastvoc.checkpoints.reading import read_file
from fastvoc.checkpoints.weight_norm import fold_weight_norm
from fastvoc.errors import (
    CheckpointError,
    ConfigError,
    FastvocError,
    IncompatibleCheckpointError,
    ShapeError,
    UnsafeCheckpointError,
)
from fastvoc.layers.melgan import MelGANGenerator
from fastvoc.losses import (
    discriminator_adversarial_loss,
    feature_matching_loss,
    generator_adversarial_loss,
    multi_resolution_stft_loss,
)
from fastvoc.models import ParallelWaveGAN
from fastvoc.models.parallel_wavegan_discriminator import (
    MelGANMultiScaleDiscriminator,
    ParallelWaveGANDiscriminator,
    ResidualParallelWaveGANDiscriminator,
)
from tests.goldens import Golden

torch.set_num_threads(1)
GOLDEN = Golden("pwg-a")
CHECKPOINT = GOLDEN.path("checkpoint-400000steps.pkl")
SMALL = dict(
    layers=4, stacks=2, residual_channels=6, gate_channels=10, skip_channels=14, aux_channels=7,
    upsample_params={"upsample_scales": [2, 3]},
)  # fmt: skip


def small(**changes):
    torch.manual_seed(0)
    return ParallelWaveGAN(**{**SMALL, **changes})


def mel_of(model, n_frames=9, batch=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, model.n_mels, n_frames, generator=generator, dtype=next(model.parameters()).dtype)


# ---- upstream's numbers ----------------------------------------------------------------------------------------------


def test_infer_golden():
    model = fastvoc.load(CHECKPOINT)
    mel, noise = GOLDEN.tensor("infer_mel").t()[None].contiguous(), GOLDEN.tensor("infer_noise").t()
    GOLDEN.check("infer_out", model.infer(mel, noise=noise).t())
    normalised = GOLDEN.tensor("infer_mel_normalised").t()[None].contiguous()
    GOLDEN.check("infer_out", model.infer(normalised, noise=noise, normalised=True).t())
    padded = F.pad(mel, (2, 2), mode="replicate")
    assert torch.equal(model.infer(padded, noise=noise, padded=True), model.infer(mel, noise=noise))
    with fastvoc.backend("reference"):
        GOLDEN.check("infer_out", model.infer(mel, noise=noise).t())


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=["float32", "float64"])
def trained(request):
    """One training evaluation as upstream makes it, the gradients taken with respect to upstream's parameters."""
    dtype = request.param
    contents = read_file(CHECKPOINT)["model"]
    leaf = lambda state: {k: v.to(dtype).requires_grad_() for k, v in state.items()}
    generator, discriminator = leaf(contents["generator"]), leaf(contents["discriminator"])
    model = fastvoc.load(CHECKPOINT).to(dtype)
    judge = ParallelWaveGANDiscriminator(conv_channels=16, use_weight_norm=False).to(dtype)
    z, c, y = (GOLDEN.tensor(name, dtype) for name in ("fwd_z", "fwd_c", "fwd_y"))
    z.requires_grad_(), c.requires_grad_()

    weights = reader.canonical(generator, model.config)
    out = functional_call(model, weights, (z, c))
    upsample_net = {k.removeprefix("upsample_net."): v for k, v in weights.items() if k.startswith("upsample_net.")}
    convergence, magnitude = multi_resolution_stft_loss(out, y)
    judged = lambda wave: functional_call(judge, fold_weight_norm(discriminator), (wave,))
    fake = judged(out)
    total = convergence + magnitude + 4.0 * generator_adversarial_loss(fake)
    leaves = {"grad_z": z, "grad_c": c, **{f"gradp:generator.{k}": v for k, v in generator.items()}}
    gradients = torch.autograd.grad(total, list(leaves.values()))

    detached, real = judged(out.detach()), judged(y)
    real_loss, fake_loss = discriminator_adversarial_loss(detached, real)
    real_hinge, fake_hinge = discriminator_adversarial_loss(detached, real, "hinge")
    judge_gradients = torch.autograd.grad(real_loss + fake_loss, list(discriminator.values()))
    return {
        "fwd_out": out,
        "upsampled_c": functional_call(model.upsample_net, upsample_net, (c[:1],))[:, ::16],
        "loss_spectral_convergence": convergence,
        "loss_log_magnitude": magnitude,
        "disc_fake": fake,
        "disc_real": real,
        "loss_gen_adv_mse": generator_adversarial_loss(fake),
        "loss_gen_adv_hinge": generator_adversarial_loss(fake, "hinge"),
        "loss_generator_total": total,
        "loss_dis_real_mse": real_loss,
        "loss_dis_fake_mse": fake_loss,
        "loss_dis_real_hinge": real_hinge,
        "loss_dis_fake_hinge": fake_hinge,
        **dict(zip(leaves, gradients)),
        **{f"gradp:discriminator.{k}": v for k, v in zip(discriminator, judge_gradients)},
    }


@pytest.mark.parametrize("name", [name for name in GOLDEN.checked() if name != "infer_out"])
def test_training_golden(trained, name):
    GOLDEN.check(name, trained[name])
    if trained[name].dtype == torch.float64:
        want = GOLDEN.tensor(name + "_f64")
        # The float64 gradients of the log-magnitude loss carry upstream's own rounding, amplified
        scale = 1e-8 if name.startswith(("grad_", "gradp:generator")) else 1e-11
        assert (trained[name] - want).abs().max() <= scale * want.abs().max()


def test_every_output_of_the_golden_is_compared(trained):
    assert set(GOLDEN.checked()) - {"infer_out"} <= set(trained)


# ---- against plain convolutions --------------------------------------------------------------------------------------


def upstream_state(model, dtype=torch.float64):
    torch.manual_seed(3)
    shapes = reader.upstream_weights(model)
    return {k: torch.randn(s, dtype=dtype) * (math.prod(s[1:]) or 1) ** -0.5 for k, s in shapes.items()}


def plainly(state, config, z, c):
    """The generator from its upstream weights, channels first, nothing shared with the code under test."""
    if c is not None and config.upsample_conditional_features:
        causal = config.use_causal_conv
        window, params = config.aux_context_window, config.upsample_params
        prefix = "upsample_net."
        if config.upsample_net == "ConvInUpsampleNetwork":
            c = F.conv1d(c, state["upsample_net.conv_in.weight"])
            c = c[:, :, :-window] if causal and window else c
            prefix += "upsample."
        c, step = c[:, None], 3 if params.get("nonlinear_activation") else 2
        for i, s in enumerate(params["upsample_scales"]):
            c = c.repeat_interleave(s, 3)
            w = state[f"{prefix}up_layers.{i * step + 1}.weight"]
            c = F.conv2d(F.pad(c, (2 * s if causal else s, 0 if causal else s, w.shape[2] // 2, w.shape[2] // 2)), w)
            c = F.leaky_relu(c, 0.1) if step == 3 else c
        c = c[:, 0]
    conv = lambda name, x: F.conv1d(x, state[f"{name}.weight"], state.get(f"{name}.bias"))
    x, skips = conv("first_conv", z), 0
    for i, d in enumerate(config.dilations):
        reach = (config.kernel_size - 1) * d
        pad = (reach, 0) if config.use_causal_conv else (reach // 2, reach // 2)
        name = f"conv_layers.{i}"
        a = F.conv1d(F.pad(x, pad), state[f"{name}.conv.weight"], state.get(f"{name}.conv.bias"), dilation=d)
        a = a if c is None else a + conv(f"{name}.conv1x1_aux", c)
        tanh, sigmoid = a.chunk(2, 1)
        h = tanh.tanh() * sigmoid.sigmoid()
        skips = skips + conv(f"{name}.conv1x1_skip", h)
        x = (conv(f"{name}.conv1x1_out", h) + x) * math.sqrt(0.5)
    x = skips * math.sqrt(1 / config.layers)
    return conv("last_conv_layers.3", conv("last_conv_layers.1", x.relu()).relu())


LEAKY = {"nonlinear_activation": "LeakyReLU", "nonlinear_activation_params": {"negative_slope": 0.1}}
VARIANTS = {
    "as it is": {},
    "v3's kernel": {"kernel_size": 5},
    "causal": {"use_causal_conv": True},
    "causal, even kernel, no context": {"use_causal_conv": True, "kernel_size": 2, "aux_context_window": 0},
    "no bias": {"bias": False},
    "non-linear upsampler": {"upsample_params": {"upsample_scales": [3, 2], "freq_axis_kernel_size": 3, **LEAKY}},
    "UpsampleNetwork": {"upsample_net": "UpsampleNetwork", "aux_context_window": 0},
    "mel at sample rate": {"upsample_conditional_features": False},
    "unconditional": {"aux_channels": 0},
    "more channels in and out": {"in_channels": 2, "out_channels": 3},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_options_against_plain_convolutions(changes):
    model = small(**changes).double().eval()
    state = upstream_state(model)
    model.load_state_dict({**reader.canonical(state, model.config), "mean": model.mean, "scale": model.scale})
    batch, n_samples = 2, 9 * model.hop_length
    noise = torch.randn(batch, model.config.in_channels, n_samples, dtype=torch.float64)
    given = noise if model.config.in_channels > 1 else noise[:, 0]
    if model.n_mels:
        mel = mel_of(model)
        c = F.pad(mel, (model.context_frames,) * 2, mode="replicate") if model.context_frames else mel
        got = model.infer(mel, noise=given)
    else:
        c, got = None, model.infer(noise=given)
    want = plainly(state, model.config, noise, c)
    assert torch.allclose(model(noise, c), want, rtol=0, atol=1e-12) and want.std() > 0.01
    assert torch.allclose(got.double(), want if want.shape[1] > 1 else want[:, 0], rtol=0, atol=1e-6)
    model.stack.layers[0].conv.weight.data[0, 0, 0] += 1
    assert not torch.allclose(model(noise, c), want, atol=1e-6)


MELGAN = {"upsample_scales": [2, 3], "in_channels": 7, "out_channels": 7, "channels": 12, "stacks": 2, "kernel_size": 5}
PIECES = ["as it is", "causal", "causal, even kernel, no context", "non-linear upsampler", "mel at sample rate", "unconditional"]


@pytest.mark.parametrize("changes", [VARIANTS[name] for name in PIECES] + [
    {"upsample_params": {"upsample_scales": [1, 3, 1, 2], "interpolate_mode": "bilinear"}},
    {"upsample_params": {"upsample_scales": [1, 1, 2]}, "use_causal_conv": True},
    {"upsample_params": {"upsample_scales": [1, 3, 2], "interpolate_mode": "bicubic"}},
    {"upsample_params": {"upsample_scales": [1, 2, 2], "interpolate_mode": "bicubic"}, "use_causal_conv": True},
    {"upsample_params": {"upsample_scales": [3, 2], "interpolate_mode": "area"}},
    {"upsample_net": "MelGANGenerator", "upsample_params": MELGAN},
    {"upsample_net": "MelGANGenerator", "upsample_params": MELGAN, "use_causal_conv": True},
])  # fmt: skip
def test_pieces_are_the_whole(changes, monkeypatch):
    model = small(**{"layers": 6, **changes}).double().eval()
    n_frames, seen = 300 // model.hop_length, []
    mel = mel_of(model, n_frames) if model.n_mels else None
    noise = torch.randn(2, n_frames * model.hop_length, dtype=torch.float64)
    want = model.infer(mel, noise=noise, progress=lambda *done: seen.append(done))
    assert seen == [(noise.shape[1], noise.shape[1])]
    monkeypatch.setattr("fastvoc.models.parallel_wavegan.PIECE_SAMPLES", 7)
    got = model.infer(mel, noise=noise, progress=lambda *done: seen.append(done))
    assert len(seen) > 3 and seen[-1] == seen[0]
    assert torch.allclose(got, want, rtol=0, atol=1e-6) and want.std() > 1e-3
    monkeypatch.setattr(type(model.stack), "reach", 3)  # less than the network sees: the seams show
    assert not torch.allclose(model.infer(mel, noise=noise), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, {"use_causal_conv": True}, {"upsample_net": "UpsampleNetwork", "aux_context_window": 0}])
@pytest.mark.parametrize("n_frames", [1, 40])
def test_conditioning_at_frame_rate_is_the_same(changes, n_frames, monkeypatch):
    model = small(**{"layers": 6, "upsample_params": {"upsample_scales": [4, 4]}, **changes}).eval()
    mel, noise = mel_of(model, n_frames), torch.randn(2, n_frames * 16)
    whole = model.infer(mel, noise=noise)
    monkeypatch.setattr("fastvoc.models.parallel_wavegan.PIECE_SAMPLES", 100)
    pieces = model.infer(mel, noise=noise, lengths=[n_frames, 1])
    monkeypatch.setattr("fastvoc.models.parallel_wavegan.at_sample_rate", None)
    assert torch.equal(model.infer(mel, noise=noise), model.infer(mel, noise=noise))  # it is not asked
    monkeypatch.undo()
    monkeypatch.setattr("fastvoc.models.parallel_wavegan.at_frame_rate", lambda *args: None)
    want = model.infer(mel, noise=noise)
    assert torch.allclose(whole, want, atol=1e-5) and torch.allclose(pieces[0], want[0], atol=1e-5) and want.std() > 0.01
    assert torch.allclose(pieces[1, :16], model.infer(mel[1:, :, :1], noise=noise[1:, :16])[0], atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_melgan_upsampler_against_plain_convolutions(causal):
    torch.manual_seed(0)
    melgan = MelGANGenerator(**MELGAN, use_causal_conv=causal, use_final_nonlinear_activation=False).double()
    for p in melgan.parameters():
        nn.init.normal_(p, std=0.3)
    state, c = melgan.state_dict(), torch.randn(2, 7, 6, dtype=torch.float64)
    act = lambda x: F.leaky_relu(x, 0.2)

    def conv(name, x, dilation=1):
        w, b = state[f"{name}.weight"], state[f"{name}.bias"]
        reach = (w.shape[2] - 1) * dilation
        x = F.pad(x, (reach, 0) if causal else (reach // 2, reach // 2), mode="reflect") if reach else x
        return F.conv1d(x, w, b, dilation=dilation)

    def up(name, x, s):
        w, b = state[f"{name}.weight"], state[f"{name}.bias"]
        x = F.conv_transpose1d(F.pad(x, (1, 0), mode="replicate") if causal else x, w, b, stride=s)
        return x[:, :, s:-s] if causal else x[:, :, (s + 1) // 2 :][:, :, : (x.shape[2] // s - 1) * s]

    inner = ".conv" if causal else ""
    at = iter(range(100))
    skip = lambda n: [next(at) for _ in range(n)][-1]  # the next parameters are n modules on
    x = conv(f"melgan.{skip(1 if causal else 2)}{inner}", c)
    for s in MELGAN["upsample_scales"]:
        x = up(f"melgan.{skip(2)}{'.deconv' if causal else ''}", act(x), s)
        for dilation in (1, 3):
            name = f"melgan.{skip(1)}"
            first, second = ("1.conv", "3") if causal else ("2", "4")
            h = conv(f"{name}.stack.{second}", act(conv(f"{name}.stack.{first}", act(x), dilation)))
            x = h + conv(f"{name}.skip_layer", x)
    x = conv(f"melgan.{skip(2 if causal else 3)}{inner}", act(x))
    got = melgan(c)
    assert got.shape == (2, 7, 36) and torch.allclose(got, x, atol=1e-12) and x.std() > 0.1
    few = c[:, :, : 4 if causal else 2]
    with pytest.raises(ShapeError, match="too few: the upsampler reflects"):
        melgan(few)


def test_lengths_leave_every_item_alone():
    model = small().eval()
    mel, noise, lengths = mel_of(model, 12, 3), torch.randn(3, 72), [12, 5, 1]
    waves = model.infer(mel, noise=noise, lengths=lengths)
    padded = model.infer(F.pad(mel, (2, 2), mode="replicate"), noise=noise, lengths=torch.tensor(lengths), padded=True)
    for b, n in enumerate(lengths):
        alone = model.infer(mel[b : b + 1, :, :n], noise=noise[b : b + 1, : 6 * n])
        assert torch.allclose(waves[b : b + 1, : 6 * n], alone, atol=1e-6) and not waves[b, 6 * n :].any()
    assert torch.allclose(padded[0], waves[0], atol=1e-6) and not torch.allclose(padded[1, :30], waves[1, :30], atol=1e-3)
    for wrong in ([12, 5], [12, 5, 0], [12, 5, 13]):
        with pytest.raises(ShapeError, match=r"expected 3 numbers in 1…12"):
            model.infer(mel, lengths=wrong)


def test_statistics_are_the_models():
    model = small().eval()
    mel, noise = mel_of(model), torch.randn(2, 54)
    model.mean.uniform_(-1, 1), model.scale.uniform_(0.5, 2)
    normalised = (mel - model.mean[:, None]) / model.scale[:, None]
    assert torch.equal(model.infer(mel, noise=noise), model.infer(normalised, noise=noise, normalised=True))
    assert not torch.allclose(model.infer(mel, noise=noise), model.infer(mel, noise=noise, normalised=True), atol=1e-3)


def test_seeds_name_noise_by_position():
    model = small().eval()
    mel = mel_of(model)
    one, other = model.infer(mel, seed=5), model.infer(mel, seed=6)
    assert torch.equal(one, model.infer(mel, seed=5)) and not torch.allclose(one, other, atol=1e-3)
    assert torch.allclose(one[:1], model.infer(mel[:1], seed=5), atol=1e-6)
    torch.manual_seed(1)
    first = model.infer(mel)
    torch.manual_seed(1)
    assert torch.equal(first, model.infer(mel))


def test_dropout_goes_around_the_residual_path():
    x = torch.randn(1, 20, 6)
    bare = fastvoc.layers.GatedResidualStack(6, 10, 0, 0, 3, [1, 2], rho=math.sqrt(0.5), dropout=0.5)
    for layer in bare.layers:
        nn.init.zeros_(layer.out.weight), nn.init.zeros_(layer.out.bias)
    assert torch.allclose(bare(x), x * 0.5)
    noise, mel = torch.randn(1, 1, 30), torch.randn(1, 7, 9)
    trained = small(dropout=0.5).train()
    assert not torch.allclose(trained(noise, mel), trained(noise, mel))
    assert torch.equal(trained.eval()(noise, mel), trained(noise, mel))


def test_save_and_load(tmp_path):
    model = fastvoc.load(CHECKPOINT)
    model.save_pretrained(tmp_path)
    again = fastvoc.load(tmp_path)
    mel, noise = GOLDEN.tensor("infer_mel").t()[None].contiguous(), GOLDEN.tensor("infer_noise").t()
    assert torch.equal(again.infer(mel, noise=noise), model.infer(mel, noise=noise))
    assert again.mel_config == model.mel_config and again.mel_config.mean is None and again.hop_length == 64


# ---- layers and discriminators ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
def test_residual_block_is_upstreams(causal):
    torch.manual_seed(0)
    block = fastvoc.layers.WaveNetResidualBlock(3, 6, 10, 5, 7, dilation=2, use_causal_conv=causal).double()
    assert sorted(block.state_dict()) == [
        "conv.bias", "conv.weight", "conv1x1_aux.weight", "conv1x1_out.bias", "conv1x1_out.weight",
        "conv1x1_skip.bias", "conv1x1_skip.weight",
    ]  # fmt: skip
    x, c = (torch.randn(2, n, 11, dtype=torch.float64, requires_grad=True) for n in (6, 7))
    a = F.conv1d(F.pad(x, (4, 0) if causal else (2, 2)), block.conv.weight, block.conv.bias, dilation=2)
    tanh, sigmoid = (a + block.conv1x1_aux(c)).chunk(2, 1)
    h = tanh.tanh() * sigmoid.sigmoid()
    got, want = block(x, c), ((block.conv1x1_out(h) + x) * math.sqrt(0.5), block.conv1x1_skip(h))
    for ours, theirs in zip(got, want):
        assert torch.allclose(ours, theirs, atol=1e-13) and ours.shape == theirs.shape
    leaves = [x, c, *block.parameters()]
    loss = lambda pair: (pair[0].square().sum() + pair[1].sin().sum())
    for ours, theirs in zip(torch.autograd.grad(loss(got), leaves), torch.autograd.grad(loss(want), leaves)):
        assert torch.allclose(ours, theirs, atol=1e-12)
    with pytest.raises(ShapeError, match="no conditioning"):
        fastvoc.layers.WaveNetResidualBlock(3, 6, 10, 5, -1)(x.float(), c.float())


def test_wavenet_stack_sums_its_blocks():
    torch.manual_seed(0)
    stack = fastvoc.layers.WaveNetStack(4, 2, residual_channels=6, gate_channels=8, skip_channels=5, aux_channels=7)
    assert [block.dilation for block in stack.conv_layers] == [1, 2, 1, 2]
    x, c, total = torch.randn(1, 6, 20), torch.randn(1, 7, 20), 0
    want = stack(x, c)
    for block in stack.conv_layers:
        x, skip = block(x, c)
        total = total + skip
    assert torch.allclose(want, total / 2, atol=1e-6)
    with pytest.raises(ConfigError, match="multiple of stacks"):
        fastvoc.layers.WaveNetStack(5, 2)


def test_discriminators_have_upstreams_shape():
    wave = torch.randn(2, 1, 300)
    v1 = ParallelWaveGANDiscriminator()
    assert [m.dilation[0] for m in v1.conv_layers[::2]] == [1, 1, 2, 3, 4, 5, 6, 7, 8, 1]
    assert v1(wave).shape == (2, 1, 300) and v1(wave).std() > 0
    powers = ParallelWaveGANDiscriminator(layers=4, dilation_factor=2)
    assert [m.dilation[0] for m in powers.conv_layers[::2]] == [1, 2, 4, 1]
    residual = ResidualParallelWaveGANDiscriminator(layers=4, stacks=2, residual_channels=4, gate_channels=6, skip_channels=5)
    assert residual(wave).shape == (2, 1, 300)
    names = {".".join(p for p in k.split(".") if p not in ("parametrizations", "original0", "original1"))
             for k in residual.state_dict()}  # fmt: skip
    assert {"first_conv.0.bias", "conv_layers.3.conv1x1_skip.weight", "last_conv_layers.3.weight"} <= names


def test_multi_scale_discriminator():
    judge = MelGANMultiScaleDiscriminator()
    assert sum(p.numel() for p in judge.parameters()) > 16_000_000  # v3's own size
    judge = MelGANMultiScaleDiscriminator(channels=4, max_downsample_channels=16, downsample_scales=[4, 4])
    outputs = judge(torch.randn(2, 1, 512))
    assert [len(o) for o in outputs] == [5, 5, 5]
    assert [tuple(o[-1].shape) for o in outputs] == [(2, 1, 32), (2, 1, 16), (2, 1, 8)]
    keys = judge.state_dict().keys()
    assert "discriminators.2.layers.0.1.parametrizations.weight.original0" in keys and "discriminators.0.layers.4.bias" in keys
    fake = judge(torch.randn(2, 1, 512))
    matching = feature_matching_loss(fake, outputs)
    want = torch.stack([torch.stack([(f - r).abs().mean() for f, r in zip(fs[:-1], rs[:-1])]).mean()
                        for fs, rs in zip(fake, outputs)]).mean()  # fmt: skip
    assert torch.allclose(matching, want)
    adversarial = generator_adversarial_loss(fake)
    assert torch.allclose(adversarial, torch.stack([(f[-1] - 1).square().mean() for f in fake]).mean())


def test_read_discriminator_keeps_its_weight_norm():
    judge = reader.read_discriminator(CHECKPOINT)
    state = read_file(CHECKPOINT)["model"]["discriminator"]
    assert torch.equal(judge.conv_layers[2].parametrizations.weight.original1, state["conv_layers.2.weight_v"])
    GOLDEN.check("disc_real", judge(GOLDEN.tensor("fwd_y")))


@pytest.mark.parametrize("spelling", ["plain", "new"])
def test_read_discriminator_of_other_spellings(tmp_path, spelling):
    contents = read_file(CHECKPOINT)
    judge = reader.read_discriminator(CHECKPOINT)
    state = judge.state_dict() if spelling == "new" else fold_weight_norm(judge.state_dict())
    path = copied(tmp_path, {**contents, "model": {**contents["model"], "discriminator": state}})
    GOLDEN.check("disc_real", reader.read_discriminator(path)(GOLDEN.tensor("fwd_y")))


# ---- files -----------------------------------------------------------------------------------------------------------


def copied(folder, contents=None, **config_edits):
    """The golden's three files in a folder of their own; replacements for lines of config.yml."""
    for name in ("config.yml", "stats.h5"):
        shutil.copy(GOLDEN.path(name), folder / name)
    path = folder / CHECKPOINT.name
    shutil.copy(CHECKPOINT, path) if contents is None else torch.save(contents, path)
    text = (folder / "config.yml").read_text()
    for key, value in config_edits.items():
        text = "\n".join(line for line in text.splitlines() if not line.startswith(f"{key}:")) + f"\n{key}: {value}\n"
    (folder / "config.yml").write_text(text)
    return path


def generator_of(contents):
    return dict(contents["model"]["generator"])


def rewritten(edit):
    contents = read_file(CHECKPOINT)
    state = generator_of(contents)
    edit(state)
    return {**contents, "model": {**contents["model"], "generator": state}}


def out_of(path, **options):
    mel, noise = GOLDEN.tensor("infer_mel").t()[None].contiguous(), GOLDEN.tensor("infer_noise").t()
    return fastvoc.load(path, **options).infer(mel, noise=noise).t()


def test_a_bare_state_dict_and_a_module_prefix(tmp_path):
    state = generator_of(read_file(CHECKPOINT))
    GOLDEN.check("infer_out", out_of(copied(tmp_path, state)))
    prefixed = {"model": {"generator": {f"module.{k}": v for k, v in state.items()}}}
    GOLDEN.check("infer_out", out_of(copied(tmp_path, prefixed)))


def test_weight_norm_in_other_spellings(tmp_path):
    def edit(state):
        folded = fold_weight_norm(state)
        for prefix in ("first_conv", "conv_layers.2.conv"):
            del state[f"{prefix}.weight_g"], state[f"{prefix}.weight_v"]
            state[f"{prefix}.weight"] = folded[f"{prefix}.weight"]
        for i, half in enumerate(("weight_g", "weight_v")):
            name = "upsample_net.conv_in"
            state[f"{name}.parametrizations.weight.original{i}"] = state.pop(f"{name}.{half}")

    GOLDEN.check("infer_out", out_of(copied(tmp_path, rewritten(edit))))


def test_statistics_from_npy_from_an_option_and_from_buffers(tmp_path):
    path = copied(tmp_path)
    model = fastvoc.load(path)
    mean, scale = model.mean.numpy(), model.scale.numpy()
    (tmp_path / "stats.h5").unlink()
    np.save(tmp_path / "stats.npy", np.stack([mean, scale]))
    GOLDEN.check("infer_out", out_of(path))
    (tmp_path / "stats.npy").rename(tmp_path / "other.npy")
    GOLDEN.check("infer_out", out_of(path, stats=tmp_path / "other.npy"))
    torch.save(rewritten(lambda state: state.update(mean=model.mean, scale=model.scale)), path)
    GOLDEN.check("infer_out", out_of(path))


def test_without_statistics_the_mel_is_taken_as_it_is(tmp_path, caplog):
    path = copied(tmp_path)
    (tmp_path / "stats.h5").unlink()
    model = fastvoc.load(path)
    assert "normalised already" in caplog.text
    normalised = GOLDEN.tensor("infer_mel_normalised").t()[None].contiguous()
    GOLDEN.check("infer_out", model.infer(normalised, noise=GOLDEN.tensor("infer_noise").t()).t())


def test_an_experiment_folder(tmp_path):
    path = copied(tmp_path)
    shutil.copy(path, tmp_path / "checkpoint-5000steps.pkl")
    (tmp_path / "checkpoint-5000steps.pkl").write_bytes(b"an older one, damaged")
    GOLDEN.check("infer_out", out_of(tmp_path))


@pytest.mark.parametrize("edits, changes", [
    ({"log_base": "null"}, {"log": "ln"}), ({"log_base": "2.0"}, {"log": "log2"}), ({"fmax": "null"}, {"fmax": 11025.0}),
    ({"fmin": "null"}, {"fmin": 0.0}), ({"win_length": "600"}, {"win_length": 600}),
    ({"sampling_rate": "24000", "fft_size": "2048"}, {"sample_rate": 24000, "n_fft": 2048, "win_length": 2048}),
])  # fmt: skip
def test_the_mel_convention_is_configs(tmp_path, edits, changes):
    mel = fastvoc.load(copied(tmp_path, **edits)).mel_config
    assert {name: getattr(mel, name) for name in changes} == changes


def test_a_foreign_mel_convention_is_none(tmp_path, caplog):
    assert fastvoc.load(copied(tmp_path, window="blackman")).mel_config is None
    assert "blackman" in caplog.text


@pytest.mark.parametrize("edits, error, words", [
    ({"generator_type": "HiFiGANGenerator"}, ConfigError, "unsupported generator_type 'HiFiGANGenerator'.*supported: Parallel"),
    ({"generator_params": "[1]"}, ConfigError, "must be a mapping"),
    ({"generator_params": "{layer: 6}"}, ConfigError, "unknown key 'layer'.*'layers'"),
    ({"generator_params": "{layers: 6, stacks: 4}"}, ConfigError, "expected a multiple"),
    ({"generator_params": "{layers: 60000000}"}, ConfigError, "layers must be"),
    ({"generator_params": "{upsample_net: MelGANGenerator}"}, ConfigError, "must be aux_channels, 80"),
    ({"generator_params": "{upsample_params: {upsample_scale: [4]}}"}, ConfigError, "do not fit ConvInUpsampleNetwork"),
    ({"generator_params": "{upsample_params: {upsample_scales: [0]}}"}, ConfigError, "positive whole numbers"),
    ({"generator_params": "{layers: 3, stacks: 3}"}, IncompatibleCheckpointError, "unexpected: conv_layers.3"),
    ({"generator_params": "{layers: 9, stacks: 3}"}, IncompatibleCheckpointError, "missing: conv_layers.6"),
    ({"hop_size": "32"}, ConfigError, "hop_size is 32, upsample_scales make 64"),
    ({"x": "!!python/object/apply:os.system ['echo x']"}, UnsafeCheckpointError, "os.system"),
])  # fmt: skip
def test_bad_configurations(tmp_path, edits, error, words):
    with pytest.raises(error, match=words):
        fastvoc.load(copied(tmp_path, **edits))


def bad_shape(state):
    state["first_conv.weight_v"], state["first_conv.weight_g"] = torch.ones(17, 1, 1), torch.ones(17, 1, 1)


@pytest.mark.parametrize("edit, error, words", [
    (lambda s: s.pop("conv_layers.3.conv.bias"), IncompatibleCheckpointError, "missing: conv_layers.3.conv.bias"),
    (lambda s: s.update(more=torch.ones(1)), IncompatibleCheckpointError, "unexpected: more"),
    (bad_shape, IncompatibleCheckpointError, r"first_conv.weight is \(17, 1, 1\), config.yml makes it \(16, 1, 1\)"),
    (lambda s: s["first_conv.bias"].fill_(math.nan), CheckpointError, "NaN or infinity in first_conv.bias"),
    (lambda s: s.update({"first_conv.bias": "x"}), IncompatibleCheckpointError, "expected a tensor"),
    (lambda s: s.update(mean=torch.ones(3), scale=torch.ones(3)), CheckpointError, "3 means"),
])  # fmt: skip
def test_bad_weights(tmp_path, edit, error, words):
    with pytest.raises(error, match=words):
        fastvoc.load(copied(tmp_path, rewritten(edit)))


def test_bad_surroundings(tmp_path):
    path = copied(tmp_path)
    np.save(tmp_path / "stats.npy", np.ones((2, 79), np.float32))
    with pytest.raises(CheckpointError, match="80"):
        fastvoc.load(path, stats=tmp_path / "stats.npy")
    with pytest.raises(FileNotFoundError, match="no such file"):
        fastvoc.load(path, stats=tmp_path / "nothing.h5")
    with pytest.raises(ConfigError, match="unknown option 'colour'"):
        fastvoc.load(path, colour=1)
    with pytest.raises(ConfigError, match="unsupported discriminator_type"):
        (tmp_path / "b").mkdir()
        reader.read_discriminator(copied(tmp_path / "b", discriminator_type="HiFiGANMultiPeriodDiscriminator"))
    (tmp_path / "config.yml").unlink()
    with pytest.raises(ConfigError, match="no config.yml"):
        fastvoc.load(path)


def test_the_typo_of_upstream_is_read():
    with pytest.raises(FastvocError, match="upsample_kernel_sizes"):  # named as it is meant; this generator has none
        reader.generator_config({"upsample_kernal_sizes": [16]}, "config.yml")


# ---- inputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options, error, words", [
    ({"noise": torch.zeros(2, 53)}, ShapeError, r"noise is \(2, 53\), expected \(2, 54\)"),
    ({"n_samples": 54}, ConfigError, "do not pass it"),
    ({"seed": -1}, ConfigError, "seed"),
])  # fmt: skip
def test_bad_options(options, error, words):
    model = small().eval()
    with pytest.raises(error, match=words):
        model.infer(mel_of(model), **options)


def test_bad_inputs():
    model = small().eval()
    mel = mel_of(model)
    for bad, words in ((mel[0], "batch axis"), (mel.transpose(1, 2), "transpose"), (mel[:, :, :0], "0 frames")):
        with pytest.raises(ShapeError, match=words):
            model.infer(bad)
    with pytest.raises(ShapeError, match="4 of them are context"):
        model.infer(mel[:, :, :4], padded=True)
    assert model.infer(mel[:, :, :5], padded=True).shape == (2, 6)
    assert model.infer(mel[:, :, :1]).shape == (2, 6)
    with pytest.raises(ShapeError, match="the mel covers 30 samples, z has 31"):
        model(torch.zeros(2, 1, 31), mel)
    with pytest.raises(ConfigError, match="conditioned on 7 mel bands"):
        model.infer(n_samples=None)
    with pytest.raises(ConfigError, match="unconditional"):
        small(aux_channels=-1).infer(mel)
    assert small(aux_channels=-1).infer(n_samples=40, seed=1).shape == (1, 40)


@pytest.mark.parametrize("changes, words", [
    ({"gate_channels": 9}, "even"), ({"kernel_size": 4}, "odd"), ({"stacks": 3}, "multiple"), ({"dropout": 1.5}, "dropout"),
    ({"residual_channels": 0}, "residual_channels"), ({"aux_channels": 10**9}, "aux_channels"),
    ({"aux_context_window": -1}, "aux_context_window"), ({"upsample_net": "Deconv"}, "upsample_net"),
    ({"upsample_params": {"upsample_scales": [2], "interpolate_mode": "cubic"}}, "cubic"),
    ({"upsample_params": {"upsample_scales": [2], "nonlinear_activation": "Swish"}}, "Swish"),
    ({"upsample_params": [4]}, "upsample_params"),
])  # fmt: skip
def test_configuration_errors(changes, words):
    with pytest.raises(ConfigError, match=words):
        small(**changes)
