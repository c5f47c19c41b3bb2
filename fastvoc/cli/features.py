"""Mels as .npy arrays (n_mels, n_frames), read without trusting their headers, checked against a model's convention."""

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from fastvoc._atomic import atomic_path
from fastvoc.audio.convention import KINDS, differences, kind_of, looks_like
from fastvoc.audio.mel import MelConfig
from fastvoc.errors import AudioError, ConfigError, FeatureError
from fastvoc.models.pretrained import read_json

log = logging.getLogger("fastvoc")

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_npy(path: Path) -> np.ndarray:
    """A .npy file's numbers as float32. Raises AudioError naming the fault; never unpickles, never trusts a size."""
    with open(path, "rb") as file:
        try:
            version = npy.read_magic(file)
            if version not in _HEADERS:
                raise ValueError(f"format version {version} is unknown")
            shape, fortran, dtype = _HEADERS[version](file)
        except OSError:
            raise
        except Exception as fault:  # numpy parses the header as Python: what that raises on a foreign file is no list
            raise AudioError(f"{path} is not a usable .npy file: {str(fault).partition(chr(10))[0]}") from None
        if dtype.hasobject or dtype.kind != "f":
            raise AudioError(f"{path} holds {dtype}, expected floating point numbers.")
        if len(shape) > 8 or min(shape, default=0) < 0:
            raise AudioError(f"{path} is damaged: its header claims the shape {_short(shape)}.")
        claimed, held = math.prod(shape) * dtype.itemsize, path.stat().st_size - file.tell()
        if claimed != held:
            claim = f"{_short(shape)} {dtype}, which is {claimed} bytes"
            raise AudioError(f"{path} is damaged: its header claims {claim}; it holds {held}.")
        values = np.fromfile(file, dtype).reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(values, np.float32)


@dataclass(frozen=True)
class Declared:
    """What the file beside a mel says about it. normalised: the statistics of config are applied."""

    config: MelConfig
    normalised: bool


def write_mel(path: Path, mel: np.ndarray, config: MelConfig, normalised: bool) -> None:
    """mel as PATH and its convention as PATH.json, each atomically."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, mel)
    with atomic_path(_beside(path)) as temporary:
        temporary.write_text(json.dumps({"mel": config.to_dict(), "normalised": normalised}, indent=2) + "\n")


def read_declared(path: Path) -> Declared | None:
    """What PATH.json says, where it lies beside."""
    if not _beside(path).is_file():
        return None
    values = read_json(_beside(path))
    if set(values) != {"mel", "normalised"} or not isinstance(values["normalised"], bool):
        raise ConfigError(f"{_beside(path)} must hold 'mel' and 'normalised', as `fastvoc mel` writes them")
    return Declared(MelConfig.from_dict(values["mel"]), values["normalised"])


def read_mel(path: Path, model, normalised: bool) -> tuple[Tensor, bool]:
    """(n_mels, n_frames) as the model takes it, and whether statistics are applied in it.

    normalised: they are so in the file already. What the file beside it declares goes first; a mel that declares another
    convention than the model's is refused with FeatureError.
    """
    declared, config = read_declared(path), model.mel_config
    if declared is not None and config is not None:
        others = differences(declared.config, config, declared.normalised)
        if others:
            raise FeatureError(
                f"{path} declares another mel convention than the model's: {', '.join(others)}.",
                hint="Make it with `fastvoc mel --model`.",
            )
        if normalised and not declared.normalised:
            raise FeatureError(f"{_beside(path)} says that no statistics are applied; --normalised says the opposite")
        normalised = declared.normalised
    mel = model.check_mel(torch.from_numpy(read_npy(path)).to(next(model.parameters()).device), dims=2)
    if normalised or config is None:
        return mel, normalised
    _check_convention(mel, config)
    return config.normalise(mel), config.mean is not None


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _check_convention(mel: Tensor, config: MelConfig) -> None:
    """Raise for values that no recording can have under this convention: below its floor or outside its clip."""
    low, high = _range(config)
    least, greatest = float(mel.min()), float(mel.max())
    slack = 1e-3 * max(1.0, abs(low))
    if least < low - slack or greatest > high + slack:
        looks, takes = looks_like(mel.cpu().numpy()), kind_of(config, normalised=False)
        wanted = f"at least {low:.2f}" if math.isinf(high) else f"within {low:.2f}…{high:.2f}"
        convention = f"this model's convention ({config.log}, floor {config.floor:g})"
        raise FeatureError(
            f"the mel holds {least:.2f}…{greatest:.2f}; {convention} is {wanted}."
            + (f" It looks like {looks}: {KINDS[looks]}." if looks != takes else ""),
            hint="Make it with `fastvoc mel --model`, or pass --normalised if the statistics are applied already.",
        )
    if least >= 0 > low:
        log.warning("the mel lies in %.2f…%.2f: is it linear? This model takes %s", least, greatest, config.log)


def _range(config: MelConfig) -> tuple[float, float]:
    logs = {"ln": math.log, "log2": math.log2, "log10": math.log10, "20log10": lambda x: 20 * math.log10(x)}
    low, high = logs[config.log](config.floor), math.inf
    if config.affine:
        low = (low + config.affine[0]) / config.affine[1]
    return (max(low, config.clip[0]), config.clip[1]) if config.clip else (low, high)


def _short(shape: tuple[int, ...]) -> str:
    return str(tuple(shape)) if len(shape) <= 8 else f"of {len(shape)} axes"
