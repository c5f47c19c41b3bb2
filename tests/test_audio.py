"""Sound in and out. tests/data/mel-a holds the outputs of the public mel front ends, nv-wavenet-a those of its µ-law.

The mel front ends' own numbers are compared in test_mel_goldens.py.
"""

import builtins
import os
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from fastvoc._atomic import atomic_path
from fastvoc.audio import (
    MelConfig,
    inv_preemphasis,
    log_mel_distance,
    mel_spectrogram,
    mulaw_decode,
    mulaw_encode,
    pesq_wb,
    preemphasis,
    quality,
    read_wav,
    stoi,
    write_wav,
)
from fastvoc.audio import mel as mel_module
from fastvoc.audio import wav as wav_module
from fastvoc.errors import AudioError, ConfigError, DTypeError, ShapeError

DATA = Path(__file__).parent / "data" / "mel-a"
MULAW = np.load(DATA.parent / "nv-wavenet-a" / "io.npz")


def speech(rate: int) -> np.ndarray:
    """float64, read by nothing of ours."""
    with wave.open(str(DATA / f"speech_{rate}.wav")) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768.0


# ---- mel ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "norm"), [("slaney", "slaney"), ("slaney", None), ("htk", "slaney"), ("htk", None)])
def test_filters_are_librosas(scale, norm):
    librosa = pytest.importorskip("librosa")
    ours = mel_module._tables(16000, 512, 400, 40, 55.0, 7000.0, scale, norm, None, torch.device("cpu"))[0]
    theirs = librosa.filters.mel(
        sr=16000, n_fft=512, n_mels=40, fmin=55, fmax=7000, htk=scale == "htk", norm=norm,
        dtype=np.float32 if scale == "slaney" else np.float64,
    )
    np.testing.assert_allclose(ours, theirs, rtol=2e-7 if scale == "slaney" else 1e-9, atol=1e-12)


def test_batch_is_loop_and_numpy_is_torch():
    config = MelConfig.preset("tacotron")
    wavs = torch.from_numpy(speech(22050)[:22000]).float().reshape(4, 5500)
    mels = mel_spectrogram(wavs, config)
    assert mels.shape == (4, 80, config.n_frames(5500))
    for wav, mel in zip(wavs, mels, strict=True):
        torch.testing.assert_close(mel_spectrogram(wav, config), mel, rtol=0, atol=1e-6)
        torch.testing.assert_close(mel_spectrogram(wav.numpy()[::-1][::-1], config), mel, rtol=0, atol=1e-6)
    assert mel_spectrogram(wavs[:0], config).shape == (0, 80, mels.shape[2])
    assert config.frames_to_samples(10) == 2560


