"""Checkpoint files of the public implementations: one layout per module, recognised by what is in the file.

A reader module has `LAYOUT`, one line for people; `matches(contents, path)`; and `read(contents, path, **options)`, which
returns the model. contents is what `read_file` made of the file: containers, numbers, strings and tensors, no foreign objects.
It may have `find(folder)`, which returns the checkpoint to take of a folder of its upstream's, or None.
"""

import inspect
from pathlib import Path

from fastvoc.checkpoints import diffwave_lmnt, diffwave_philsyn, nv_wavenet, parallel_wavegan, r9y9
from fastvoc.checkpoints.families import nearest
from fastvoc.checkpoints.reading import read_file
from fastvoc.errors import ConfigError, IncompatibleCheckpointError

READERS = [r9y9, nv_wavenet, diffwave_lmnt, diffwave_philsyn, parallel_wavegan]

__all__ = ["READERS", "find_checkpoint", "load_checkpoint", "read_file"]


def load_checkpoint(path, **options):
    """The model of one checkpoint file. Never runs code from it. Raises CheckpointError, ConfigError and their kin.

    options are handed to the reader; one that it does not know is a ConfigError.
    """
    path = Path(path)
    contents = read_file(path)
    for reader in READERS:
        if reader.matches(contents, path):
            known = list(inspect.signature(reader.read).parameters)[2:]
            for name in options:
                if name not in known:
                    raise ConfigError(f"{path}: unknown option {name!r} for {reader.LAYOUT}; it takes {known or 'none'}")
            return reader.read(contents, path, **options)
    supported = "Supported are: " + "; ".join(reader.LAYOUT for reader in READERS) + "."
    if not isinstance(contents, dict):
        raise IncompatibleCheckpointError(f"{path} holds a {type(contents).__name__}, no known layout.", hint=supported)
    if "param_groups" in contents:
        raise IncompatibleCheckpointError(f"{path} holds an optimizer's state, no weights.", hint=supported)
    # The layout shows one level further down, in the weights' own names
    inner = next((v for v in contents.values() if isinstance(v, dict)), {})
    shown = [str(k)[:80] for k in [*contents, *inner]]
    found = ", ".join(shown[:10]) + (" …" if len(shown) > 10 else "")
    resembles = nearest(inner or contents)
    raise IncompatibleCheckpointError(
        f"{path} has no known layout; it holds: {found or 'nothing'}." + (f" {resembles}" if resembles else ""), hint=supported
    )


def find_checkpoint(folder) -> Path | None:
    """The checkpoint to take of a folder that an upstream's training or download left, or None."""
    finders = [reader.find for reader in READERS if hasattr(reader, "find")]
    return next((path for find in finders if (path := find(Path(folder))) is not None), None)
