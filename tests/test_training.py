"""The trainer: learns, resumes as if it had never stopped, keeps what it has when interrupted, shares its batch."""

import copy
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastvoc.audio import write_wav
from fastvoc.audio.mel import MelConfig
from fastvoc.demo import WAVENET
from fastvoc.errors import AudioError, ConfigError, CorruptCheckpointError, DeviceError
from fastvoc.losses import multi_resolution_stft_loss
from fastvoc.models import Preprocessing, WaveNet, load
from fastvoc.training.task import Draws
from fastvoc.training.trainer import Trainer, fixed, learning_rate
from fastvoc.training.waveglow import WaveGlowTask
from fastvoc.training.wavenet import WaveNetTask

torch.set_num_threads(1)
ROOT = Path(__file__).parent.parent
RECIPE = {
    "family": "wavenet",
    "model": {
        "out_channels": 32, "layers": 2, "stacks": 1, "residual_channels": 8, "gate_channels": 16, "skip_out_channels": 8,
        "kernel_size": 2, "cin_channels": 10, "cin_pad": 1, "upsample_conditional_features": True,
        "upsample_params": {"upsample_scales": [5, 8]},
    },
    "mel": {"name": "tacotron", "sample_rate": 4000, "n_fft": 160, "win_length": 160, "hop_length": 40, "n_mels": 10,
            "fmax": 2000.0},
    "preemphasis": 0.85,
    "gain": 2.0,
    "temperature": 0.9,
    "training": {
        "seed": 1, "steps": 40, "batch_size": 2, "segment_frames": 6, "learning_rate": 1e-2, "warmup_steps": 5,
        "half_life_steps": 1000, "minimum_learning_rate": 1e-4, "gradient_clip": 1.0, "ema_decay": 0.9, "input_noise": 2,
        "validate_every": 20, "checkpoint_every": 10, "sample_every": 40,
    },
}  # fmt: skip

