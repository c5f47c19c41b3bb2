"""Every array of the mel goldens: the six public front ends, r9y9's of 2018, and what r9y9's recipe does around its own."""

import wave

import numpy as np
import pytest
import torch

from fastvoc.audio import MelConfig, mel_spectrogram
from fastvoc.audio.highpass import highpass
from fastvoc.audio.mel import _tables
from fastvoc.audio.silence import trim_silence
from fastvoc.errors import ConfigError
from fastvoc.models import Preprocessing
from tests.goldens import Golden

PRESETS = {"tacotron": "tacotron", "lmnt": "lmnt", "pwg": "parallel_wavegan", "r9y9": "r9y9", "r9y9_2018": "r9y9_2018",
           "clarinet": "clarinet", "bfs18": "bfs18"}


@pytest.fixture(scope="module")
def golden():
    return Golden("mel-a")


def speech(golden, name: str) -> np.ndarray:
    with wave.open(str(golden.path(name))) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768.0


def preset(golden, name: str) -> tuple[MelConfig, torch.Tensor]:
    said = golden.meta["hyperparameters"]["presets"][name]
    kind = PRESETS[name.rpartition("_")[0]]
    config = MelConfig.preset(
        kind, sample_rate=said["sampling_rate"], n_fft=said["n_fft"], hop_length=said["hop"], win_length=said["win"],
        fmin=said["fmin"], fmax=said["fmax"],
    )  # fmt: skip
    wav = torch.from_numpy(speech(golden, said["input"]))
    if kind in ("clarinet", "r9y9_2018"):  # the latter's rounding to float32 shows in quiet bands
        wav = wav.to(torch.float64 if kind == "clarinet" else torch.float32)
        wav = (wav / wav.abs().max() * 0.999).double()
    return config, wav


NAMES = ["tacotron_22050", "tacotron_16000", "lmnt_22050", "pwg_22050", "r9y9_22050", "r9y9_2018_22050", "clarinet_22050",
         "bfs18_16000"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_preset(golden, name, dtype):
    config, wav = preset(golden, name)
    mel = mel_spectrogram(wav.to(dtype), config)
    as_stored = mel if golden[name].shape[0] == config.n_mels else mel.T
    golden.check(name, as_stored)
    frames = golden[f"{name}_f64_frames"]
    if dtype == torch.float64:
        part = as_stored[:, 60:108] if frames.shape[1] == 48 else as_stored[60:108]
        # tacotron's Fourier basis and window are stored in float32; ours is not
        near = 5e-5 if name.startswith("tacotron") else 1e-11
        np.testing.assert_allclose(part.numpy(), frames, rtol=0, atol=near)
    assert sorted(golden.meta["hyperparameters"]["presets"]) == sorted(NAMES)


def test_the_comparison_notices_another_hop(golden):
    config, wav = preset(golden, "r9y9_2018_22050")
    with pytest.raises(AssertionError):
        golden.check("r9y9_2018_22050", mel_spectrogram(wav.roll(8), config).T)


def test_lws_frames(golden):
    config, wav = preset(golden, "r9y9_2018_22050")
    window = _tables(22050, 1024, 1024, 80, 125.0, 7600.0, "slaney", "slaney", 256, torch.device("cpu"))[1]
    np.testing.assert_allclose(window.numpy(), golden["lws_window"], rtol=1e-12, atol=1e-15)
    for n in (1, 255, 256, 257, 5000):
        assert mel_spectrogram(wav[:n], config).shape == (80, config.n_frames(n)) == (80, -(-n // 256) + 3)
    for changes in ({"win_length": 512}, {"hop_length": 300}):
        with pytest.raises(ConfigError, match="lws frames need"):
            MelConfig.preset("r9y9_2018", **changes)
    assert Preprocessing(config).features(wav[:5000].float().numpy()).shape == (80, 23)


# ---- r9y9's recipe around the mel ----------------------------------------------------------------------------------


def test_recipe(golden):
    wav = speech(golden, "speech_22050.wav")
    met = lambda name, got: np.testing.assert_allclose(got, golden[name], rtol=2e-7, atol=1e-7)  # stored as float32
    met("r9y9_recipe_lowcut", highpass(wav, 70, 22050)[:6000])
    trimmed = trim_silence(wav)
    recipe = Preprocessing(MelConfig.preset("r9y9"), preemphasis=0.85, gain=0.55, highpass=70)
    met("r9y9_recipe_feats", mel_spectrogram(highpass(trimmed, 70, 22050), recipe.mel).T)
    met("r9y9_recipe_wave", recipe.to_model(trimmed)[:12000])
    features = recipe.features(trimmed.astype(np.float32))
    assert features.shape[1] == -(-len(trimmed) // 256)
    np.testing.assert_allclose(features.T.numpy(), golden["r9y9_recipe_feats"][: features.shape[1]], atol=2e-4)


def test_recipe_survives_its_own_file():
    recipe = Preprocessing(MelConfig.preset("r9y9_2018"), highpass=70.0)
    assert Preprocessing.from_dict(recipe.to_dict()) == recipe


def test_highpass():
    t = np.arange(20000) / 16000
    low, high = np.sin(2 * np.pi * 5 * t), np.sin(2 * np.pi * 1000 * t)
    out = highpass(np.stack([low, high]), 70, 16000)
    assert np.abs(out[0, 1000:]).max() < 0.2 and np.abs(out[1, 1000:-1] - high[1000 - 127 : -1 - 127]).max() < 0.05
    assert highpass(np.zeros(0, np.float32), 70, 16000).shape == (0,)
    for cutoff in (0, -1, 8000, float("nan")):
        with pytest.raises(ConfigError, match="cutoff"):
            highpass(low, cutoff, 16000)


def test_trim_silence():
    wav = np.concatenate([np.zeros(5000), np.full(4000, 0.5), np.zeros(7000)]).astype(np.float32)
    trimmed = trim_silence(wav)
    assert 4000 <= len(trimmed) <= 4000 + 2 * 2048 and trimmed.dtype == np.float32 and (trimmed == 0.5).sum() == 4000
    assert len(trim_silence(np.zeros(3000))) == 3000 and len(trim_silence(wav[:10])) == 10
