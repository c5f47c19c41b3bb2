"""Reading and writing mono sound files.

Plain PCM .wav needs nothing but the standard library; float .wav, FLAC, Ogg and the rest need soundfile, and another
sample rate needs soxr (both in fastvoc[audio]).
"""

import codecs
import difflib
import logging
import os
import struct
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastvoc._atomic import atomic_path
from fastvoc.errors import AudioError, DTypeError, ShapeError

_log = logging.getLogger("fastvoc")
_INSTALL = "Install it with: pip install fastvoc[audio]"
_BLOCK = 1 << 18  # samples read, checked, converted or written at a time
_WIDTHS = {"PCM_16": 2, "PCM_24": 3, "PCM_32": 4}
_RATES = range(1000, 1_000_001)  # outside these a header is damaged, and resampling from 1 Hz would fill the memory


def read_wav(
    path: str | os.PathLike, sample_rate: int | None = None, resample: bool = False, mix: bool = False
) -> tuple[np.ndarray, int]:
    """(n_samples,) float32 within about ±1, and its sample rate.

    sample_rate: the rate that is needed; a file of another rate is an error, or resampled if asked for.
    mix: average the channels of a file that has several, otherwise an error.
    """
    path = Path(path)
    try:
        _check_there(path)
        with open(path, "rb") as file:
            _check_head(path, file.read(512))
            file.seek(0)
            rate, channels, whole, blocks = _open(path, file)
            if not 1 <= channels <= 1024 or rate not in _RATES:
                raise AudioError(f"{path} claims {channels} channels at {rate} Hz; its header is damaged.")
            if channels > 1 and not mix:
                raise AudioError(
                    f"{path} has {channels} channels, not one.", hint="Pass --mix (mix=True) to average them."
                )
            if sample_rate not in (None, rate) and not resample:
                raise AudioError(
                    f"{path} has a sample rate of {rate} Hz, not {sample_rate}.",
                    hint="Pass --resample (resample=True) to convert it.",
                )
            wav = _collect(path, blocks)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise AudioError(f"{path} cannot be read: {error.strerror or error}.") from error
    if len(wav) < whole:
        _log.warning("%s is shorter than its header claims; the %d samples that are there are used.", path, len(wav))
    if sample_rate not in (None, rate):
        wav, rate = resampled(wav, rate, sample_rate), sample_rate
    if not len(wav):
        raise AudioError(f"{path} has no samples.")
    return wav, rate


def resampled(wav: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    if rate == new_rate:
        return wav
    try:
        import soxr
    except ImportError as error:
        raise AudioError(f"Converting {rate} Hz to {new_rate} Hz needs soxr.", hint=_INSTALL) from error
    return soxr.resample(wav, rate, new_rate, quality="HQ")


def write_wav(path: str | os.PathLike, wav: np.ndarray | Tensor, sample_rate: int, subtype: str = "PCM_16") -> int:
    """Writes wav (n_samples,) whole or not at all, replacing what was there; returns how many samples were clipped to ±1.

    PCM_16, PCM_24 and PCM_32 .wav files need no package. The suffix chooses the container, .wav if there is none.
    """
    path = Path(path)
    if isinstance(wav, Tensor):
        wav = wav.detach().cpu()
        wav = (wav.float() if wav.dtype in (torch.float16, torch.bfloat16) else wav).numpy()
    if not isinstance(wav, np.ndarray) or wav.dtype.kind != "f":
        got = wav.dtype if isinstance(wav, np.ndarray) else type(wav).__name__
        raise DTypeError(f"wav must be a float array within ±1, not {got}.", hint="Divide 16-bit samples by 32768.0.")
    if wav.ndim != 1:
        raise ShapeError(f"wav must be (n_samples,), not {wav.shape}.")
    if sample_rate not in _RATES:
        raise AudioError(f"{path}: a sample rate of {sample_rate!r} Hz cannot be written.")
    if not len(wav):
        raise AudioError(f"{path}: there are no samples to write.")
    peak = np.max([np.abs(block).max() for block in _slices(wav)])
    if not np.isfinite(peak):
        raise AudioError(f"{path}: sample {np.flatnonzero(~np.isfinite(wav))[0]} to be written is not finite.")
    n_clipped = sum(int(np.count_nonzero(np.abs(block) > 1)) for block in _slices(wav)) if peak > 1 else 0
    try:
        with atomic_path(path) as temporary:
            _write(path, temporary, wav, int(sample_rate), subtype)
    except OSError as error:
        raise AudioError(f"{path} cannot be written: {error.strerror or error}.") from error
    if n_clipped:
        _log.warning("%s: %d of %d samples clipped to ±1, peak %.3f.", path, n_clipped, len(wav), peak)
    return n_clipped


def _check_there(path: Path) -> None:
    if path.is_dir():
        raise AudioError(f"{path} is a folder, not a sound file.")
    if path.exists():
        return
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} does not exist: there is no folder {path.parent}.")
    close = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1)
    raise FileNotFoundError(f"{path} does not exist." + (f" Did you mean {close[0]}?" if close else ""))


