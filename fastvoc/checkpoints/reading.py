"""torch.save files, zip and the older stream container, as plain data. Nothing in a file is ever run.

    zip     NAME/data.pkl, and NAME/data/KEY for every storage (torch 1.6 and later)
    stream  five pickles: magic number, protocol, system, the object, the storages' keys; then per storage its length
            in numbers (int64) and the numbers

The object is read by unpickle.py on plain data. Module objects that were pickled whole become `PickledModule`s.
"""

import errno
import io
import logging
import math
import stat
import zipfile
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from fastvoc.checkpoints.unpickle import CONSTRUCTORS, Name, unpickle
from fastvoc.errors import (
    CorruptCheckpointError,
    FastvocError,
    IncompatibleCheckpointError,
    ResourceLimitError,
)
from fastvoc.models.pretrained import check_finite

MAX_BYTES = 4 << 30
MAX_RATIO = 20  # of what a file unpacks to, to its size; torch itself never compresses
SMALL = 4 << 20  # too little for the ratio to matter
MAX_ENTRIES = 100_000  # of a zip, and tensors of a file
AGAIN = "Copy or download it again."
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001

STORAGES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
}  # fmt: skip
STORAGE_TYPES = {f"torch.{cuda}{kind}Storage": d for kind, d in STORAGES.items() for cuda in ("", "cuda.")}
STORAGE_TYPES |= {"torch.storage.UntypedStorage": torch.uint8}

logger = logging.getLogger("fastvoc")


def read_file(path):
    """What torch.save wrote, on the CPU: containers, numbers, strings, tensors and PickledModules.

    Raises CorruptCheckpointError, UnsafeCheckpointError, IncompatibleCheckpointError, ResourceLimitError, OSError.
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
        _check_head(head, size, path)
        try:
            if not head.startswith(b"PK\x03\x04"):
                file.seek(0)
                return _read_stream(file, size, path)
            with zipfile.ZipFile(file) as archive:
                return _read_zip(archive, _check_zip(archive, size, path), size, path)
        except FastvocError:
            raise
        except zipfile.BadZipFile as fault:
            raise CorruptCheckpointError(
                f"{path} is cut off or damaged ({size} bytes): {fault}.",
                hint="Compare its size with the original's, and copy or download it again.",
            ) from None
        except Exception as fault:  # on a damaged file nearly anything can go wrong, and any of it means the same
            if isinstance(fault, OSError) and fault.errno not in (None, errno.EINVAL):  # EINVAL: an offset that lies
                raise
            if isinstance(fault, MemoryError) or "allocate memory" in str(fault):  # the latter are torch's words
                raise ResourceLimitError(f"{path} ({size} bytes) takes more memory than there is") from None
            reason = str(fault).partition("\n")[0][:200] or type(fault).__name__
            raise CorruptCheckpointError(
                f"{path} ({size} bytes) is damaged or no checkpoint: {reason}.", hint=AGAIN
            ) from None


def _read_zip(archive: zipfile.ZipFile, folder: str, size: int, path):
    if f"{folder}/byteorder" in archive.namelist() and archive.read(f"{folder}/byteorder") != b"little":
        raise IncompatibleCheckpointError(f"{path} was written by a big-endian machine")
    storages = {}

    def storage(identifier):
        kind, dtype, key, _, numel = identifier
        if kind != "storage" or type(key) is not str:
            raise ValueError("a persistent id that is no storage")
        if key not in storages:
            dtype = _storage_type(dtype)
            data = bytearray(archive.read(f"{folder}/data/{key}"))
            if numel * dtype.itemsize > len(data):
                raise ValueError(f"storage {key} claims {numel} numbers and has {len(data)} bytes")
            values = torch.empty(0, dtype=dtype) if not numel else torch.frombuffer(data, dtype=dtype, count=numel)
            storages[key] = values
        return storages[key]

    return unpickle(io.BytesIO(archive.read(f"{folder}/data.pkl")), path, _constructors(size, path), storage)


def _read_stream(file, size: int, path):
    if unpickle(file, path, {}) != MAGIC:
        raise ValueError("it does not start as torch.save's files do")
    if unpickle(file, path, {}) != PROTOCOL or unpickle(file, path, {}).get("little_endian") is not True:
        raise IncompatibleCheckpointError(f"{path} was written by an unknown protocol or a big-endian machine")
    storages, claimed = {}, 0

    def storage(identifier):
        nonlocal claimed
        if identifier[0] == "module":  # ("module", class, its file's name, its source): the class alone counts
            return identifier[1]
        kind, dtype, key, _, numel, view = identifier
        if kind != "storage":
            raise ValueError("a persistent id that is no storage")
        if key not in storages:
            dtype = _storage_type(dtype)
            claimed += numel * dtype.itemsize
            if numel < 0 or claimed > size:
                raise ValueError(f"its storages claim {claimed} bytes or more")
            storages[key] = torch.empty(numel, dtype=dtype)
        if view is None:
            return storages[key]
        _, offset, length = view
        return _view(storages[key], offset, (length,), (1,))

    contents = unpickle(file, path, _constructors(size, path), storage)
    for key in unpickle(file, path, {}):
        if key not in storages:
            raise ValueError(f"a storage {key!r} that nothing uses")
        values = storages.pop(key)
        length = int.from_bytes(_exactly(file, 8), "little", signed=True)
        if length != values.numel():
            raise ValueError(f"storage {key} claims {values.numel()} numbers, its data {length}")
        if length:
            values.untyped_storage().copy_(
                torch.frombuffer(bytearray(_exactly(file, values.nbytes)), dtype=torch.uint8).untyped_storage()
            )
    if storages:
        raise ValueError(f"{len(storages)} storages are missing")
    return contents


def _exactly(file, n: int) -> bytes:
    data = file.read(n)
    if len(data) != n:
        raise ValueError(f"it ends {n - len(data)} bytes too early")
    return data


def _storage_type(name) -> torch.dtype:
    if not isinstance(name, Name) or name.name not in STORAGE_TYPES:
        raise ValueError("a storage of an unknown type")
    return STORAGE_TYPES[name.name]


def _constructors(size: int, path) -> dict:
    """What torch's pickles call. Tensors are views into storages, and may claim any size: what all claim is added up."""
    total = n_tensors = 0

    def tensor(storage, offset, shape, strides, *_) -> Tensor:
        nonlocal total, n_tensors
        view = _view(storage, offset, shape, strides)
        total, n_tensors = total + view.numel() * view.element_size(), n_tensors + 1
        if n_tensors > MAX_ENTRIES:
            raise ResourceLimitError(f"{path} holds more than {MAX_ENTRIES} tensors")
        _check_expansion(total, size, path)
        return view

    def untyped_tensor(storage, offset, shape, strides, requires_grad, hooks, dtype, *_) -> Tensor:
        return tensor(storage.view(dtype), offset, shape, strides)

    def of_type(function, _, arguments, *__):
        if not isinstance(function, Name):
            raise ValueError("a tensor made by no function")
        return constructors[function.name](*arguments)

    def parameter(data, *_) -> Tensor:
        if not isinstance(data, Tensor):
            raise ValueError("a parameter that is no tensor")
        return data

    def unused(*_):
        raise ValueError("a call of a storage's class")

    constructors = {
        **CONSTRUCTORS,
        "torch._utils._rebuild_tensor": tensor,
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_tensor_v3": untyped_tensor,
        "torch._utils._rebuild_parameter": parameter,
        "torch._utils._rebuild_parameter_with_state": parameter,
        "torch.nn.parameter.Parameter": parameter,  # torch 0.4
        "torch._tensor._rebuild_from_type_v2": of_type,
        **dict.fromkeys([*STORAGE_TYPES, "torch.Tensor"], unused),
    }
    return constructors