def test_blocks_of_frames_leave_no_seam(monkeypatch):
    config = MelConfig.preset("bfs18")
    wav = torch.from_numpy(speech(16000))
    whole = mel_spectrogram(wav, config)
    monkeypatch.setattr(mel_module, "_FRAMES_PER_BLOCK", 7)
    torch.testing.assert_close(mel_spectrogram(wav, config), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("preset", ["tacotron", "bfs18", "lmnt"])
def test_shortest_input(preset):
    config = MelConfig.preset(preset)
    assert config.min_samples == config.n_fft // 2 + 1
    mel = mel_spectrogram(torch.ones(config.min_samples), config)
    assert mel.shape == (80, config.n_frames(config.min_samples))
    for n_samples in (0, 1, config.min_samples - 1):
        with pytest.raises(ShapeError, match=f"at least {config.min_samples}"):
            mel_spectrogram(torch.ones(n_samples), config)
    padded_with_zeros = MelConfig.preset(preset, pad_mode="constant")
    assert mel_spectrogram(torch.ones(1), padded_with_zeros).shape == (80, 1)


def test_mel_refuses_bad_waveforms():
    config = MelConfig.preset("tacotron")
    wav = torch.zeros(2, 1000)
    wav[1, 7] = float("nan")
    with pytest.raises(AudioError, match=r"nan at index \(1, 7\)"):
        mel_spectrogram(wav, config)
    with pytest.raises(AudioError, match="inf at index 3"):
        mel_spectrogram(np.where(np.arange(1000) == 3, np.inf, 0), config)
    with pytest.raises(DTypeError, match="32768"):
        mel_spectrogram(np.zeros(1000, np.int16), config)
    for dtype in (torch.float16, torch.complex64):
        with pytest.raises(DTypeError, match="float32 or float64"):
            mel_spectrogram(torch.zeros(1000, dtype=dtype), config)
    with pytest.raises(ShapeError, match="n_samples"):
        mel_spectrogram(torch.zeros(1, 1, 1000), config)
    with pytest.raises(DTypeError, match="list"):
        mel_spectrogram([0.0] * 1000, config)


def test_mel_has_gradients_even_after_inference_mode():
    mel_module._tables.cache_clear()
    config = MelConfig.preset("tacotron", n_mels=17)
    with torch.inference_mode():
        mel_spectrogram(torch.zeros(1000), config)
    wav = torch.zeros(1000).index_fill(0, torch.arange(400, 600), 0.5).requires_grad_()
    mel_spectrogram(wav, config).sum().backward()
    assert wav.grad.isfinite().all() and wav.grad.abs().max() > 0


def test_statistics_are_applied_last_and_undone():
    mean, scale = [float(i) for i in range(80)], [1.0 + i / 10 for i in range(80)]
    wav = torch.from_numpy(speech(22050)[:4000])
    raw = mel_spectrogram(wav, MelConfig.preset("parallel_wavegan"))
    config = MelConfig.preset("parallel_wavegan", mean=mean, scale=scale)
    mel = mel_spectrogram(wav, config)
    torch.testing.assert_close(mel, (raw - torch.tensor(mean)[:, None]) / torch.tensor(scale)[:, None].double())
    torch.testing.assert_close(config.denormalise(mel), raw)
    torch.testing.assert_close(config.normalise(raw[None].float()), mel[None].float())
    with pytest.raises(ShapeError, match="n_mels = 80"):
        config.normalise(raw.T)
    assert MelConfig.preset("tacotron").normalise(raw) is raw


def test_config_goes_through_a_dict():
    config = MelConfig.preset("lmnt", mean=range_of(80), scale=range_of(80, start=1))
    assert config.fmax == 11025  # half the sample rate
    assert MelConfig.from_dict(config.to_dict()) == config
    as_json = {name: list(value) if isinstance(value, tuple) else value for name, value in config.to_dict().items()}
    assert MelConfig.from_dict(as_json) == config and hash(MelConfig.from_dict(as_json)) == hash(config)
    r9y9, pwg = MelConfig.preset("r9y9").to_dict(), MelConfig.preset("parallel_wavegan").to_dict()
    assert [name for name in r9y9 if r9y9[name] != pwg[name]] == ["fmin"]


def range_of(n: int, start: int = 0) -> list[int]:
    return list(range(start, start + n))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hop_lenght": 256}, "no field 'hop_lenght'.*Did you mean 'hop_length'"),
        ({"win_length": 2048}, "win_length 2048 is larger than n_fft 1024"),
        ({"hop_length": 0}, "hop_length must be a positive whole number, not 0"),
        ({"n_fft": 1024.0}, "n_fft must be a positive whole number"),
        ({"n_fft": 10**9}, "n_fft is 1000000000"),
        ({"n_mels": 10**9}, "n_mels 1000000000 is larger than the 513 bins"),
        ({"n_mels": True}, "n_mels must be"),
        ({"fmin": -1}, "0 <= fmin < fmax"),
        ({"fmin": 8000}, "0 <= fmin < fmax"),
        ({"fmax": 12000}, "sample_rate / 2 = 11025"),
        ({"fmax": float("nan")}, "fmax must be a finite number"),
        ({"fmax": "8000"}, "fmax must be a finite number"),
        ({"power": 3}, "power must be one of 1.0, 2.0"),
        ({"log": "db"}, "log must be one of 'ln'"),
        ({"mel_scale": ["htk"]}, "mel_scale must be one of"),
        ({"floor": 0}, "floor must be positive"),
        ({"affine": (1, 0)}, "divide positive"),
        ({"affine": 3}, "affine must be 2 numbers"),
        ({"clip": (1, 0)}, "low < high"),
        ({"mean": [0.0] * 80}, "give both or neither"),
        ({"mean": [0.0] * 80, "scale": [1.0] * 79}, "scale must be 80 numbers or None, not a list of 79"),
        ({"mean": [0.0] * 80, "scale": [1.0] * 79 + [0.0]}, "band 79"),
    ],
)
def test_config_errors(changes, message):
    with pytest.raises(ConfigError, match=message):
        MelConfig.preset("tacotron", **changes)


