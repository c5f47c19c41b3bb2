"""fastvoc inspect and convert: what a checkpoint or a mel is said to be, and the model folder that is made of it."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import torch

import fastvoc
from fastvoc.audio.convention import kind_of, looks_like
from fastvoc.audio.mel import MelConfig
from fastvoc.checkpoints import n_parameters, recognise
from fastvoc.cli import main
from tests import lookalikes
from tests.goldens import Golden

torch.set_num_threads(1)

# case, file (None: the folder), family, layout's beginning, what is dropped
BESIDE = ["optimizer", "global_step", "global_epoch"]
TEACHER = "teacher_checkpoint_step000654321_ema.pth"
CHECKPOINTS = [
    ("wavenet-r9y9-a", None, "wavenet", "r9y9", [*BESIDE, "global_test_step"]),
    ("nv-wavenet-a", "wavenet_120000", "wavenet", "nv-wavenet", ["iteration", "optimizer", "learning_rate"]),
    ("nv-wavenet-a", "model.pt", "wavenet", "nv-wavenet", []),
    ("diffwave-lmnt-a", None, "diffwave", "lmnt", ["step", "optimizer", "scaler"]),
    ("diffwave-philsyn-a", None, "diffwave", "philsyn", ["optimizer_state_dict"]),
    ("pwg-a", None, "parallel_wavegan", "kan-bayashi", ["optimizer", "scheduler", "steps", "epochs", "model.discriminator"]),
    ("waveglow-a", "waveglow_256channels_a.pt", "waveglow", "WaveGlow", ["iteration", "optimizer", "learning_rate"]),
    ("waveglow-a", "waveglow_tiny_legacy.pt", "waveglow", "WaveGlow", ["iteration"]),
    ("clarinet-a", TEACHER, "wavenet", "ksw0306/ClariNet", BESIDE),
    ("clarinet-a", "student_checkpoint_step000210000_ema.pth", "parallel_wavenet", "ksw0306/ClariNet", BESIDE),
]


def test_parameters_are_counted_as_published(tmp_path):
    """Of lmnt's model of 64 channels and of Parallel WaveGAN's first, with weight norm in place."""
    params = {"residual_channels": 64, "residual_layers": 30, "dilation_cycle_length": 10, "n_mels": 80, "noise_schedule": [0.1]}
    torch.save({"model": lookalikes.LmntDiffWave(params).state_dict(), "params": params, "step": 1}, tmp_path / "weights.pt")
    _, reader, contents = recognise(tmp_path / "weights.pt")
    assert n_parameters(reader, contents) == 2_619_971
    net = lookalikes.ConvInUpsampleNetwork(80, 2, [4, 4, 4, 4])
    generator = lookalikes.PwgGenerator(net=net, R=64, G=128, S=64, n_mels=80, layers=30, stacks=3).state_dict()
    state = {"generator": generator, "discriminator": {"conv.weight": torch.ones(3)}}
    torch.save({"model": state, "optimizer": {"exp_avg": torch.ones(9)}}, tmp_path / "checkpoint.pkl")
    _, reader, contents = recognise(tmp_path / "checkpoint.pkl")
    assert n_parameters(reader, contents) == 1_334_309


@pytest.mark.parametrize("case, name, family, layout, dropped", CHECKPOINTS)
def test_inspect_and_convert(tmp_path, call, case, name, family, layout, dropped):
    pytest.importorskip("yaml")
    pytest.importorskip("h5py")
    path = Golden(case).folder if name is None else Golden(case).path(name)
    options = {"teacher": path.parent / TEACHER} if name and name.startswith("student") else {}
    line = [part for key, value in options.items() for part in (f"--{key}", value)]
    code, said, _ = call("inspect", path, "--json", *line)
    facts = json.loads(said)
    model = fastvoc.load(path, **options)
    assert (code, facts["family"]) == (0, family) and facts["layout"].startswith(layout)
    ours = sum(p.numel() for p in model.parameters())  # rewriting joins biases and fills missing rows with zeros
    assert 0.97 * ours < facts["parameters"] < 1.05 * ours
    assert (facts["sample_rate"], facts["hop_length"], facts["n_mels"]) == (model.sample_rate, model.hop_length, model.n_mels)
    assert sorted(facts["dropped"]) == sorted(dropped)
    if model.mel_config is not None:
        assert facts["mel_convention"]["log"] == model.mel_config.log
    code, said, _ = call("inspect", path, *line)
    assert code == 0 and facts["layout"] in said and "config " in said

    target = tmp_path / "model"
    code, said, err = call("convert", path, target, *line)
    assert (code, said) == (0, "") and layout in err and os.listdir(tmp_path) == ["model"]
    made = fastvoc.load(target)
    assert made.config == model.config and made.preprocessing == model.preprocessing
    assert all(torch.equal(value, made.state_dict()[key]) for key, value in model.state_dict().items())
    from safetensors import safe_open

    with safe_open(target / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    source = path / metadata["source"] if path.is_dir() else path
    assert metadata["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert json.loads(call("inspect", target, "--json")[1])["layout"].startswith("fastvoc's model folder")


def test_convert_replaces_only_what_it_made(tmp_path, call):
    source = Golden("nv-wavenet-a").path("wavenet_120000")
    target = tmp_path / "model"
    assert call("convert", source, target)[0] == 0
    before = (target / "config.json").read_bytes()
    (target / "config.json").write_text("{}")
    code, _, err = call("convert", source, target)
    assert code == 1 and "exists" in err and "hint: --overwrite" in err and (target / "config.json").read_text() == "{}"
    assert call("convert", source, target, "--overwrite")[0] == 0 and (target / "config.json").read_bytes() == before
    (target / "mine.txt").write_text("x")
    code, _, err = call("convert", source, target, "--overwrite")
    assert code == 1 and "is no model folder" in err and (target / "mine.txt").exists()
    (target / "mine.txt").unlink()
    code, _, err = call("convert", target, tmp_path / "again")
    assert code == 1 and "already" in err
    code, _, err = call("convert", tmp_path / "modle", tmp_path / "again")
    assert code == 1 and "did you mean model?" in err
    code, _, err = call("convert", source, tmp_path / "no" / "again")
    assert code == 1 and "does not exist" in err
    assert os.listdir(tmp_path) == ["model"]


def test_a_conversion_that_fails_leaves_nothing(tmp_path, call, monkeypatch):
    source, target = Golden("nv-wavenet-a").path("wavenet_120000"), tmp_path / "model"
    assert call("convert", source, target)[0] == 0
    before = sorted((file.name, file.read_bytes()) for file in target.iterdir())

    def full(*_, **__):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr("safetensors.torch.save_file", full)
    code, _, err = call("convert", source, target, "--overwrite")
    assert code == 1 and "No space left" in err
    assert sorted((file.name, file.read_bytes()) for file in target.iterdir()) == before and os.listdir(tmp_path) == ["model"]


def test_conversion_in_a_sandbox(tmp_path, capfd):
    source = Golden("nv-wavenet-a").path("wavenet_120000")
    assert main(["convert", str(source), str(tmp_path / "model"), "--sandbox", "2", "--quiet"]) == 0
    assert fastvoc.load(tmp_path / "model").config.layers == 6
    torch.save({"a": torch.zeros(60_000_000)}, tmp_path / "large.pt")
    assert main(["convert", str(tmp_path / "large.pt"), str(tmp_path / "no"), "--sandbox", "0.1"]) == 1
    said = capfd.readouterr().err
    assert "takes more memory than there is" in said and "Traceback" not in said
    assert sorted(os.listdir(tmp_path)) == ["large.pt", "model"]


def test_options_reach_the_reader(tmp_path, call):
    golden = Golden("nv-wavenet-a")
    from fastvoc.checkpoints import read_file

    torch.save(read_file(golden.path("wavenet_120000"))["model"].state_dict(), tmp_path / "bare.pt")
    code, _, err = call("convert", tmp_path / "bare.pt", tmp_path / "model")
    assert code == 1 and "hint: Pass max_dilation=" in err
    line = ["convert", tmp_path / "bare.pt", tmp_path / "model", "--reader", "max_dilation=8"]
    assert call(*line, "--reader", "upsample_stride=40")[0] == 0
    assert fastvoc.load(tmp_path / "model").config.dilations == [1, 2, 4, 8, 1, 2]
    code, _, err = call(*line, "--teacher", "x.pth", "--overwrite")
    assert code == 1 and "unknown option 'teacher'" in err
    assert call(*line, "--reader", "nonsense")[0] == 2
    assert "it takes none" in call("inspect", golden.path("model.pt").parent.parent / "wavenet-r9y9-a", "--reader", "a=1")[2]


def test_inspect_shortens_a_noise_schedule(call):
    said = call("inspect", Golden("diffwave-lmnt-a").path("weights-1000578.pt"))[1]
    assert "0.0001, 0.00111837, 0.00213673, …, 0.05 (50 in all)" in said
    assert max(map(len, said.splitlines())) < 200


def test_inspect_says_what_is_wrong(tmp_path, call):
    (tmp_path / "x.pt").write_bytes(b"<html>")
    assert "looks like an HTML page" in call("inspect", tmp_path / "x.pt")[2]
    code, _, said = call("inspect")
    assert code == 2 and "there is nothing to inspect" in said
    assert "no such file" in call("inspect", tmp_path / "no")[2]
    np.save(tmp_path / "x.npy", np.full((3, 4), np.nan, np.float32))
    assert "NaN" in call("inspect", "--mel", tmp_path / "x.npy")[2]


# ---- mels ----------------------------------------------------------------------------------------------------------

LOOKS = {"tacotron_22050": "ln", "tacotron_16000": "ln", "lmnt_22050": "unit", "pwg_22050": "log10", "r9y9_22050": "log10",
         "r9y9_2018_22050": "unit", "clarinet_22050": "unit", "bfs18_16000": "unit"}


@pytest.mark.parametrize("name, kind", LOOKS.items())
@pytest.mark.parametrize("part", ["all", "speech"])
def test_public_mels_look_like_themselves(name, kind, part):
    golden = Golden("mel-a")
    mel = golden[name]
    mel = mel if mel.shape[0] == 80 else mel.T
    if part == "speech":  # without the stretch of digital silence, no floor tells
        mel = mel[:, mel.min(0) > mel.min() + 1e-3]
        assert mel.shape[1] > 50 or name.startswith("clarinet")
    if mel.shape[1] > 50:
        assert looks_like(mel) == kind


def test_other_conventions_are_told_apart():
    mel = Golden("mel-a")["pwg_22050"].T
    mean, deviation = mel.mean(1, keepdims=True), mel.std(1, keepdims=True)
    assert looks_like((mel - mean) / deviation) == "normalised"
    assert looks_like(20 * mel) == "decibels" and looks_like(10**mel) == "linear"
    assert kind_of(MelConfig.preset("r9y9", mean=(0.0,) * 80, scale=(1.0,) * 80)) == "normalised"
    for preset, kind in (("tacotron", "ln"), ("parallel_wavegan", "log10"), ("lmnt", "unit"), ("bfs18", "unit")):
        assert kind_of(MelConfig.preset(preset)) == kind


def test_inspect_of_a_mel(tmp_path, call):
    np.save(tmp_path / "x.npy", Golden("mel-a")["tacotron_22050"])
    code, said, _ = call("inspect", "--mel", tmp_path / "x.npy")
    assert code == 0 and "It looks like ln: natural logarithm (tacotron" in said and "-11.513" in said
    folder = tmp_path / "r9y9"
    shutil.copytree(Golden("wavenet-r9y9-a").folder, folder)
    code, said, _ = call("inspect", folder, "--mel", tmp_path / "x.npy")
    assert code == 0 and "The model takes normalised, not ln." in said
    facts = json.loads(call("inspect", "--mel", tmp_path / "x.npy", "--json")[1])["mel"]
    assert facts["looks_like"] == "ln" and facts["shape"] == [80, 173] and facts["declared"] is None