def _view(storage, offset, shape, strides) -> Tensor:
    """storage.as_strided, if every element of the view lies inside."""
    numbers = [offset, *shape, *strides]
    if not isinstance(storage, Tensor) or len(shape) != len(strides) or not all(type(n) is int for n in numbers):
        raise ValueError("a tensor of no storage or with no sizes")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides))
    inside = min(numbers) >= 0 and (0 in shape or last < storage.numel()) and offset <= storage.numel()
    if not inside or math.prod(shape) >= 1 << 62 or len(shape) > 64:
        raise ValueError(f"a tensor {tuple(shape)} with strides {tuple(strides)} at {offset} of {storage.numel()} numbers")
    return storage.as_strided(tuple(shape), tuple(strides), offset)


def is_saved_by_torch(path) -> bool:
    """Whether a file begins as torch.save's files do: a zip archive, or a pickle of the magic number."""
    with path.open("rb") as file:
        head = file.read(32)
    magic = MAGIC.to_bytes(10, "little")
    return (head.startswith(b"PK\x03\x04") and path.suffix != ".npz") or (head[:1] == b"\x80" and magic in head)


def float_tensors(values, path) -> dict[str, Tensor]:
    """The same dictionary, if it holds named floating point tensors, finite ones, and nothing else."""
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise IncompatibleCheckpointError(f"{path}: {name!r} is a {type(value).__name__}, expected a tensor")
        if not value.is_floating_point() or value.layout != torch.strided:
            raise IncompatibleCheckpointError(f"{path}: {name} is {value.dtype}, {value.layout}; expected plain floats")
    check_finite(values, path)
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


def _check_zip(archive: zipfile.ZipFile, size: int, path) -> str:
    """The folder inside that torch.save wrote into."""
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise ResourceLimitError(f"{path} has {len(entries)} entries; at most {MAX_ENTRIES} are read")
    _check_expansion(sum(e.file_size for e in entries), size, path)
    for entry in entries:  # nothing is ever unpacked to disk, and an honest file has no such names
        if ".." in PurePosixPath(entry.filename).parts or stat.S_ISLNK(entry.external_attr >> 16):
            raise CorruptCheckpointError(f"{path} holds the entry {entry.filename!r}, which points out of the archive")
    names = [e.filename for e in entries]
    if any(name.endswith("/constants.pkl") for name in names):
        raise IncompatibleCheckpointError(f"{path} is a TorchScript archive.", hint="Save its state_dict.")
    data = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(data) != 1:
        raise IncompatibleCheckpointError(f"{path} is a zip archive, but none of torch.save")
    return data[0].removesuffix("/data.pkl")


def _check_expansion(unpacked: int, size: int, path) -> None:
    if unpacked > MAX_BYTES or unpacked > max(SMALL, MAX_RATIO * size):
        raise ResourceLimitError(
            f"{path} ({size} bytes) would unpack to {unpacked} bytes; the limits are {MAX_BYTES} bytes "
            f"and {MAX_RATIO} times the file"
        )
