"""A speech clip and small models trained on the same voice, so that `fastvoc demo` runs at once.

The voice is espeak-ng's, reading the sentences in text/; fastvoc/training/make_speech.py makes it.
"""

from pathlib import Path

CLIP = Path(__file__).parent / "speech.wav"
WAVENET = Path(__file__).parent / "wavenet"
OPTIONS = {"diffwave": {"schedule": "fast"}}  # of `vocode`, by family: what the bundled models are shown with


def bundled_models() -> dict[str, Path]:
    """The model folders that come with fastvoc, by name: one trained model per family."""
    return {p.parent.name: p.parent for p in sorted(Path(__file__).parent.glob("*/config.json"))}


def precisions_of(model) -> tuple[str, ...]:
    """What `infer` of this model takes as precision."""
    from fastvoc.ops import gated_residual_stack, wavenet_generate

    return (wavenet_generate if model.family == "wavenet" else gated_residual_stack).PRECISIONS


__all__ = ["CLIP", "OPTIONS", "WAVENET", "bundled_models", "precisions_of"]
