"""The vocoders, one per file, and `load`."""

import difflib
from pathlib import Path

from fastvoc.errors import CheckpointError, ConfigError
from fastvoc.models.diffwave import DiffWave, DiffWaveConfig
from fastvoc.models.parallel_wavegan import ParallelWaveGAN, ParallelWaveGANConfig
from fastvoc.models.preprocessing import Preprocessing
from fastvoc.models.pretrained import from_pretrained, read_json
from fastvoc.models.wavenet import WaveNet, WaveNetConfig
from fastvoc.ops.wavenet_generate import PRECISIONS

MODELS = {"diffwave": DiffWave, "parallel_wavegan": ParallelWaveGAN, "wavenet": WaveNet}

__all__ = [
    "MODELS",
    "DiffWave",
    "DiffWaveConfig",
    "ParallelWaveGAN",
    "ParallelWaveGANConfig",
    "Preprocessing",
    "WaveNet",
    "WaveNetConfig",
    "load",
]


def load(path, device="cpu", precision: str = "fp32", **options):
    """The vocoder of a model folder (config.json, model.safetensors, preprocessor_config.json), or of a checkpoint file
    of a public implementation (fastvoc/checkpoints has one module for each), or the folder where it lies.

    device     where the model is put
    precision  of `infer`, where its call gives none: "fp32" or "bf16"
    options    what a reader asks for, such as teacher=PATH for a ClariNet student

    Raises FileNotFoundError, CheckpointError, ConfigError. Never runs code from a file.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision: got {precision!r}, expected one of {list(PRECISIONS)}")
    model = _load(Path(path), options)
    model.precision = precision
    return model.to(device)


def _load(path: Path, options: dict):
    if not path.exists():
        near = (
            difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], 1)
            if path.parent.is_dir()
            else []
        )
        raise FileNotFoundError(f"no such file or folder: {path}" + (f" (did you mean {near[0]}?)" if near else ""))
    from fastvoc.checkpoints import find_checkpoint, load_checkpoint  # which import the models

    checkpoint = path if path.is_file() else None if (path / "config.json").is_file() else find_checkpoint(path)
    if checkpoint is not None:
        return load_checkpoint(checkpoint, **options)
    if options:
        raise ConfigError(f"{path}: a folder takes no options, got {sorted(options)}")
    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"{path} is no model folder: it has no config.json",
            hint="Expected config.json, model.safetensors and preprocessor_config.json.",
        )
    family = read_json(path / "config.json").get("family")
    if family not in MODELS:
        raise ConfigError(f"{path}: unsupported architecture {family!r}; supported: {sorted(MODELS)}")
    return from_pretrained(MODELS[family], path)