MEL = {**RECIPE["mel"], "name": "parallel_wavegan", "fmin": 20.0}
TRAINING = {**RECIPE["training"], "learning_rate": 3e-3, "segment_frames": 8}
RECIPES = {
    "wavenet": RECIPE,
    "parallel_wavegan": {
        "family": "parallel_wavegan",
        "model": {
            "layers": 4, "stacks": 2, "residual_channels": 8, "gate_channels": 16, "skip_channels": 8, "aux_channels": 10,
            "aux_context_window": 1, "upsample_params": {"upsample_scales": [5, 8]},
        },
        "discriminator": {"type": "MelGANMultiScaleDiscriminator", "channels": 4, "max_downsample_channels": 16,
                          "downsample_scales": [4], "scales": 2},
        "stft": {"fft_sizes": [128, 64], "hop_sizes": [30, 16], "win_lengths": [100, 64]},
        "lambda_adversarial": 4.0,
        "lambda_feature_matching": 2.0,
        "mel": MEL,
        "training": {**TRAINING, "weight_norm": True, "optimizer": "RAdam", "optimizer_options": {"eps": 1e-6},
                     "discriminator": {"start": 7, "learning_rate": 1e-3, "gradient_clip": 0.5}},
    },
    "diffwave": {
        "family": "diffwave",
        "model": {
            "layers": 4, "dilation_cycle": 2, "residual_channels": 8, "n_mels": 10, "upsample_scales": [4, 10],
            "step_channels": 8, "step_hidden_channels": 16, "step_out_channels": 16,
        },
        "sample": {"schedule": "fast"},
        "mel": {**RECIPE["mel"], "name": "lmnt", "fmin": 20.0},
        "training": {**TRAINING, "optimizer": "Muon", "optimizer_options": {"adam": ["input_projection*"]}},
    },
    "waveglow": {
        "family": "waveglow",
        "model": {
            "n_mel_channels": 10, "n_flows": 4, "n_group": 4, "n_early_every": 2, "n_layers": 2, "n_channels": 8,
            "upsample_kernel": 80, "upsample_stride": 40,
        },
        "sample": {"sigma": 0.6},
        "mel": RECIPE["mel"],
        "training": {**TRAINING, "weight_norm": True},
    },
}  # fmt: skip
# Teacher: an untrained WaveNet with a Gaussian or a mixture of logistics, that `teacher` below writes down
STUDENT = {
    "family": "parallel_wavenet",
    "model": {
        "dilations": [[1, 2, 4], [1, 2]], "residual_channels": 8, "gate_channels": 16, "skip_channels": 8, "front_kernel": 4,
        "delay_input": True, "cin_channels": 10, "upsample_net": "ConvInUpsampleNetwork",
        "upsample_params": {"upsample_scales": [5, 8], "cin_pad": 1},
    },
    "teacher_upsampler": True,
    "spectral": {"loss": "frame", "n_fft": 64, "hop_length": 16, "weight": 0.05},
    "mel": {**RECIPE["mel"], "name": "tacotron"},
    "training": {**TRAINING, "learning_rate": 5e-3},
}
LOGISTIC = {
    **STUDENT,
    "model": {**STUDENT["model"], "skip_channels": 0, "distribution": "logistic", "scale": "softplus"},
    "spectral": {"loss": "power", "n_fft": 64, "hop_length": 16, "power": 1.0, "weight": 0.05},
    "teacher_upsampler": False,
    "monte_carlo": 2,
    "contrastive": 0.1,
}
every_family = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech")
    t = np.arange(4000) / 4000
    for part, pitches in (("train", (110, 150, 190)), ("heldout", (130,))):
        (folder / part).mkdir()
        for f in pitches:
            wave = 0.4 * np.sin(2 * np.pi * f * t * (1 + 0.1 * t)) * np.exp(-t)
            write_wav(folder / part / f"{f}.wav", wave.astype(np.float32), 4000)
    return folder


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Model folders of WaveNets that have hardly learnt: what a student is told by them is smooth."""
    folder = tmp_path_factory.mktemp("teachers")
    for name, changes in (("gaussian", {"out_channels": 2, "output_distribution": "Normal"}), ("logistic", {"out_channels": 6})):
        torch.manual_seed(3)
        model = WaveNet(**{**RECIPE["model"], "scalar_input": True, **changes})
        mel = MelConfig.preset(**RECIPE["mel"], mean=(-3.0,) * 10, scale=(2.0,) * 10)
        model.preprocessing = Preprocessing(mel, preemphasis=0.85, gain=2.0)
        model.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("kind", ["gaussian", "logistic"])
def test_students_learn_from_teachers(data, teachers, tmp_path, kind):
    recipe = {**(STUDENT if kind == "gaussian" else LOGISTIC), "teacher": str(teachers / kind)}
    recipe["training"] = {**recipe["training"], "ema_decay": 0.5, "weight_norm": kind == "gaussian"}
    trainer = Trainer(recipe, data, tmp_path / "out")
    before, teacher = trainer.validate(), load(teachers / kind)
    trainer.train()
    after = trainer.validate()
    assert after < before - 0.05 * abs(before)
    model = load(tmp_path / "out" / "model")
    assert model.family == "parallel_wavenet" and model.preprocessing.mel == teacher.preprocessing.mel
    assert model.preprocessing.preemphasis == 0.85 and model.preprocessing.gain == 2.0
    wave = trainer.task.sample(model, trainer.heldout.mels[0])
    assert np.isfinite(wave).all() and wave.std() > 1e-4 and len(wave) == trainer.heldout.mels[0].shape[1] * 40
    same = [torch.allclose(a, b) for a, b in zip(model.upsample_net.parameters(), teacher.upsample_net.parameters())]
    assert all(same) == (kind == "gaussian")  # the copy is frozen; an upsampler of the student's own learns
    assert all(torch.equal(v, trainer.task.teacher.state_dict()[k]) for k, v in teacher.state_dict().items())


def test_a_students_spectra_at_several_resolutions(data, teachers, tmp_path):
    """Parallel WaveGAN's loss, of the same pair."""
    sizes = {"fft_sizes": [64, 128], "hop_sizes": [16, 32], "win_lengths": [48, 96]}
    recipe = {**STUDENT, "teacher": str(teachers / "gaussian"), "spectral": {"loss": "stft", "weight": 3.0, **sizes}}
    trainer = Trainer(recipe, data, tmp_path)
    waves, mels = torch.randn(2, 400), torch.randn(2, 10, 12)
    student = trainer.model
    made = []
    run = lambda z, mel: made.append(student(z, mel)) or made[0]
    spectral = trainer.task.losses("model", {"model": run}, waves, mels, Draws(0, 0, 2), 0)["spectral"]
    first = student.config.first_sample
    want = 3 * sum(multi_resolution_stft_loss(made[0][0][:, first:], waves[:, first:], **sizes))
    assert torch.allclose(spectral, want, rtol=1e-4)