def test_config_errors_of_names():
    with pytest.raises(ConfigError, match="'taoctron'.*Did you mean 'tacotron'"):
        MelConfig.preset("taoctron")
    with pytest.raises(ConfigError, match="There are: tacotron, lmnt"):
        MelConfig.preset("zzz")
    with pytest.raises(ConfigError, match="lacks n_fft, hop_length"):
        MelConfig.from_dict({"sample_rate": 22050})
    with pytest.raises(ConfigError, match="not list"):
        MelConfig.from_dict([1])


# ---- reading ------------------------------------------------------------------------------------------------------


def pcm(path: Path, samples: np.ndarray, rate: int = 16000, width: int = 2) -> Path:
    """samples: integers (n,) or (n, channels)."""
    samples = np.asarray(samples)
    data = samples.astype("<i4").reshape(-1, 1).view(np.uint8)[:, :width].tobytes()
    with wave.open(str(path), "wb") as file:
        file.setparams((1 if samples.ndim == 1 else samples.shape[1], width, rate, 0, "NONE", ""))
        file.writeframes(data)
    return path


def patched(path: Path, offset: int, fmt: str, value) -> Path:
    data = bytearray(path.read_bytes())
    struct.pack_into(fmt, data, offset, value)
    path.write_bytes(data)
    return path


@pytest.fixture
def bare(monkeypatch):
    """A machine without fastvoc[audio]."""
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name in ("soundfile", "soxr", "pesq", "pystoi"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)


@pytest.mark.parametrize("width", [2, 3, 4])
def test_pcm_needs_no_package(bare, tmp_path, width, monkeypatch):
    monkeypatch.setattr(wav_module, "_BLOCK", 3)
    full = 1 << (8 * width - 1)
    samples = np.array([0, 1, -1, full // 3, -full // 3, full - 1, -full])
    wav, rate = read_wav(pcm(tmp_path / "a.wav", samples, 8000, width))
    assert rate == 8000 and wav.dtype == np.float32
    np.testing.assert_array_equal(wav, (samples / full).astype(np.float32))


def test_speech_is_read_exactly(bare):
    for rate in (16000, 22050):
        wav, got = read_wav(DATA / f"speech_{rate}.wav", sample_rate=rate)
        assert got == rate
        np.testing.assert_array_equal(wav, speech(rate))


def test_8_bit_is_unsigned(bare, tmp_path):
    np.testing.assert_array_equal(read_wav(pcm(tmp_path / "a.wav", [0, 128, 255], width=1))[0], [-1, 0, 127 / 128])


def test_stereo(tmp_path):
    path = pcm(tmp_path / "stereo.wav", np.array([[16384, 0], [0, -16384], [100, 100]]))
    with pytest.raises(AudioError, match=r"stereo.wav has 2 channels.*--mix"):
        read_wav(path)
    np.testing.assert_array_equal(read_wav(path, mix=True)[0], np.array([0.25, -0.25, 100 / 32768], np.float32))


def test_sample_rate(tmp_path, bare):
    path = pcm(tmp_path / "a.wav", [1, 2, 3], rate=16000)
    with pytest.raises(AudioError, match=r"a.wav has a sample rate of 16000 Hz, not 22050.*--resample"):
        read_wav(path, sample_rate=22050)
    with pytest.raises(AudioError, match=r"needs soxr.*pip install fastvoc\[audio\]"):
        read_wav(path, sample_rate=22050, resample=True)


def test_resampling(tmp_path):
    pytest.importorskip("soxr")
    tone = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000) * 20000
    wav, rate = read_wav(pcm(tmp_path / "a.wav", tone.round()), sample_rate=22050, resample=True)
    assert rate == 22050 and wav.dtype == np.float32 and len(wav) == 22050
    expected = np.sin(2 * np.pi * 440 * np.arange(22050) / 22050) * 20000 / 32768
    assert np.abs(wav - expected)[500:-500].max() < 1e-4


def test_missing_path_names_its_neighbour(tmp_path):
    pcm(tmp_path / "speech_01.wav", [1])
    with pytest.raises(FileNotFoundError, match="Did you mean speech_01.wav"):
        read_wav(tmp_path / "speech_1.wav")
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
        read_wav(tmp_path / "nowhere" / "a.wav")
    with pytest.raises(AudioError, match="is a folder"):
        read_wav(tmp_path)


@pytest.mark.parametrize("with_soundfile", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><p>\xc3\xa4", "is a text file"),
        ("ä".encode() * 400, "is a text file"),
        (b"RIFF\0\0", "sound|soundfile"),
        (b"RIFF\x24\0\0\0WAVEjunk\xff\0\0\0" + bytes(40), "sound|soundfile"),
        (b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01", "sound|soundfile"),
        (np.random.default_rng(0).bytes(700) + b"\0" * 300, "sound|soundfile"),
    ],
    ids=["empty", "html", "utf-8", "cut", "long-chunk", "cut-in-fmt", "noise"],
)
def test_what_is_not_sound(content, message, with_soundfile, tmp_path, request):
    if with_soundfile:
        pytest.importorskip("soundfile")
    else:
        request.getfixturevalue("bare")
    path = tmp_path / "x.wav"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=f"x.wav.*({message})"):
        read_wav(path)


