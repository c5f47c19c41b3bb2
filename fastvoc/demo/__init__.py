"""A speech clip and a small WaveNet trained on the same voice, so that `fastvoc demo` runs at once.

The voice is espeak-ng's, reading the sentences in text/; fastvoc/training/make_speech.py makes it.
"""

from pathlib import Path

CLIP = Path(__file__).parent / "speech.wav"
WAVENET = Path(__file__).parent / "wavenet"

__all__ = ["CLIP", "WAVENET"]