def test_a_student_resumes(data, teachers, tmp_path, monkeypatch):
    monkeypatch.setattr("fastvoc.training.trainer.REPORT_EVERY", 1)
    recipe, rows = {**LOGISTIC, "teacher": str(teachers / "logistic")}, {"whole": [], "parts": []}
    Trainer(recipe, data, tmp_path / "whole").train(until=4, progress=rows["whole"].append)
    Trainer(recipe, data, tmp_path / "parts").train(until=2, progress=rows["parts"].append)
    Trainer(recipe, data, tmp_path / "parts").train(until=4, progress=rows["parts"].append)
    assert [r["parts"] for r in rows["whole"]] == [r["parts"] for r in rows["parts"]]
    assert set(rows["whole"][0]["parts"]) == {"distillation", "spectral"}


def test_teachers_that_cannot_teach(data, teachers, tmp_path):
    with pytest.raises(ConfigError, match="distilled from a trained WaveNet.*--teacher"):
        Trainer(STUDENT, data, tmp_path)
    with pytest.raises(ConfigError, match="needs a teacher with the head 'gaussian'"):
        Trainer({**STUDENT, "teacher": str(teachers / "logistic")}, data, tmp_path).train(until=1)
    with pytest.raises(ConfigError, match="another mel convention"):
        Trainer({**STUDENT, "teacher": str(WAVENET)}, data, tmp_path)
    other = {**STUDENT["model"], "upsample_params": {"upsample_scales": [8, 5], "cin_pad": 1}}
    with pytest.raises(ConfigError, match="not built as its teacher's"):
        Trainer({**STUDENT, "model": other, "teacher": str(teachers / "gaussian")}, data, tmp_path)
    with pytest.raises(ConfigError, match="spectral loss: got 'mel'"):
        Trainer({**STUDENT, "spectral": {"loss": "mel"}}, data, tmp_path)


def weights_of(trainer):
    return {k: v.clone() for k, v in trainer.model.state_dict().items()}


def test_learns_and_leaves_everything_behind(data, tmp_path):
    trainer = Trainer(RECIPE, data, tmp_path / "out")
    rows = []
    trainer.train(progress=rows.append)
    out = tmp_path / "out"
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert trainer.step == 40 and log == rows
    assert log[-1]["validation_loss"] < np.log(32) - 0.3  # better than knowing nothing
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "samples" / "step0000040.wav").stat().st_size > 4000
    model = load(out / "model")
    assert model.preprocessing.preemphasis == 0.85 and model.preprocessing.temperature == 0.9
    assert len(model.preprocessing.mel.mean) == 10
    for name, value in model.state_dict().items():
        assert torch.equal(value, trainer.average[name])
    assert any(not torch.equal(v, trainer.average[k]) for k, v in trainer.model.state_dict().items())