def test_damaged_headers(tmp_path):
    pytest.importorskip("soundfile")
    with pytest.raises(AudioError, match="no samples"):
        read_wav(pcm(tmp_path / "a.wav", np.zeros(0, int)))
    for offset, fmt, value in (
        (22, "<H", 0),
        (22, "<H", 60000),
        (24, "<I", 0),
        (24, "<I", 4_000_000_000),
        (34, "<H", 64),
    ):
        path = patched(pcm(tmp_path / "a.wav", np.zeros(200_000, int)), offset, fmt, value)
        with pytest.raises(AudioError, match="a.wav"):
            read_wav(path, mix=True)


def test_length_beyond_the_end_is_warned_of(tmp_path, caplog, bare):
    path = patched(pcm(tmp_path / "a.wav", range(100)), 40, "<I", 0xFFFFFFFE)
    assert len(read_wav(path)[0]) == 100
    assert "shorter than its header claims" in caplog.text
    caplog.clear()
    path.write_bytes(path.read_bytes()[:-3])  # the last sample, and half of the one before
    np.testing.assert_array_equal(read_wav(path)[0] * 32768, range(98))
    assert "the 98 samples" in caplog.text
    stereo = pcm(tmp_path / "s.wav", np.arange(20).reshape(10, 2))
    stereo.write_bytes(stereo.read_bytes()[:-2])  # half a frame
    np.testing.assert_array_equal(read_wav(stereo, mix=True)[0] * 32768, np.arange(9) * 2 + 0.5)


def test_every_truncation_is_an_audio_error_or_a_warning(tmp_path, caplog):
    pytest.importorskip("soundfile")
    whole = pcm(tmp_path / "a.wav", range(10)).read_bytes()
    path = tmp_path / "cut.wav"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        caplog.clear()
        try:
            wav, _ = read_wav(path)
        except AudioError as error:
            assert str(path) in str(error)
        else:
            assert len(wav) == (size - 44) // 2 and "shorter" in caplog.text


def test_float_wav(tmp_path, caplog):
    soundfile = pytest.importorskip("soundfile")
    path = tmp_path / "f.wav"
    samples = np.linspace(-1.5, 1.5, 101).astype(np.float32)
    soundfile.write(path, samples, 16000, subtype="FLOAT")
    np.testing.assert_array_equal(read_wav(path)[0], samples)
    assert not caplog.text
    data = path.read_bytes()
    path.write_bytes(data[:-40])
    assert len(read_wav(path)[0]) == 91 and "shorter" in caplog.text
    for bad in (np.nan, np.inf):
        samples[57] = bad
        soundfile.write(path, samples, 16000, subtype="FLOAT")
        with pytest.raises(AudioError, match=f"f.wav is not finite.*{bad}.* at sample 57"):
            read_wav(path)


