"""A model folder: config.json, model.safetensors, preprocessor_config.json."""

import dataclasses
import difflib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch

from fastvoc._atomic import atomic_path
from fastvoc.errors import (
    CheckpointError,
    ConfigError,
    CorruptCheckpointError,
    FastvocError,
    IncompatibleCheckpointError,
    ResourceLimitError,
)
from fastvoc.models.config_values import check_values
from fastvoc.models.preprocessing import Preprocessing

FORMAT_VERSION = 1
logger = logging.getLogger("fastvoc")
_may_be_nan = ContextVar("weights may be NaN", default=False)
MAX_TENSORS, MAX_HEAD = 20_000, 16 << 20  # of a safetensors file; our largest models have some hundreds


def save_pretrained(model: Any, folder: str | os.PathLike, metadata: dict[str, str] | None = None) -> None:
    """Writes the three files, each atomically; the weights first, so that a folder with a config is complete.

    Weight norm is folded away. metadata goes into the head of model.safetensors: where the weights come from, for one.
    """
    from safetensors.torch import save_file

    from fastvoc.checkpoints.weight_norm import fold_weight_norm  # whose package imports the models

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    folded = fold_weight_norm({k: v.detach() for k, v in model.state_dict().items()})
    tensors = {k: v.float().contiguous().cpu() for k, v in folded.items()}
    with atomic_path(folder / "model.safetensors") as path:
        save_file(tensors, path, metadata={"format": "pt", **(metadata or {})})
    if model.preprocessing is not None:
        _write_json(folder / "preprocessor_config.json", model.preprocessing.to_dict())
    values = {"family": model.family, "format_version": FORMAT_VERSION, **dataclasses.asdict(model.config)}
    _write_json(folder / "config.json", values)


def is_model_folder(path) -> bool:
    """Whether a folder is fastvoc's own. philsyn's DiffWave has a config.json too, which names no family."""
    config = Path(path) / "config.json"
    return (Path(path) / "model.safetensors").is_file() or (config.is_file() and "family" in read_json(config))


def from_pretrained(cls: Any, folder: str | os.PathLike) -> Any:
    """The model of a folder. Raises CheckpointError, ConfigError and their kin; never runs code from the files."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} is no model folder: it has no config.json",
            hint="Expected config.json, model.safetensors and preprocessor_config.json.",
        )
    source, weights = folder / "config.json", folder / "model.safetensors"
    config = config_from_dict(cls.Config, read_json(source), source)
    tensors = read_safetensors(weights)
    try:
        with torch.device("meta"):  # which takes no memory, however large the config's numbers are
            skeleton = cls(config)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as fault:
        if isinstance(fault, FastvocError):
            raise
        raise ConfigError(f"{source}: its values make no model: {str(fault).partition(chr(10))[0]}") from None
    check_shapes(skeleton, tensors, weights)
    model = cls(config)
    load_weights(model, tensors, weights)
    if (folder / "preprocessor_config.json").is_file():
        model.preprocessing = Preprocessing.from_dict(read_json(folder / "preprocessor_config.json"))
    return model.eval()


def load_weights(model, tensors: dict[str, torch.Tensor], source) -> None:
    """load_state_dict with an error that says what does not fit."""
    check_shapes(model, tensors, source)
    check_finite(tensors, source)
    model.load_state_dict({k: v.float() for k, v in tensors.items()})


@contextmanager
def weights_may_be_nan(allowed: bool = True) -> Iterator[None]:
    """Whether files with NaN or infinity in their weights are loaded, inside; else they are refused."""
    before = _may_be_nan.set(allowed)
    try:
        yield
    finally:
        _may_be_nan.reset(before)


def check_finite(tensors: dict[str, torch.Tensor], source) -> None:
    """Raise CheckpointError naming the first tensors that hold NaN or infinity, or say so where that is allowed."""
    counts = {name: int((~value.isfinite()).sum()) for name, value in tensors.items()}
    bad = [f"{name} ({n} of {tensors[name].numel()} numbers)" for name, n in counts.items() if n]
    if not bad:
        return
    shown = ", ".join(bad[:10]) + (f" … ({len(bad)} tensors in all)" if len(bad) > 10 else "")
    message = f"{source} holds NaN or infinity in {shown}."
    if not _may_be_nan.get():
        hint = "Its training diverged, or the file is damaged; check_finite=False, or --allow-nan on the command line, loads it."
        raise CheckpointError(message, hint=hint)
    logger.warning("%s", message)


def check_shapes(model, tensors: dict[str, torch.Tensor], source) -> None:
    expected = model.state_dict()
    check_names(tensors, expected, source)
    for name, value in expected.items():
        if tensors[name].shape != value.shape:
            raise IncompatibleCheckpointError(
                f"{source}: {name} is {tuple(tensors[name].shape)}, the config makes it {tuple(value.shape)}"
            )


def check_names(given, expected, source, fits: str = "its config") -> None:
    """Raise IncompatibleCheckpointError unless both hold the same names."""
    missing, unexpected = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
    if missing or unexpected:
        raise misfit(given, missing, unexpected, source, fits)


def misfit(given, missing, unexpected, source, fits: str) -> IncompatibleCheckpointError:
    """An error that shows ten names of each kind, and whose names the given ones resemble."""
    from fastvoc.checkpoints.families import nearest  # which imports the readers, which import this

    show = lambda names: ", ".join(names[:10]) + (f" … ({len(names)} in all)" if len(names) > 10 else "")
    parts = [f"{what}: {show(names)}" for what, names in (("missing", missing), ("unexpected", unexpected)) if names]
    return IncompatibleCheckpointError(f"{source} does not fit {fits} ({'; '.join(parts)}).", hint=nearest(given))


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointError(f"no weights: {path} is missing")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        head = file.read(min(length, MAX_HEAD + 1))
    if len(head) > MAX_HEAD or head.count(b'"data_offsets"') > MAX_TENSORS:
        raise ResourceLimitError(f"{path} lists more than {MAX_TENSORS} tensors or {MAX_HEAD} bytes of them")
    try:
        return load_file(path)
    except SafetensorError as fault:
        raise CorruptCheckpointError(f"{path} is damaged: {fault}", hint="Copy or download it again.") from None


def config_from_dict(cls, values: dict, source):
    """A config dataclass from JSON values; unknown keys are errors with a suggestion."""
    values = dict(values)
    version = values.pop("format_version", FORMAT_VERSION)
    values.pop("family", None)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ConfigError(
            f"{source} has format_version {version!r}; this fastvoc reads {FORMAT_VERSION}", hint="Upgrade fastvoc."
        )
    known = [f.name for f in dataclasses.fields(cls)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise ConfigError(
                f"{source}: unknown key {key!r}", hint=f"Did you mean {near[0]!r}?" if near else f"Known are {known}."
            )
    check_values(cls, values, source)
    try:
        return cls(**values)
    except TypeError as fault:
        raise ConfigError(f"{source}: a value has the wrong type: {fault}") from None


def read_json(path: Path) -> dict:
    def unique(pairs):
        keys = [k for k, _ in pairs]
        if len(set(keys)) < len(keys):
            raise ConfigError(f"{path}: the key {next(k for k in keys if keys.count(k) > 1)!r} appears twice")
        return dict(pairs)

    def no_constant(name):
        raise ConfigError(f"{path}: {name} is not JSON")

    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique, parse_constant=no_constant)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise ConfigError(f"{path} is not valid JSON: {fault}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a JSON object, not {type(values).__name__}")
    return values


def _write_json(path: Path, values: dict) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")