@every_family
def test_resuming_changes_nothing(data, tmp_path, recipe, monkeypatch):
    monkeypatch.setattr("fastvoc.training.trainer.REPORT_EVERY", 1)
    recipe = {**recipe, "training": {**recipe["training"], "sample_every": 14}}
    rows = {"whole": [], "parts": []}
    whole = Trainer(recipe, data, tmp_path / "whole")
    whole.train(until=14, progress=rows["whole"].append)
    Trainer(recipe, data, tmp_path / "parts").train(until=9, progress=rows["parts"].append)
    resumed = Trainer(recipe, data, tmp_path / "parts")
    assert resumed.step == 9
    resumed.train(until=14, progress=rows["parts"].append)
    assert [(r["step"], r["loss"], r["parts"]) for r in rows["whole"]] == [
        (r["step"], r["loss"], r["parts"]) for r in rows["parts"]
    ]
    assert whole.modules.keys() == resumed.modules.keys()
    for network, module in whole.modules.items():
        for name, value in module.state_dict().items():
            assert torch.equal(value, resumed.modules[network].state_dict()[name]), name
    for name, value in whole.average.items():
        assert torch.equal(value, resumed.average[name]), name


@every_family
def test_every_family_learns_and_is_loadable(data, tmp_path, recipe):
    trainer = Trainer({**recipe, "training": {**recipe["training"], "ema_decay": 0.5}}, data, tmp_path / "out")
    before = trainer.validate()
    trainer.train()
    assert trainer.validate() < 0.95 * before
    model = load(tmp_path / "out" / "model")
    assert model.family == recipe["family"] and model.hop_length == 40 and model.preprocessing.mel == trainer.task.mel
    wave = trainer.task.sample(model, trainer.heldout.mels[0])
    assert np.isfinite(wave).all() and wave.std() > 1e-4
    assert len(wave) == trainer.heldout.mels[0].shape[1] * 40
    assert (tmp_path / "out" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_parallel_wavegan_is_adversarial_from_its_step_on(data, tmp_path, monkeypatch):
    monkeypatch.setattr("fastvoc.training.trainer.REPORT_EVERY", 1)
    trainer, rows = Trainer(RECIPES["parallel_wavegan"], data, tmp_path), []
    judge = copy.deepcopy(trainer.modules["discriminator"].state_dict())
    same = lambda: all(torch.equal(v, judge[k]) for k, v in trainer.modules["discriminator"].state_dict().items())
    trainer.train(until=7, progress=rows.append)
    assert same() and set(rows[-1]["parts"]) == {"spectral_convergence", "log_magnitude"}
    trainer.train(until=8, progress=rows.append)
    parts = rows[-1]["parts"]
    assert not same() and set(parts) - set(rows[0]["parts"]) == {"adversarial", "feature_matching", "real", "fake"}
    models = ("spectral_convergence", "log_magnitude", "adversarial", "feature_matching")
    assert rows[-1]["loss"] == pytest.approx(sum(parts[name] for name in models))


def test_waveglow_with_the_memory_of_one_flow_learns_the_same(data, tmp_path):
    recipe = RECIPES["waveglow"]
    efficient = {**recipe, "training": {**recipe["training"], "memory_efficient": True}}
    stored, inverted = Trainer(recipe, data, tmp_path / "a"), Trainer(efficient, data, tmp_path / "b")
    stored.train(until=3), inverted.train(until=3)
    for name, value in weights_of(stored).items():
        assert torch.allclose(value, inverted.model.state_dict()[name], atol=1e-4), name


def test_parallel_wavegan_keeps_its_statistics_and_folds_its_weight_norm(data, tmp_path):
    trainer = Trainer(RECIPES["parallel_wavegan"], data, tmp_path)
    trainer.train(until=2)
    model = trainer.averaged_model()
    assert model.mel_config.mean is None and model.mean.tolist() == pytest.approx(trainer.statistics[0])
    z, c = torch.randn(1, 1, 320), torch.randn(1, 10, 10)
    want = fixed(trainer.model, trainer.average)(z, c)
    assert any(name.endswith("original0") for name in trainer.average)
    assert torch.allclose(model(z, c), want, atol=1e-5) and want.std() > 1e-3


def test_a_frozen_network_passes_gradients_on_and_takes_none():
    layer, x = torch.nn.Linear(3, 3), torch.randn(2, 3, requires_grad=True)
    fixed(layer)(x).sum().backward()
    assert x.grad.abs().sum() > 0 and layer.weight.grad is None


def test_dither_goes_to_inputs_and_targets_alike():
    """Of silence: a predictor that answers its input, the sample before, must see the noise, and be judged by it."""
    recipe = {**RECIPE, "model": {**RECIPE["model"], "scalar_input": True, "out_channels": 2, "output_distribution": "Normal"}}
    seen = []

    def predict(x, mel):
        seen.append(x[:, 0])
        return torch.stack([x[:, 0], torch.full_like(x[:, 0], -4.0)], 1)

    losses = {}
    for dither in (0.0, 0.1):
        task = WaveNetTask({**recipe, "training": {**recipe["training"], "dither": dither}})
        draws = Draws(0, 0, 2)
        losses[dither] = float(task.losses("model", {"model": predict}, torch.zeros(2, 4000), None, draws, 0)["likelihood"])
    assert not seen[0].any() and abs(float(seen[1].std()) - 0.1) < 0.01
    # the difference of two neighbours has twice the variance
    assert losses[0.1] - losses[0.0] == pytest.approx(0.1**2 / math.exp(-8), rel=0.05)


def test_dither_of_a_flow():
    """A flow that is the identity: the likelihood of what it is shown."""
    recipe = {**RECIPES["waveglow"]}
    losses = {}
    for dither in (0.0, 0.1):
        task = WaveGlowTask({**recipe, "training": {**recipe["training"], "dither": dither}})
        identity = lambda waves, mels, saving: (waves[:, None], [torch.zeros(2, 1, 4000)], [torch.zeros(())])
        draws = Draws(0, 0, 2)
        losses[dither] = float(task.losses("model", {"model": identity}, torch.zeros(2, 4000), None, draws, 0)["likelihood"])
    assert losses[0.0] == 0 and losses[0.1] == pytest.approx(0.1**2 / 2, rel=0.05)


def test_without_matplotlib_a_training_has_no_picture_but_everything_else(data, tmp_path, monkeypatch, caplog):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None if name == "matplotlib" else find(name, *args))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    Trainer(RECIPE, data, tmp_path).train(20)
    assert not (tmp_path / "curve.png").exists() and "matplotlib is not installed" in caplog.text
    assert "validation_loss" in (tmp_path / "log.jsonl").read_text() and load(tmp_path / "model")