def test_float_wav_without_soundfile(tmp_path, bare):
    path = patched(pcm(tmp_path / "f.wav", [1, 2], width=4), 20, "<H", 3)
    with pytest.raises(AudioError, match=r"needs soundfile.*pip install fastvoc\[audio\]"):
        read_wav(path)


def test_flac(tmp_path):
    pytest.importorskip("soundfile")
    wav = speech(16000)[4000:9000]
    assert write_wav(tmp_path / "a.flac", wav, 16000) == 0
    np.testing.assert_array_equal(read_wav(tmp_path / "a.flac")[0], wav)
    data = (tmp_path / "a.flac").read_bytes()
    assert data[:4] == b"fLaC"
    (tmp_path / "a.flac").write_bytes(data[: len(data) // 20])
    with pytest.raises(AudioError, match="a.flac"):
        read_wav(tmp_path / "a.flac")
    with pytest.raises(AudioError, match="XYZ with PCM_16 cannot be written"):
        write_wav(tmp_path / "a.xyz", wav, 16000)
    assert [path.name for path in tmp_path.iterdir()] == ["a.flac"]


# ---- writing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("subtype", "width"), [("PCM_16", 2), ("PCM_24", 3), ("PCM_32", 4)])
def test_write_then_read(bare, tmp_path, subtype, width, monkeypatch):
    monkeypatch.setattr(wav_module, "_BLOCK", 1000)
    wav = speech(16000)[:7777]
    path = tmp_path / "ünï.wav"
    assert write_wav(path, wav, 16000, subtype) == 0
    with wave.open(str(path)) as file:
        assert file.getparams()[:4] == (1, width, 16000, 7777)
    np.testing.assert_array_equal(read_wav(path)[0], wav)
    write_wav(path, torch.from_numpy(wav).float().requires_grad_(), 16000, subtype)  # replaces; tensors will do
    np.testing.assert_array_equal(read_wav(path)[0], wav)


def test_clipping_is_counted(bare, tmp_path, caplog):
    assert write_wav(tmp_path / "a.wav", np.array([1.0, -1.0, 1.25, -3.0, 0.5]), 16000) == 2
    assert "2 of 5 samples clipped" in caplog.text and "peak 3.000" in caplog.text
    np.testing.assert_array_equal(read_wav(tmp_path / "a.wav")[0] * 32768, [32767, -32768, 32767, -32768, 16384])
    caplog.clear()
    assert write_wav(tmp_path / "a.wav", np.array([1.0, -1.0]), 16000) == 0 and not caplog.text


def test_write_refuses(bare, tmp_path, monkeypatch):
    monkeypatch.setattr(wav_module, "_BLOCK", 3)
    good = np.zeros(10, np.float32)
    path, fifo = tmp_path / "a.wav", tmp_path / "fifo"  # as /dev/null: must not become a file
    os.mkfifo(fifo)
    refused = [
        (AudioError, "sample 4 to be written is not finite", (path, np.where(np.arange(10) == 4, np.nan, 0), 16000)),
        (DTypeError, "32768", (path, np.zeros(10, np.int16), 16000)),
        (ShapeError, "n_samples", (path, np.zeros((1, 10)), 16000)),
        (AudioError, "no samples", (path, good[:0], 16000)),
        (AudioError, "0 Hz", (path, good, 0)),
        (AudioError, "soundfile", (path, good, 16000, "FLOAT")),
        (AudioError, "soundfile", (tmp_path / "a.flac", good, 16000)),
        (AudioError, "output folder .*nowhere does not exist", (tmp_path / "nowhere" / "a.wav", good, 16000)),
        (AudioError, "not a regular file", (tmp_path, good, 16000)),
        (AudioError, "not a regular file", (fifo, good, 16000)),
    ]
    for error, message, args in refused:
        with pytest.raises(error, match=message):
            write_wav(*args)
    assert list(tmp_path.iterdir()) == [fifo] and not fifo.is_file()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(AudioError, match="a.wav cannot be written: Permission denied"):
        write_wav(tmp_path / "a.wav", np.zeros(10), 16000)


@pytest.mark.parametrize("problem", [OSError(28, "No space left on device"), KeyboardInterrupt(), SystemExit(143)])
@pytest.mark.parametrize("existing", [False, True])
def test_interrupted_writing_changes_nothing(problem, existing, tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    if existing:
        path.write_bytes(b"before")
    monkeypatch.setattr(wav_module, "_BLOCK", 10)
    integers, seen = wav_module._integers, []

    def fail_at_the_third(block, width):
        seen.append(sorted(p.name for p in tmp_path.iterdir() if p != path))
        if len(seen) == 3:
            raise problem
        return integers(block, width)

    monkeypatch.setattr(wav_module, "_integers", fail_at_the_third)
    with pytest.raises(AudioError if isinstance(problem, OSError) else type(problem), match="No space|^$|143"):
        write_wav(path, np.zeros(100), 16000)
    assert seen[-1] == [f".a.wav.tmp.{os.getpid()}"]  # it was being written, beside its place
    assert [p.name for p in tmp_path.iterdir()] == (["a.wav"] if existing else [])
    assert not existing or path.read_bytes() == b"before"


def test_atomic_path(tmp_path, monkeypatch):
    path, order = tmp_path / "a.json", []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    with atomic_path(str(path)) as temporary:
        temporary.write_text("new")
        assert not path.exists() and temporary.parent == tmp_path
    assert path.read_text() == "new" and order == ["fsync", "replace"]
    with pytest.raises(FileNotFoundError), atomic_path(path):
        pass  # nothing was written
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and path.read_text() == "new"


# ---- µ-law --------------------------------------------------------------------------------------------------------


def test_mulaw_is_nv_wavenets():
    wav, classes = MULAW["mulaw_wave"], MULAW["mulaw_class"]
    np.testing.assert_array_equal(mulaw_encode(wav), classes)
    np.testing.assert_array_equal(mulaw_encode(torch.from_numpy(wav).double()).numpy(), classes)
    decoded = mulaw_decode(classes)
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, MULAW["mulaw_decoded"], rtol=1e-6, atol=1e-7)
    assert torch.equal(mulaw_decode(torch.from_numpy(classes)), torch.from_numpy(decoded))


@pytest.mark.parametrize("n_classes", [2, 255, 256, 257, 65536])
def test_mulaw_round_trips(n_classes):
    q = torch.arange(n_classes)
    assert torch.equal(mulaw_encode(mulaw_decode(q, n_classes).double(), n_classes), q)
    np.testing.assert_array_equal(
        mulaw_encode(np.array([-9.0, -1.0, 1.0, 9.0]), n_classes), [0, 0, n_classes - 1, n_classes - 1]
    )


def test_mulaw_truncation_is_r9y9s():
    assert mulaw_encode(torch.zeros(()), rounding="truncate") == 127 and mulaw_encode(torch.zeros(())) == 128
    assert mulaw_encode(torch.zeros(()), 257, rounding="truncate") == 128  # 2018: µ = 256
    x = np.linspace(-1, 1, 1001)
    y = np.sign(x) * np.log1p(255 * np.abs(x)) / np.log1p(255)
    np.testing.assert_array_equal(mulaw_encode(x, rounding="truncate"), ((y + 1) / 2 * 255).astype(int))


def test_mulaw_refuses():
    for q in (np.array([3, 256]), torch.tensor([[3, 256]]), np.array([256])):
        with pytest.raises(IndexError, match="class 256 is outside 0 .. 255"):
            mulaw_decode(q)
    with pytest.raises(IndexError, match="class -1"):
        mulaw_decode(np.array([0, -1]))
    with pytest.raises(DTypeError, match="integer classes"):
        mulaw_decode(torch.zeros(3))
    with pytest.raises(DTypeError, match="32768"):
        mulaw_encode(np.zeros(3, np.int16))
    with pytest.raises(ConfigError, match="'round'"):
        mulaw_encode(torch.zeros(3), rounding="round")
    with pytest.raises(ConfigError, match="n_classes"):
        mulaw_decode(torch.zeros(3).long(), n_classes=1)


# ---- pre-emphasis -------------------------------------------------------------------------------------------------


def recursion(x: np.ndarray, coef: float) -> np.ndarray:
    y, last = np.empty(len(x)), 0.0
    for i, sample in enumerate(x.tolist()):
        y[i] = last = sample + coef * last
    return y


@pytest.mark.parametrize("coef", [0.0, 0.5, 0.85, 0.97, 0.999])
@pytest.mark.parametrize("n_samples", [0, 1, 2, 257, 40000])
def test_inverse_preemphasis_is_the_recursion(coef, n_samples):
    x = np.random.default_rng(0).standard_normal(n_samples)
    y, _ = inv_preemphasis(x, coef)
    np.testing.assert_allclose(y, recursion(x, coef), rtol=0, atol=1e-12 / (1 - coef))
    np.testing.assert_allclose(preemphasis(y, coef), x, rtol=0, atol=1e-11)
    y32, _ = inv_preemphasis(x.astype(np.float32), coef)
    assert y32.dtype == preemphasis(y32, coef).dtype == np.float32


def test_preemphasis_by_hand():
    np.testing.assert_array_equal(preemphasis(np.array([1.0, 2.0, 4.0]), 0.5), [1.0, 1.5, 3.0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_chunks_are_the_whole_bit_for_bit(dtype):
    x = np.random.default_rng(1).standard_normal(50000).astype(dtype)
    whole, last = inv_preemphasis(x, 0.97)
    for size in (1, 300, 4097, 20000):
        n_samples, state, parts = min(len(x), 300 * size), None, []
        for start in range(0, n_samples, size):
            part, state = inv_preemphasis(x[start : min(start + size, n_samples)], 0.97, state)
            parts.append(part)
        assert np.concatenate(parts).tobytes() == whole[:n_samples].tobytes()
    assert state.tobytes() == last.tobytes()


def test_preemphasis_refuses():
    x = np.zeros(4)
    for coef in (-0.1, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="coef"):
            inv_preemphasis(x, coef)
    with pytest.raises(DTypeError, match="int16"):
        preemphasis(np.zeros(4, np.int16), 0.9)
    with pytest.raises(ShapeError, match="n_samples"):
        preemphasis(np.zeros((1, 4)), 0.9)
    with pytest.raises(ShapeError, match="the state of coef 0.85"):
        inv_preemphasis(x, 0.85, np.zeros(3))


# ---- quality ------------------------------------------------------------------------------------------------------


def test_log_mel_distance():
    wav = speech(22050)
    assert log_mel_distance(wav, wav, 22050) == 0
    quieter = log_mel_distance(wav[:12000], torch.from_numpy(wav[:12800] / 2).float(), 22050)  # cut to equal length
    assert 5.5 < quieter <= 6.03  # 6.02 dB but for what lies under the floor
    noise = np.random.default_rng(0).standard_normal(len(wav))
    assert log_mel_distance(wav, wav + 1e-4 * noise, 22050) < log_mel_distance(wav, wav + 1e-2 * noise, 22050)
    assert 50 < log_mel_distance(noise, noise * 0, 22050) <= 100  # the floor hangs on the reference
    config = MelConfig.preset("tacotron", fmax=None, log="20log10", floor=1e-20)
    mels = [mel_spectrogram(side, config).numpy() for side in (wav, wav + 1e-2 * noise)]
    first, second = np.maximum(mels, mels[0].max() - 100)
    expected = np.mean([np.sqrt(np.mean(frame**2)) for frame in (first - second).T])
    assert log_mel_distance(wav, wav + 1e-2 * noise, 22050) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ShapeError, match="n_samples"):
        log_mel_distance(wav[None], wav[None], 22050)


def test_quality_without_packages(bare):
    wav = speech(16000)
    assert quality(wav, wav, 16000) == {"log_mel_distance": 0, "pesq_wb": None, "stoi": None}


def test_pesq():
    pytest.importorskip("pesq")
    wav = speech(16000)
    noisy = wav + 0.02 * np.random.default_rng(0).standard_normal(len(wav))
    assert pesq_wb(wav, noisy, 16000) < 2.5
    assert pesq_wb(wav, wav, 16000) > 4.6
    assert pesq_wb(wav * 0, wav * 0, 16000) is None


def test_stoi():
    pytest.importorskip("pystoi")
    wav = speech(16000)
    noisy = wav + 0.05 * np.random.default_rng(0).standard_normal(len(wav))
    assert stoi(wav, noisy, 16000) < 0.95 < stoi(wav, wav, 16000)
