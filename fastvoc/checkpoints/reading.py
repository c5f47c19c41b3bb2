"""torch.save files, zip and the older stream container, as plain data. Nothing in a file is ever run.

torch.load(weights_only=True) does the reading; here are the limits that it lacks, and words for what it refuses.
"""

import logging
import pickletools
import re
import warnings
import zipfile

import torch
from torch import Tensor

from fastvoc.errors import (
    CheckpointError,
    CorruptCheckpointError,
    IncompatibleCheckpointError,
    ResourceLimitError,
    UnsafeCheckpointError,
)

MAX_BYTES = 4 << 30
MAX_RATIO = 20  # of what a file unpacks to, to its size; torch itself never compresses
SMALL = 4 << 20  # too little for the ratio to matter
MAX_ENTRIES = 100_000
AGAIN = "Copy or download it again."

# Public checkpoints that are pickled module objects; their readers are still to come
PICKLED_MODULES = {
    "wavenet": "nv-wavenet's training checkpoint. Export it with nv-wavenet's export_weights and load that file.",
    "glow": "NVIDIA's WaveGlow.",
    "glow_old": "NVIDIA's WaveGlow of 2018.",
}

logger = logging.getLogger("fastvoc")


def read_file(path):
    """What torch.save wrote, on the CPU: containers, numbers, strings and tensors.

    Raises CorruptCheckpointError, UnsafeCheckpointError, IncompatibleCheckpointError, ResourceLimitError, OSError.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    _check_head(head, size, path)
    is_zip = head.startswith(b"PK\x03\x04")
    if is_zip:
        _check_zip(path, size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch thinks of a pickle's version is no news to a user
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as fault:  # on a damaged file torch's reader raises nearly anything
        raise _explained(fault, path, size, is_zip) from None
    _check_tensors(contents, path, size)
    return contents


def float_tensors(values, path) -> dict[str, Tensor]:
    """The same dictionary, if it holds named floating point tensors and nothing else."""
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise IncompatibleCheckpointError(f"{path}: {name!r} is a {type(value).__name__}, expected a tensor")
        if not value.is_floating_point() or value.layout != torch.strided:
            raise IncompatibleCheckpointError(f"{path}: {name} is {value.dtype}, {value.layout}; expected plain floats")
    if any(v.dtype != torch.float32 for v in values.values()):
        logger.info("%s holds other dtypes than float32; its weights are converted", path)
    return dict(values)


def _check_head(head: bytes, size: int, path) -> None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not size:
        raise CorruptCheckpointError(f"{path} is empty (0 bytes).", hint=AGAIN)
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise CorruptCheckpointError(f"{path} looks like an HTML page: the download failed.", hint="Download it again.")
    if start.startswith(b"version https://git-lfs"):
        raise CorruptCheckpointError(f"{path} is a git-LFS pointer, not the file itself.", hint="Run git lfs pull.")
    if head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar":
        raise IncompatibleCheckpointError(f"{path} is an archive.", hint="Unpack it and load the checkpoint inside.")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
        raise IncompatibleCheckpointError(f"{path} is a safetensors file.", hint="Load the folder that it lies in.")


def _check_zip(path, size: int) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, UnicodeDecodeError):
        raise CorruptCheckpointError(
            f"{path} is cut off or damaged: it starts as a zip archive and has no end ({size} bytes).",
            hint="Compare its size with the original's, and copy or download it again.",
        ) from None
    if len(entries) > MAX_ENTRIES:
        raise ResourceLimitError(f"{path} has {len(entries)} entries; at most {MAX_ENTRIES} are read")
    _check_expansion(sum(e.file_size for e in entries), size, path)
    names = [e.filename for e in entries]
    if any(name.endswith("/constants.pkl") for name in names):
        raise IncompatibleCheckpointError(f"{path} is a TorchScript archive.", hint="Save its state_dict.")
    if not any(name.endswith("/data.pkl") for name in names):
        raise IncompatibleCheckpointError(f"{path} is a zip archive, but none of torch.save")


def _check_expansion(unpacked: int, size: int, path) -> None:
    if unpacked > MAX_BYTES or unpacked > max(SMALL, MAX_RATIO * size):
        raise ResourceLimitError(
            f"{path} ({size} bytes) would unpack to {unpacked} bytes; the limits are {MAX_BYTES} bytes "
            f"and {MAX_RATIO} times the file"
        )


def _check_tensors(contents, path, size: int) -> None:
    """A view of one number can claim any size; whoever copies it pays."""
    pending, seen, total = [contents], set(), 0
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            total += value.numel() * value.element_size()
        elif isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list | tuple):
            pending += value
    _check_expansion(total, size, path)


def _explained(fault: Exception, path, size: int, is_zip: bool) -> CheckpointError:
    reason = str(fault)
    named = re.search(r"GLOBAL ([\w.]*\.\w+)", reason)
    name = named[1] if named else _first_foreign_global(path, is_zip)
    if name is None:
        # torch's advice to load the file without checks is not ours
        reason = reason.split("WeightsUnpickler error:")[-1].strip().split("\n")[0].strip() or type(fault).__name__
        return CorruptCheckpointError(f"{path} ({size} bytes) is damaged or no checkpoint: {reason[:200]}.", hint=AGAIN)
    if name.split(".")[0] in PICKLED_MODULES:
        return IncompatibleCheckpointError(
            f"{path} is a pickled module object ({name}); this layout is not supported yet.",
            hint=f"It seems to be {PICKLED_MODULES[name.split('.')[0]]}",
        )
    return UnsafeCheckpointError(
        f"{path} holds more than tensors: it asks for {name}, which could run code. Nothing was run.",
        hint="Ask its author for a state_dict.",
    )


def _first_foreign_global(path, is_zip: bool) -> str | None:
    """The first name outside torch and collections that a pickle asks for, found by reading its instructions."""
    try:
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                entry = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
                return _scan(archive.open(entry), 1)
        with path.open("rb") as file:
            return _scan(file, 5)  # the stream container is five pickles and then the numbers
    except Exception:  # no pickle, or one that ends in the middle
        return None


def _scan(file, n_pickles: int) -> str | None:
    for _ in range(n_pickles):
        strings = ["", ""]
        for operation, argument, _ in pickletools.genops(file):
            name = None
            if operation.name in ("GLOBAL", "INST"):
                name = argument.replace(" ", ".")
            elif operation.name == "STACK_GLOBAL":
                name = ".".join(strings)
            elif isinstance(argument, str):
                strings = [strings[1], argument]
            if name and name.split(".")[0] not in ("torch", "collections"):
                return name
    return None