def test_draws_do_not_depend_on_who_shares_the_batch():
    whole, halves = Draws(1, 5, 4), [Draws(1, 5, 4, slice(i, i + 2)) for i in (0, 2)]
    for draw in (lambda d: d.normal(3), lambda d: d.uniform(2, 2), lambda d: d.integers(9)):
        assert torch.equal(draw(whole), torch.cat([draw(half) for half in halves]))
    assert not torch.equal(Draws(1, 6, 4).normal(3), Draws(1, 5, 4).normal(3))


SHARED = """
import json, sys, torch
from fastvoc.training.trainer import Trainer
torch.set_num_threads(1)
for recipe in json.loads(sys.argv[1]):
    Trainer(recipe, sys.argv[2], f"{sys.argv[3]}/{recipe['family']}").train(until=3)
torch.distributed.destroy_process_group()
"""


def test_two_processes_take_the_steps_of_one(data, tmp_path):
    script, recipes = tmp_path / "shared.py", copy.deepcopy(list(RECIPES.values()))
    recipes[1]["training"]["discriminator"]["start"] = 1
    script.write_text(SHARED)
    for recipe in recipes:
        (tmp_path / "two" / recipe["family"]).mkdir(parents=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, str(script), json.dumps(recipes), str(data), str(tmp_path / "two")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    for recipe in recipes:
        one = Trainer(recipe, data, tmp_path / "one" / recipe["family"])
        before, start = copy.deepcopy(one), weights_of(one)
        one.train(until=3)
        two = Trainer(recipe, data, tmp_path / "two" / recipe["family"])
        assert two.step == 3
        if recipe["family"] == "parallel_wavegan":  # the norms of its spectral convergence are each process's own
            judges = [trainer.modules["discriminator"].state_dict() for trainer in (before, one, two)]
            apart = lambda a, b: max((v - judges[b][k]).abs().max() for k, v in judges[a].items())
            assert apart(1, 2) < 0.1 * apart(0, 1)
            continue
        for name, value in weights_of(one).items():
            assert torch.allclose(value, two.model.state_dict()[name], rtol=0, atol=1e-5), name
        assert max((v - start[k]).abs().max() for k, v in weights_of(one).items()) > 1e-3


def test_a_batch_that_cannot_be_shared(data, tmp_path, monkeypatch):
    monkeypatch.setattr("fastvoc.training.processes.join", lambda device: (0, 3))
    with pytest.raises(ConfigError, match="batch_size 2 cannot be shared by 3"):
        Trainer(RECIPE, data, tmp_path)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_interrupt_saves(data, tmp_path, monkeypatch, stop):
    trainer = Trainer(RECIPE, data, tmp_path / "out")
    update = trainer._update

    def interrupted():
        if trainer.step == 7:
            raise stop
        return update()

    monkeypatch.setattr(trainer, "_update", interrupted)
    with pytest.raises(stop):
        trainer.train()
    again = Trainer(RECIPE, data, tmp_path / "out")
    assert again.step == 7
    again.train(until=9)
    straight = Trainer(RECIPE, data, tmp_path / "straight")
    straight.train(until=9)
    assert all(torch.equal(v, again.model.state_dict()[k]) for k, v in weights_of(straight).items())


def test_statistics_belong_to_the_training(data, tmp_path):
    first = Trainer(RECIPE, data, tmp_path / "out")
    first.train(until=1)
    other = tmp_path / "other"
    other.mkdir()
    write_wav(other / "noise.wav", np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32), 4000)
    resumed = Trainer(RECIPE, other, tmp_path / "out")
    assert resumed.task.mel == first.task.mel


