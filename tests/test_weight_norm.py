"""Weight norm on the models of every family: nothing changes when it comes or goes, and a training goes on from there."""

import pytest
import torch

import fastvoc
from fastvoc.checkpoints import clarinet, diffwave_lmnt, diffwave_philsyn, parallel_wavegan, r9y9, read_file, waveglow
from fastvoc.checkpoints.unpickle import PickledModule
from fastvoc.models import MODELS
from tests.goldens import DATA, Golden

torch.set_num_threads(1)
FILES = {
    "diffwave": ("diffwave-philsyn-a", "1000000.pkl", {"schedule": "fast"}),
    "parallel_wavegan": ("pwg-a", "checkpoint-400000steps.pkl", {}),
    "parallel_wavenet": ("clarinet-a", "student_checkpoint_step000210000_ema.pth", {}),
    "waveglow": ("waveglow-a", "waveglow_256channels_a.pt", {}),
    "wavenet": ("wavenet-r9y9-a", "checkpoint_step001000000_ema.pth", {}),
}
PLAIN = {  # what upstream trains without it, and all else with it
    "diffwave": ["output_projection"],
    "parallel_wavegan": [],
    "parallel_wavenet": [],
    "waveglow": ["upsample", "convinv.conv", "coupling.net.end"],
    "wavenet": ["upsample_net.conv_in"],
}


def load(family, **options):
    case, file, _ = FILES[family]
    if family == "parallel_wavenet":
        options["teacher"] = DATA / case / "teacher_checkpoint_step000654321_ema.pth"
    return fastvoc.load(Golden(case).path(file), **options)


def infer(model):
    rng = torch.Generator().manual_seed(0)
    mel = torch.rand(1, model.n_mels, 3, generator=rng)
    options = {} if model.family != "diffwave" else {"schedule": [0.1, 0.2]}
    return model.infer(mel, seed=0, **options)


def test_every_family_is_here():
    assert set(FILES) == set(MODELS)


@pytest.mark.parametrize("family", FILES)
def test_it_comes_and_goes(family, tmp_path):
    plain, model = load(family), load(family, weight_norm=True)
    want = infer(plain)
    assert want.std() > 1e-4
    names = [n for n, p in model.named_parameters() if n.endswith("original0")]
    kept = [n.removesuffix(".weight") for n, p in model.named_parameters() if p.dim() > 2 and "parametrizations" not in n]
    assert names and {n for n in kept if not n.endswith(tuple(PLAIN[family]))} == set()
    assert all(any(n.endswith(end) for n in kept) for end in PLAIN[family])
    assert torch.allclose(infer(model), want, atol=1e-3 * float(want.abs().max()))
    model.save_pretrained(tmp_path)
    assert set(fastvoc.load(tmp_path).state_dict()) == set(plain.state_dict())
    with torch.no_grad():  # a factor is seen by the plans
        model.get_parameter(names[0]).mul_(1.5)
    changed = infer(model)
    assert not torch.allclose(changed, want, atol=1e-3 * float(want.abs().max()))
    model.remove_weight_norm()
    assert set(model.state_dict()) == set(plain.state_dict())
    assert torch.allclose(infer(model), changed, atol=1e-3 * float(want.abs().max()))


def test_a_row_of_zeros_stays_zero_and_can_be_trained():
    from fastvoc.models import WaveGlow

    torch.manual_seed(0)
    model = WaveGlow(n_mel_channels=2, n_flows=1, n_group=4, n_layers=1, n_channels=4, upsample_kernel=8, upsample_stride=4)
    conv = model.flows[0].coupling.net.stack.layers[0].out
    with torch.no_grad():
        conv.weight[1] = 0
    model.apply_weight_norm()
    assert not conv.weight[1].any() and conv.weight.isfinite().all()
    conv.weight.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert conv.parametrizations.weight.original0.grad[1] != 0


def mel_and_wave(model, n=3):
    torch.manual_seed(0)
    return torch.randn(2, model.n_mels, n + 2 * getattr(model, "context_frames", 0)), torch.rand(2, n * model.hop_length) - 0.5


def objective(model, rows=None):
    """What the model's `forward` is trained for, in part. rows: parameters instead of its own."""
    mel, wave = mel_and_wave(model)
    call = model if rows is None else lambda *args: torch.func.functional_call(model, rows, args)
    if model.family == "wavenet":
        x = wave[:, None] if model.config.scalar_input else torch.zeros(wave.shape, dtype=torch.int64)
        speaker = torch.zeros(2, dtype=torch.int64) if model.config.gin_channels > 0 else None
        return call(x, mel, speaker).square().mean()
    if model.family == "waveglow":
        z, log_s, _ = call(wave, mel)
        return z.square().mean() - sum(s.mean() for s in log_s) / 100
    if model.family == "diffwave":
        return (call(wave, torch.tensor([1, 2]), mel)[:, 0] - wave).square().mean()
    out = call(wave[:, None], mel) if model.family == "parallel_wavegan" else call(wave, mel)[0]
    return out.square().mean()


PUBLIC = {
    "wavenet-r9y9-a/checkpoint_step001000000_ema.pth": (["state_dict"], r9y9),
    "clarinet-a/teacher_checkpoint_step000654321_ema.pth": (["state_dict"], clarinet),
    "diffwave-lmnt-a/weights-1000578.pt": (["model"], diffwave_lmnt),
    "diffwave-philsyn-a/1000000.pkl": (["model_state_dict"], diffwave_philsyn),
    "pwg-a/checkpoint-400000steps.pkl": (["model", "generator"], parallel_wavegan),
    "waveglow-a/waveglow_256channels_a.pt": (["model"], waveglow),
}


@pytest.mark.parametrize("file", PUBLIC)
def test_training_goes_on_from_a_public_checkpoint(file):
    """In its own parameters through the rewriting, and in ours with weight norm put back: either way the loss falls, and
    every pair of magnitude and direction moves."""
    pytest.importorskip("yaml")
    pytest.importorskip("h5py")
    place, layout = PUBLIC[file]
    contents = read_file(DATA / file)
    for name in place:
        contents = contents[name]
    state = contents.state_dict() if isinstance(contents, PickledModule) else contents
    model = fastvoc.load(DATA / file)
    theirs = {k: v.clone().requires_grad_() for k, v in state.items() if v.is_floating_point()}
    options = (model.config,) if layout is parallel_wavegan else ()
    ours = fastvoc.load(DATA / file, weight_norm=True).train()
    own = [p for p in ours.parameters() if p.requires_grad]
    rewritten = lambda: objective(model, layout.canonical(theirs, *options))
    for loss_of, parameters in ((rewritten, list(theirs.values())), (lambda: objective(ours), own)):
        before = [p.detach().clone() for p in parameters]
        optimizer = torch.optim.Adam(parameters, 1e-5)
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = loss_of()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert max(losses[1:]) < losses[0], losses
        moved = sum(not torch.equal(a, p) for a, p in zip(before, parameters))
        assert moved > 0.8 * len(parameters)
