"""The mean and scale of every mel band over a training set, as the public recipes store them beside a checkpoint.

    .npy      floats (2, n_mels): row 0 the means, row 1 the scales
    .h5       datasets mean (n_mels,) and scale (n_mels,)              kan-bayashi/ParallelWaveGAN; needs h5py
    .joblib   sklearn's StandardScaler, its mean_ and scale_           r9y9/wavenet_vocoder; read without sklearn
"""

import io
import math
import zlib
from pathlib import Path

import numpy as np

from fastvoc.checkpoints.unpickle import CONSTRUCTORS, Name, PickledArray, PickledModule, unpickle
from fastvoc.errors import CheckpointError, ConfigError, CorruptCheckpointError, FastvocError, ResourceLimitError

MAX_BYTES = 64 << 20
SCALERS = {f"sklearn.preprocessing.{module}.StandardScaler" for module in ("_data", "data")}
ARRAY = "joblib.numpy_pickle.NumpyArrayWrapper"


def read_statistics(path, n_mels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, scale), n_mels numbers each, to normalise a mel by (mel - mean) / scale. Runs nothing from the file.

    Raises CheckpointError and its kin where the file is damaged, hostile, or of another number of bands; ConfigError
    for another kind of file; ImportError where a package is needed that is not there.
    """
    path = Path(path)
    readers = {".npy": _npy, ".h5": _h5, ".hdf5": _h5, ".joblib": _joblib}
    if path.suffix not in readers:
        raise ConfigError(f"{path}: statistics are read from {', '.join(readers)}")
    if path.stat().st_size > MAX_BYTES:
        raise ResourceLimitError(f"{path} is larger than {MAX_BYTES} bytes, too large for two numbers per mel band")
    try:
        mean, scale = readers[path.suffix](path, n_mels)
    except (FastvocError, FileNotFoundError, ImportError):
        raise
    except Exception as fault:  # on a damaged file nearly anything can go wrong, and any of it means the same
        raise CorruptCheckpointError(f"{path} is damaged or no {path.suffix} file: {str(fault)[:200]}") from None
    for name, values in (("mean", mean), ("scale", scale)):
        if values.shape != (n_mels,) or values.dtype.kind != "f":
            raise CheckpointError(
                f"{path}: {name} is {values.dtype} {values.shape}, expected floats ({n_mels},): one per mel band",
                hint="The statistics belong to another model.",
            )
        if not np.isfinite(values).all() or (name == "scale" and values.min() <= 0):
            raise CheckpointError(f"{path}: {name} holds {values.min():g}…{values.max():g}, expected finite numbers > 0")
    return tuple(mean.tolist()), tuple(scale.tolist())


def _npy(path: Path, n_mels: int):
    # Mapped: its header cannot ask for more memory than the file has
    rows = np.load(path, mmap_mode="r", allow_pickle=False)
    if rows.shape != (2, n_mels):
        raise CheckpointError(f"{path} holds {rows.dtype} {rows.shape}, expected floats (2, {n_mels}): means and scales")
    return np.array(rows[0]), np.array(rows[1])


def _h5(path: Path, n_mels: int):
    try:
        import h5py
    except ImportError:
        raise ImportError(f"{path} is an HDF5 file: pip install h5py, or save it as .npy (means, scales)") from None
    with h5py.File(path, "r") as file:
        for name in ("mean", "scale"):
            # A link may lead into another file, and a header may claim any size
            if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(file[name], h5py.Dataset):
                raise CheckpointError(f"{path} has no dataset {name!r}; it holds {sorted(file)[:10]}")
            dataset = file[name]
            if dataset.external or dataset.is_virtual or dataset.shape != (n_mels,):
                raise CheckpointError(
                    f"{path}: {name} is {dataset.dtype} {dataset.shape}, expected floats ({n_mels},): one per mel band"
                )
        return file["mean"][()], file["scale"][()]


def _joblib(path: Path, n_mels: int):
    """joblib's pickles: an array is an object that names its dtype and shape, and then the numbers, in the stream."""
    data = path.read_bytes()
    if data[:1] == b"\x78" or data[:2] == b"\x1f\x8b":  # zlib, gzip
        unpacker = zlib.decompressobj(wbits=47)
        data = unpacker.decompress(data, MAX_BYTES)
        if unpacker.unconsumed_tail:
            raise ResourceLimitError(f"{path} would unpack to more than {MAX_BYTES} bytes")
        if not unpacker.eof:
            raise ValueError("it is cut off")
    scaler = unpickle(io.BytesIO(data), path, CONSTRUCTORS, inert=lambda name: name in {*SCALERS, ARRAY}, built=_array)
    if not isinstance(scaler, PickledModule) or scaler.class_name not in SCALERS:
        raise CheckpointError(f"{path} holds no StandardScaler of sklearn")
    values = [scaler.attributes.get(name) for name in ("mean_", "scale_")]
    if not all(isinstance(value, np.ndarray) for value in values):
        raise CheckpointError(f"{path}: its StandardScaler has no mean_ and scale_")
    return values


def _array(shell: PickledModule, file):
    if shell.class_name != ARRAY:
        return shell
    said = shell.attributes
    dtype, shape = said["dtype"], said["shape"]
    if not isinstance(said["subclass"], Name) or not isinstance(dtype, PickledArray):
        raise ValueError("an array of an unknown class")
    if said.get("numpy_array_alignment_bytes") is not None:
        file.seek(file.read(1)[0], io.SEEK_CUR)
    n_bytes = math.prod(shape) * dtype.dtype().itemsize
    data = file.read(n_bytes) if 0 <= n_bytes <= MAX_BYTES else b""
    return dtype.numbers(data, shape, said["order"] == "F")