@every_family
def test_starting_from_a_model(data, tmp_path, recipe):
    """--init: its weights and its mels' statistics are where the training starts; another configuration is refused."""
    first = Trainer(recipe, data / "train", tmp_path / "first")
    first.train(2)
    other = tmp_path / "another voice"
    other.mkdir()
    write_wav(other / "a.wav", 0.01 * np.random.default_rng(5).standard_normal(8000).astype(np.float32), 4000)
    second = Trainer(recipe, other, tmp_path / "second", init=tmp_path / "first/model")
    assert second.step == 0 and second.task.mel == first.task.mel
    model, start = second.averaged_model(), first.averaged_model()
    for name, value in start.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-6)  # weight norm: folded, spelt anew
    second.train(1)
    assert Trainer(recipe, other, tmp_path / "second", init=tmp_path / "nowhere").step == 1  # a resumed one does not read it
    size = {"waveglow": "n_channels"}.get(recipe["family"], "residual_channels")
    wider = {**recipe, "model": {**recipe["model"], size: 4}}
    with pytest.raises(ConfigError, match="to start from"):
        Trainer(wider, data / "train", tmp_path / "third", init=tmp_path / "first/model")


def test_a_wavenet_grows_by_layers_that_add_nothing_at_first(data, tmp_path):
    small = Trainer(RECIPE, data, tmp_path / "small")
    small.train(6)
    deeper = {**RECIPE, "model": {**RECIPE["model"], "layers": 5, "dilations": [1, 2, 1, 4, 2]}}
    grown = Trainer(deeper, data, tmp_path / "grown", init=tmp_path / "small/model")
    assert grown.task.config.skip_scale != small.task.config.skip_scale
    assert grown.validate() == pytest.approx(small.validate(), rel=1e-5)
    grown.train(1)
    for layer in grown.model.conv_layers[2:]:
        assert layer.conv1x1_skip.weight.any()  # they learn
    others = {**deeper, "model": {**deeper["model"], "dilations": [1, 3, 1, 4, 2]}}
    with pytest.raises(ConfigError, match="to start from"):
        Trainer(others, data, tmp_path / "others", init=tmp_path / "small/model")


