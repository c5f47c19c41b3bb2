"""What comes along: the recipes, the sentences, and the models that were trained with them."""

import json
from pathlib import Path

import pytest

from fastvoc.cli.train import read_recipe
from fastvoc.demo import bundled_models
from fastvoc.models import load
from fastvoc.training.make_speech import TEXT
from fastvoc.training.trainer import OPTIONS, TASKS

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "fastvoc" / "training" / "recipes").glob("*.json")))
def test_recipes_that_come_with_fastvoc(name):
    recipe = read_recipe(name, name.rpartition("-")[0])
    task = TASKS[recipe["family"]](recipe)
    task.set_statistics([0.0] * task.mel.n_mels, [1.0] * task.mel.n_mels)
    assert all(option in recipe["training"] for option in OPTIONS)
    assert "model" in task.networks() and set(task.phases(10**9)) <= set(task.networks())
    longest_window = max(recipe.get("stft", {}).get("fft_sizes", [1]))
    assert recipe["training"]["segment_frames"] * task.mel.hop_length > longest_window // 2


def test_text_lists():
    train, heldout = ((TEXT / f"{part}.txt").read_text().splitlines() for part in ("train", "heldout"))
    assert len(train) >= 400 and len(heldout) >= 20
    assert len({*train, *heldout}) == len(train) + len(heldout)


@pytest.mark.parametrize("folder", bundled_models().values(), ids=list(bundled_models()))
def test_bundled_models_load_and_say_how_they_were_made(folder):
    model = load(folder)
    assert model.family == folder.name and model.preprocessing.mel.sample_rate == 16000
    recipe = read_recipe(f"{folder.name}-demo", folder.name)
    assert model.config == TASKS[folder.name](recipe).config
    mean = json.loads((folder / "quality.json").read_text())[0]["mean"]
    assert mean["stoi"] > 0.8 and mean["pesq_wb"] > 1.3
    assert json.loads((folder / "training.json").read_text())["legs"]
    steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert (folder / "curve.png").is_file() and (folder / "model.safetensors").stat().st_size < 5e6
