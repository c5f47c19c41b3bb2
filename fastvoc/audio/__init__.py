"""Sound in and out: mel front ends, reading and writing, µ-law, pre-emphasis, quality measures."""

from fastvoc.audio.mel import MelConfig, mel_spectrogram
from fastvoc.audio.mulaw import mulaw_decode, mulaw_encode
from fastvoc.audio.preemphasis import inv_preemphasis, preemphasis
from fastvoc.audio.quality import log_mel_distance, pesq_wb, quality, stoi
from fastvoc.audio.wav import read_wav, write_wav

__all__ = [
    "MelConfig",
    "inv_preemphasis",
    "log_mel_distance",
    "mel_spectrogram",
    "mulaw_decode",
    "mulaw_encode",
    "pesq_wb",
    "preemphasis",
    "quality",
    "read_wav",
    "stoi",
    "write_wav",
]