def test_damaged_state(data, tmp_path):
    (tmp_path / "state.pt").write_bytes(b"not a state")
    with pytest.raises(CorruptCheckpointError, match="state.pt"):
        Trainer(RECIPE, data, tmp_path)


def test_bad_recipes_and_data(data, tmp_path):
    with pytest.raises(ConfigError, match="unknown family 'tacotron'"):
        Trainer({**RECIPE, "family": "tacotron"}, data, tmp_path)
    with pytest.raises(ConfigError, match="residual_channels"):
        Trainer({**RECIPE, "model": {**RECIPE["model"], "residual_chanels": 8}}, data, tmp_path)
    with pytest.raises(ConfigError, match="no device 'gpu'"):
        Trainer(RECIPE, data, tmp_path, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="no GPU.*--device cpu"):
            Trainer(RECIPE, data, tmp_path, device="cuda")
    with pytest.raises(ConfigError, match="optimizer: got 'SGDW'"):
        Trainer({**RECIPE, "training": {**RECIPE["training"], "optimizer": "SGDW"}}, data, tmp_path)
    with pytest.raises(ConfigError, match="precision: got 'fp8'"):
        Trainer({**RECIPE, "training": {**RECIPE["training"], "precision": "fp8"}}, data, tmp_path)
    with pytest.raises(ConfigError, match="10 bands and a hop of 20, its model takes 10 bands and makes 40"):
        Trainer({**RECIPE, "mel": {**RECIPE["mel"], "hop_length": 20}}, data, tmp_path)
    adversarial = RECIPES["parallel_wavegan"]
    for changes, words in (
        ({"discriminator": {"type": "Judge"}}, "discriminator type: got 'Judge'"),
        ({"discriminator": {"colour": 1}}, "does not fit"),
        ({"training": RECIPE["training"]}, "training.discriminator.start"),
    ):
        with pytest.raises(ConfigError, match=words):
            Trainer({**adversarial, **changes}, data, tmp_path)
    short = {k: v for k, v in RECIPE["training"].items() if k != "seed"}
    with pytest.raises(ConfigError, match="seed"):
        Trainer({**RECIPE, "training": short}, data, tmp_path)
    with pytest.raises(AudioError, match="no .wav file"):
        Trainer(RECIPE, tmp_path, tmp_path / "out")


def test_learning_rate_warms_up_then_halves():
    options = RECIPE["training"]
    assert learning_rate(0, options) == pytest.approx(2e-3)
    assert learning_rate(1000, options) == pytest.approx(5e-3)
    assert learning_rate(100_000, options) == pytest.approx(1e-4)


@every_family
def test_networks_end_in_full_precision(data, tmp_path, recipe):
    """Sound, noise and distributions that were rounded to eight bits are what a loss then sees."""
    trainer = Trainer({**recipe, "training": {**recipe["training"], "precision": "bf16"}}, data, tmp_path)
    network, dtypes = trainer.networks["model"], set()

    def recorded(*args):
        outputs = network(*args)
        dtypes.update(t.dtype for t in torch.utils._pytree.tree_leaves(outputs) if isinstance(t, torch.Tensor))
        return outputs

    trainer.networks["model"] = recorded
    trainer._update()
    assert dtypes == {torch.float32}


@every_family
def test_mixed_precision_takes_nearly_the_same_steps(data, tmp_path, recipe):
    mixed = {**recipe, "training": {**recipe["training"], "precision": "bf16"}}
    exact, rounded = Trainer(recipe, data, tmp_path / "a"), Trainer(mixed, data, tmp_path / "b")
    for _ in range(4):  # WaveGlow's couplings start as the identity, which rounding leaves alone
        a, b = exact._update()["loss"], rounded._update()["loss"]
    assert all(p.dtype == torch.float32 for p in rounded.model.parameters()) and b.dtype == torch.float32
    assert 0 < (a - b).abs() < 0.03 * a.abs() + 0.03
