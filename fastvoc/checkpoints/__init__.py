"""Checkpoint files of the public implementations: one layout per module, recognised by what is in the file.

A reader module has `LAYOUT`, one line for people; `matches(contents, path)`; and `read(contents, path, **options)`, which
returns the model. contents is what `read_file` made of the file: containers, numbers, strings, tensors and PickledModules,
no foreign objects. It may have `unused(contents) -> list[str]`, which of the weights themselves it leaves behind.
"""

import inspect
import re
from pathlib import Path

from torch import Tensor

from fastvoc.checkpoints import (
    clarinet,
    diffwave_lmnt,
    diffwave_philsyn,
    nsynth_wavenet,
    nv_wavenet,
    parallel_wavegan,
    r9y9,
    waveglow,
)
from fastvoc.checkpoints.families import nearest
from fastvoc.checkpoints.reading import is_saved_by_torch, read_file
from fastvoc.checkpoints.unpickle import PickledModule
from fastvoc.checkpoints.weight_norm import fold_weight_norm
from fastvoc.errors import CheckpointError, ConfigError, FastvocError, IncompatibleCheckpointError

READERS = [r9y9, nv_wavenet, diffwave_lmnt, diffwave_philsyn, parallel_wavegan, waveglow, clarinet, nsynth_wavenet]

# Under these names files keep their weights, and what the model is made by
KEPT = {"model", "state_dict", "model_state_dict", "config", "params"}

__all__ = ["READERS", "dropped", "load_checkpoint", "n_parameters", "read_file", "read_recognised", "recognise"]


def load_checkpoint(path, **options):
    """The model of a checkpoint file, or of the one checkpoint in a folder. Never runs code from it.

    options are handed to the reader; one that it does not know is a ConfigError. Raises CheckpointError and its kin too.
    """
    return read_recognised(*recognise(path), **options)


def read_recognised(path, reader, contents, **options):
    """The model that a reader makes of what `recognise` found."""
    known = list(inspect.signature(reader.read).parameters)[2:]
    for name in options:
        if name not in known:
            raise ConfigError(f"{path}: unknown option {name!r} for {reader.LAYOUT}; it takes {known or 'none'}")
    return reader.read(contents, path, **options)


def recognise(path) -> tuple:
    """(file, the module that reads it, its contents). Raises CheckpointError and its kin where no reader takes it."""
    path = Path(path)
    if path.is_dir():
        return _recognise_folder(path)
    contents = nsynth_wavenet.read_arrays(path) if path.suffix == ".npz" else read_file(path)
    for reader in READERS:
        if reader.matches(contents, path):
            return path, reader, contents
    raise _unknown(contents, path)


def dropped(reader, contents) -> list[str]:
    """What of a file does not go into the model: what lies beside its weights, and weights that the model does not use."""
    beside = [str(name) for name in contents if name not in KEPT] if isinstance(contents, dict) and KEPT & set(contents) else []
    return beside + (reader.unused(contents) if hasattr(reader, "unused") else [])


def n_parameters(reader, contents) -> int:
    """Of the network in a file as its authors count them: weight norm folded. Rewritten it may have some more or less."""
    left = dropped(reader, contents)
    skipped = lambda name: any(name == one or name.endswith("." + one) or name.startswith(one + ".") for one in left)
    weights = {name: tensor for name, tensor in _tensors(contents) if tensor.is_floating_point() and not skipped(name)}
    return sum(tensor.numel() for tensor in fold_weight_norm(weights).values())


def _tensors(value, name: str = ""):
    """(dotted name, tensor) of everything inside."""
    value = value.state_dict() if isinstance(value, PickledModule) else value
    if isinstance(value, Tensor):
        yield name, value
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _tensors(inner, f"{name}.{key}" if name else str(key))


def _recognise_folder(folder: Path) -> tuple:
    """An upstream's folder: checkpoints of one training, of which the last is taken, and its averaged twin (_ema) first."""
    steps = lambda file: int(re.sub(r"\D", "", file.stem)[-18:] or 0)
    kinds = {}
    for file in sorted(file for file in folder.iterdir() if file.is_file() and is_saved_by_torch(file)):
        kinds.setdefault(re.sub(r"\d+", "", file.name.replace("_ema", "")), []).append(file)
    found, faults = [], []
    for files in kinds.values():
        try:
            found.append(recognise(max(files, key=lambda file: (steps(file), file.stem.endswith("_ema")))))
        except FastvocError as fault:
            faults.append(fault)
    if len(found) > 1:
        names = ", ".join(file.name for file, *_ in found)
        raise ConfigError(f"{folder} holds several checkpoints: {names}", hint="Name one of the files.")
    if found:
        return found[0]
    if faults:
        raise faults[0]
    message = f"{folder} is no model folder: it has no config.json of fastvoc, and no checkpoint that torch.save wrote."
    raise CheckpointError(
        message, hint="Expected config.json, model.safetensors and preprocessor_config.json, or one checkpoint file."
    )


def _unknown(contents, path) -> IncompatibleCheckpointError:
    supported = "Supported are: " + "; ".join(reader.LAYOUT for reader in READERS) + "."
    if not isinstance(contents, dict):
        return IncompatibleCheckpointError(f"{path} holds a {type(contents).__name__}, no known layout.", hint=supported)
    if "param_groups" in contents:
        return IncompatibleCheckpointError(f"{path} holds an optimizer's state, no weights.", hint=supported)
    # The layout shows one level further down, in the weights' own names
    inner = next((v for v in contents.values() if isinstance(v, dict)), {})
    shown = [str(k)[:80] for k in [*contents, *inner]]
    found = ", ".join(shown[:10]) + (" …" if len(shown) > 10 else "")
    resembles = nearest(inner or contents)
    return IncompatibleCheckpointError(
        f"{path} has no known layout; it holds: {found or 'nothing'}." + (f" {resembles}" if resembles else ""), hint=supported
    )
