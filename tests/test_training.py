"""The trainer: learns, resumes as if it had never stopped, keeps what it has when interrupted."""

import json

import numpy as np
import pytest
import torch

from fastvoc.audio import write_wav
from fastvoc.demo import WAVENET
from fastvoc.errors import AudioError, ConfigError, CorruptCheckpointError
from fastvoc.models import load
from fastvoc.training.make_speech import TEXT
from fastvoc.training.trainer import Trainer, learning_rate

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


def test_resuming_changes_nothing(data, tmp_path):
    whole = Trainer(RECIPE, data, tmp_path / "whole")
    whole.train(until=14)
    Trainer(RECIPE, data, tmp_path / "parts").train(until=5)
    resumed = Trainer(RECIPE, data, tmp_path / "parts")
    assert resumed.step == 5
    resumed.train(until=14)
    for name, value in weights_of(whole).items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
        assert torch.equal(whole.average[name], resumed.average[name]), name


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


def test_damaged_state(data, tmp_path):
    (tmp_path / "state.pt").write_bytes(b"not a state")
    with pytest.raises(CorruptCheckpointError, match="state.pt"):
        Trainer(RECIPE, data, tmp_path)


def test_bad_recipes_and_data(data, tmp_path):
    with pytest.raises(ConfigError, match="unknown family 'tacotron'"):
        Trainer({**RECIPE, "family": "tacotron"}, data, tmp_path)
    with pytest.raises(ConfigError, match="residual_channels"):
        Trainer({**RECIPE, "model": {**RECIPE["model"], "residual_chanels": 8}}, data, tmp_path)
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


def test_text_lists():
    train, heldout = ((TEXT / f"{part}.txt").read_text().splitlines() for part in ("train", "heldout"))
    assert len(train) >= 400 and len(heldout) >= 20
    assert len({*train, *heldout}) == len(train) + len(heldout)


def test_bundled_model_loads():
    model = load(WAVENET)
    assert model.preprocessing.mel.sample_rate == 16000