def _check_head(path: Path, head: bytes) -> None:
    if not head:
        raise AudioError(f"{path} is empty.")
    if b"\0" in head:
        return
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return
    raise AudioError(f"{path} is a text file, not sound.", hint="If it was downloaded, the download failed.")


def _open(path: Path, file) -> tuple[int, int, int, Iterator[np.ndarray]]:
    """Sample rate, channels, length by the header, and blocks (n, channels) of float32."""
    try:
        reader = wave.open(file)  # noqa: SIM115  it does not own the file
    except (wave.Error, EOFError, RuntimeError, struct.error) as not_pcm:  # RuntimeError: a chunk beyond its parent
        file.seek(0)
        return _open_soundfile(path, file, not_pcm)
    if reader.getsampwidth() > 4:
        raise AudioError(f"{path} has samples of {8 * reader.getsampwidth()} bits; 8 to 32 can be read.")
    return reader.getframerate(), reader.getnchannels(), reader.getnframes(), _pcm_blocks(reader)


def _pcm_blocks(reader: wave.Wave_read) -> Iterator[np.ndarray]:
    width, channels = reader.getsampwidth(), reader.getnchannels()
    while data := reader.readframes(max(1, _BLOCK // channels)):
        raw = np.frombuffer(data, np.uint8)
        raw = raw[: len(raw) // (width * channels) * (width * channels)].reshape(-1, width)  # a cut last frame goes
        if width == 1:
            samples = raw.astype(np.float32) / 128 - 1
        else:  # to the upper bytes of an int32
            wide = np.zeros((len(raw), 4), np.uint8)
            wide[:, 4 - width :] = raw
            samples = (wide.view("<i4") / 2.0**31).astype(np.float32)
        yield samples.reshape(-1, channels)


def _open_soundfile(path: Path, file, not_pcm: Exception) -> tuple[int, int, int, Iterator[np.ndarray]]:
    soundfile = _soundfile(f"{path} is not plain PCM ({str(not_pcm) or 'damaged header'}); reading it")
    try:
        reader = soundfile.SoundFile(file)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{path} cannot be read as sound: {error.error_string}") from error
    # libsndfile silently corrects a length beyond the file's end, and says so only in its log.
    whole = reader.frames + ("(should be" in reader.extra_info.partition("\ndata : ")[2].partition("\n")[0])

    def blocks():
        try:
            yield from reader.blocks(max(1, _BLOCK // reader.channels), dtype="float32", always_2d=True)
        except RuntimeError as error:  # LibsndfileError among them
            raise AudioError(f"{path} is damaged: {error}") from error

    return reader.samplerate, reader.channels, whole, blocks()


def _collect(path: Path, blocks: Iterator[np.ndarray]) -> np.ndarray:
    parts, n_samples = [np.empty(0, np.float32)], 0
    for block in blocks:
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            first = int(np.argmin(finite))
            raise AudioError(f"{path} is not finite: {block[first].tolist()} at sample {n_samples + first}.")
        parts.append(block[:, 0] if block.shape[1] == 1 else block.mean(axis=1))
        n_samples += len(block)
    return np.concatenate(parts)


def _write(path: Path, temporary: Path, wav: np.ndarray, rate: int, subtype: str) -> None:
    container = path.suffix[1:].upper() or "WAV"
    if container == "WAV" and len(wav) * _WIDTHS.get(subtype, 8) > 0xFFFFFF00:
        raise AudioError(f"{path}: {len(wav)} samples are more than a .wav file can hold.", hint="Write .flac instead.")
    if container == "WAV" and subtype in _WIDTHS:
        width = _WIDTHS[subtype]
        with open(temporary, "wb") as file, wave.open(file, "wb") as writer:
            writer.setparams((1, width, rate, len(wav), "NONE", ""))
            for block in _slices(wav):
                writer.writeframes(_integers(block, width).reshape(-1, 1).view(np.uint8)[:, 4 - width :].tobytes())
        return
    soundfile = _soundfile(f"Writing {subtype} to {path}")
    if not soundfile.check_format(container, subtype):
        raise AudioError(f"{path}: {container} with {subtype} cannot be written.")
    try:
        with (
            open(temporary, "wb+") as raw,
            soundfile.SoundFile(raw, "w", rate, 1, subtype, format=container) as writer,
        ):
            for block in _slices(wav):
                writer.write(_integers(block, _WIDTHS[subtype]) if subtype in _WIDTHS else np.clip(block, -1, 1))
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{path} cannot be written: {error.error_string}") from error


def _integers(block: np.ndarray, width: int) -> np.ndarray:
    """Samples in the upper `width` bytes of little-endian int32. Full scale is 2^(bits-1), so that reading gives back the same."""
    full = 2.0 ** (8 * width - 1)
    values = np.clip(np.rint(block.astype(np.float64) * full), -full, full - 1)
    return (values * 2.0 ** (32 - 8 * width)).astype("<i4")


def _slices(wav: np.ndarray) -> Iterator[np.ndarray]:
    return (wav[start : start + _BLOCK] for start in range(0, len(wav), _BLOCK))


def _soundfile(purpose: str):
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the package is there, libsndfile is not
        raise AudioError(f"{purpose} needs soundfile.", hint=_INSTALL) from error
    return soundfile
