"""Make the speech that the demo's vocoders are trained on: espeak-ng reads fastvoc/demo/text, one wav per sentence.

    python -m fastvoc.training.make_speech --out data/          # data/train/*.wav, data/heldout/*.wav

One voice, 16 kHz, 16 bit. Needs espeak-ng (Debian: apt install espeak-ng) and soxr; both are needed only here.
"""

import argparse
import io
import subprocess
import wave
from pathlib import Path

import numpy as np

TEXT = Path(__file__).parent.parent / "demo" / "text"
SAMPLE_RATE = 16000
PEAK = 0.7  # every sentence is scaled to the same peak: espeak-ng's own level varies with the vowels in it


def speak(sentence: str, voice: str, words_per_minute: int) -> np.ndarray:
    """A sentence as float32 samples at SAMPLE_RATE."""
    import soxr

    command = ["espeak-ng", "-v", voice, "-s", str(words_per_minute), "--stdout", sentence]
    spoken = subprocess.run(command, check=True, capture_output=True).stdout
    with wave.open(io.BytesIO(spoken)) as file:
        rate = file.getframerate()
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2")  # the header's length is a placeholder
    samples = soxr.resample(pcm.astype(np.float32) / 32768, rate, SAMPLE_RATE, quality="VHQ")
    return samples * (PEAK / np.abs(samples).max())


def make_speech(out: Path, voice: str = "en-us", words_per_minute: int = 150) -> None:
    for part in ("train", "heldout"):
        (out / part).mkdir(parents=True, exist_ok=True)
        for i, sentence in enumerate((TEXT / f"{part}.txt").read_text().splitlines()):
            pcm = np.round(speak(sentence, voice, words_per_minute) * 32767).astype("<i2")
            with wave.open(str(out / part / f"{i:04d}.wav"), "wb") as file:
                file.setnchannels(1), file.setsampwidth(2), file.setframerate(SAMPLE_RATE)
                file.writeframes(pcm.tobytes())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--voice", default="en-us")
    parser.add_argument("--words-per-minute", type=int, default=150)
    options = parser.parse_args()
    make_speech(options.out, options.voice, options.words_per_minute)
