"""fastvoc inspect: what a checkpoint is, before it is used; and which convention a mel looks like."""

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np

import fastvoc
from fastvoc.audio.convention import KINDS, kind_of, looks_like, statistics
from fastvoc.checkpoints import dropped, n_parameters, read_recognised, recognise
from fastvoc.cli.features import read_declared, read_npy
from fastvoc.cli.options import add_command, add_reader_options, reader_options
from fastvoc.cli.terminal import print_table
from fastvoc.errors import FeatureError
from fastvoc.models.pretrained import is_model_folder

FOLDER = "fastvoc's model folder (config.json, model.safetensors)"

log = logging.getLogger("fastvoc")


def add(commands) -> None:
    parser = add_command(commands, "inspect", run, "what a checkpoint holds, or which convention a mel looks like")
    parser.add_argument("path", nargs="?", type=Path, metavar="PATH", help="a model folder or a checkpoint file")
    parser.add_argument("--mel", type=Path, metavar="X.npy", help="a mel; beside PATH, compared to what that model takes")
    parser.add_argument("--json", action="store_true", help="the same for programs")
    add_reader_options(parser)
    parser.set_defaults(wrong_call=parser.error)


def run(options) -> None:
    if options.path is None and options.mel is None:
        options.wrong_call("there is nothing to inspect: name a model folder or checkpoint file, or a mel with --mel")
    model, facts = None, {}
    if options.path is not None:
        model, facts = _of_checkpoint(options.path, reader_options(options))
    if options.mel is not None:
        facts["mel"] = _of_mel(options.mel, None if model is None else model.mel_config)
    if options.json:
        print(json.dumps(facts, indent=2))
        return
    rows = []
    for name, value in facts.items():
        inner = value if isinstance(value, dict) else {"": value}
        rows += [(f"{name} {key}".rstrip(), _shown(inner[key])) for key in inner]
    print_table([("", str(options.path or options.mel)), *rows], left=2)
    if "mel" in facts:
        print(f"\n{facts['mel']['verdict']}")


def _of_checkpoint(path: Path, given: dict) -> tuple:
    """(model, facts): the facts are plain JSON values."""
    left_behind = []
    if not path.exists() or is_model_folder(path):
        model, layout = fastvoc.load(path, **given), FOLDER
        parameters = sum(p.numel() for p in model.parameters())
    else:
        path, reader, contents = recognise(path)
        model, layout, left_behind = read_recognised(path, reader, contents, **given), reader.LAYOUT, dropped(reader, contents)
        parameters = n_parameters(reader, contents)
    convention = None
    if model.mel_config is not None:
        convention = model.mel_config.to_dict()
        convention["statistics"] = convention.pop("mean") is not None
        del convention["scale"]
    return model, {
        "file": str(path), "family": model.family, "layout": layout,
        "parameters": parameters,
        "sample_rate": model.sample_rate, "hop_length": model.hop_length, "n_mels": model.n_mels,
        "config": dataclasses.asdict(model.config), "mel_convention": convention, "dropped": left_behind,
    }  # fmt: skip


def _of_mel(path: Path, taken) -> dict:
    values = read_npy(path)
    if not values.size or not np.isfinite(values).all():
        raise FeatureError(f"{path} holds {'no numbers' if not values.size else 'NaN or infinity'}: no mel")
    declared, looks = read_declared(path), looks_like(values)
    facts = {"shape": list(values.shape), **statistics(values), "looks_like": looks, "declared": None}
    if declared is not None:
        facts["declared"] = kind_of(declared.config, declared.normalised)
    verdict = f"It looks like {looks}: {KINDS[looks]}."
    if taken is not None:
        facts["model_takes"] = kind_of(taken)
        same = looks in (kind_of(taken), kind_of(taken, normalised=False))
        verdict += f" The model takes {facts['model_takes']}" + ("." if same else f", not {looks}.")
    return {**facts, "verdict": verdict}


def _shown(value) -> str:
    if isinstance(value, list):
        numbers = [f"{v:.6g}" if isinstance(v, float) else str(v) for v in value]
        if len(numbers) > 12 and isinstance(value[0], float):  # a noise schedule; --json has all of it
            numbers = [*numbers[:3], "…", f"{numbers[-1]} ({len(value)} in all)"]
        return ", ".join(numbers) or "nothing"
    return "unknown" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
