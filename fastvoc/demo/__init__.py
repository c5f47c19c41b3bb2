"""A speech clip and a small WaveNet trained on the same voice, so that `fastvoc demo` runs at once.

The voice is espeak-ng's, reading the sentences in text/; fastvoc/training/make_speech.py makes it.
"""

from pathlib import Path

CLIP = Path(__file__).parent / "speech.wav"
WAVENET = Path(__file__).parent / "wavenet"



def bundled_models() -> dict[str, Path]:
    """The model folders that come with fastvoc, by name: one trained model per family."""
    return {p.parent.name: p.parent for p in sorted(Path(__file__).parent.glob("*/config.json"))}


__all__ = ["CLIP", "WAVENET", "bundled_models"]
