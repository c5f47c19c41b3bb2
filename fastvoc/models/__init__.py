"""The vocoders, one per file, and `load`."""

import difflib
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from fastvoc.errors import ConfigError
from fastvoc.models.diffwave import DiffWave, DiffWaveConfig
from fastvoc.models.parallel_wavegan import ParallelWaveGAN, ParallelWaveGANConfig
from fastvoc.models.parallel_wavenet import ParallelWaveNet, ParallelWaveNetConfig
from fastvoc.models.preprocessing import Preprocessing
from fastvoc.models.pretrained import from_pretrained, is_model_folder, read_json, weights_may_be_nan
from fastvoc.models.vocoder import Vocoder
from fastvoc.models.waveglow import WaveGlow, WaveGlowConfig
from fastvoc.models.wavenet import WaveNet, WaveNetConfig
from fastvoc.ops.wavenet_generate import PRECISIONS

MODELS = {
    "diffwave": DiffWave,
    "parallel_wavegan": ParallelWaveGAN,
    "parallel_wavenet": ParallelWaveNet,
    "waveglow": WaveGlow,
    "wavenet": WaveNet,
}

__all__ = [
    "MODELS",
    "DiffWave",
    "DiffWaveConfig",
    "ParallelWaveGAN",
    "ParallelWaveGANConfig",
    "ParallelWaveNet",
    "ParallelWaveNetConfig",
    "Preprocessing",
    "WaveGlow",
    "WaveGlowConfig",
    "WaveNet",
    "WaveNetConfig",
    "load",
]


def load(
    path: str | os.PathLike,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    weight_norm: bool = False,
    check_finite: bool = True,
    **options: Any,
) -> Vocoder:
    """The vocoder of a model folder (config.json, model.safetensors, preprocessor_config.json), or of a checkpoint file
    of a public implementation, or of the folder with that one file (fastvoc/checkpoints has one module for each).

    device     where the model is put
    precision  of `infer`, where its call gives none: "fp32" or "bf16"; for a WaveNet also "int8"
    weight_norm  put weight norm on the convolutions, to train on as upstream does (models/weight_norm.py)
    check_finite  refuse weights that hold NaN or infinity; False loads them and warns
    options    what a reader asks for, such as teacher=PATH for a ClariNet student

    Raises FileNotFoundError, CheckpointError, ConfigError. Never runs code from a file.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision: got {precision!r}, expected one of {list(PRECISIONS)}")
    with nullcontext() if check_finite else weights_may_be_nan():
        model = _load(Path(path), options)
    model.precision = precision
    if weight_norm:
        model.apply_weight_norm()
    return model.to(device)


def _load(path: Path, options: dict):
    if not path.exists():
        near = (
            difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], 1)
            if path.parent.is_dir()
            else []
        )
        raise FileNotFoundError(f"no such file or folder: {path}" + (f" (did you mean {near[0]}?)" if near else ""))
    if is_model_folder(path):
        if options:
            raise ConfigError(f"{path}: a model folder takes no options, got {sorted(options)}")
        values = read_json(path / "config.json") if (path / "config.json").is_file() else {}
        if values and values.get("family") not in MODELS:
            found = values.get("family", values.get("architectures", "of no name"))
            raise ConfigError(f"{path}: unsupported architecture {found!r}; supported: {sorted(MODELS)}")
        return from_pretrained(MODELS[values["family"]] if values else None, path)
    from fastvoc.checkpoints import load_checkpoint

    return load_checkpoint(path, **options)
