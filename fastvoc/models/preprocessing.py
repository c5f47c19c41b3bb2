"""What stands between a recording and a vocoder: the mel convention, pre-emphasis and gain (preprocessor_config.json)."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastvoc.audio.highpass import highpass
from fastvoc.audio.mel import MelConfig, mel_spectrogram
from fastvoc.audio.preemphasis import inv_preemphasis, preemphasis
from fastvoc.errors import ConfigError
from fastvoc.models.config_values import check_values


@dataclass(frozen=True)
class Preprocessing:
    """mel          the mel convention, with the training set's statistics where the model was trained on them
    preemphasis  coefficient of the filter in front of the model; undone after it
    gain         the model works on gain · signal
    temperature  of sampling, where the caller gives none
    highpass     cutoff in Hz of the filter in front of mel and model (audio/highpass.py); 0: none. It is not undone
    """

    mel: MelConfig
    preemphasis: float = 0.0
    gain: float = 1.0
    temperature: float = 1.0
    highpass: float = 0.0

    def features(self, wav: np.ndarray) -> Tensor:
        """(n_samples,) recording -> (n_mels, ⌈n_samples / hop⌉) normalised mel, one frame per hop.

        lws frames (MelConfig.framing) are n_fft / hop - 1 more: a vocoder's output for those is a lead-in.
        """
        mel = mel_spectrogram(torch.from_numpy(self._filtered(wav)), self.mel)
        return mel if self.mel.framing == "lws" else mel[:, : -(-len(wav) // self.mel.hop_length)]

    def to_model(self, wav: np.ndarray) -> np.ndarray:
        """The signal that the model predicts, in [-1, 1]."""
        wav = self._filtered(wav)
        wav = preemphasis(wav, self.preemphasis) if self.preemphasis else wav
        return np.clip(wav * np.float32(self.gain), -1.0, 1.0)

    def from_model(self, wav: np.ndarray) -> np.ndarray:
        """The inverse of to_model, but for the high pass."""
        wav = wav / np.float32(self.gain)
        return inv_preemphasis(wav, self.preemphasis)[0] if self.preemphasis else wav

    def _filtered(self, wav: np.ndarray) -> np.ndarray:
        return highpass(wav, self.highpass, self.mel.sample_rate) if self.highpass else wav

    def to_dict(self) -> dict:
        return {**dataclasses.asdict(self), "mel": self.mel.to_dict()}

    @classmethod
    def from_dict(cls, values: dict) -> "Preprocessing":
        known = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(f"preprocessor_config.json: unknown key {key!r}; known are {known}")
        if "mel" not in values:
            raise ConfigError("preprocessor_config.json: the key 'mel' is missing")
        check_values(cls, values, "preprocessor_config.json")
        if values.get("gain") == 0:
            raise ConfigError("preprocessor_config.json: gain must not be 0, which nothing undoes")
        return cls(**{**values, "mel": MelConfig.from_dict(values["mel"])})
