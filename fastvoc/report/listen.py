"""The demo clip through every model in every precision: sound, spectrogram, quality. Speed is the benchmarks'."""

import io
import logging
from collections.abc import Sequence
from pathlib import Path

import fastvoc
from fastvoc.audio import quality, read_wav
from fastvoc.demo import CLIP, OPTIONS, bundled_models, precisions_of
from fastvoc.errors import BackendUnavailableError, ConfigError
from fastvoc.report.charts import data_url, spectrogram

log = logging.getLogger("fastvoc")


def recordings(more: Sequence[Path] = (), seed: int = 0) -> list[dict]:
    """The original first, then model × precision: name, family, precision, audio and picture as data: URLs, figures.

    more: models beside those that come with fastvoc. Raises ConfigError for one that names no mel convention.
    """
    original, rate = read_wav(CLIP)
    made = [{"name": "the recording", "family": "", "precision": "", "wav": original, "rate": rate, "figures": {}}]
    models = [(name, fastvoc.load(path)) for name, path in (*bundled_models().items(), *((path.name, path) for path in more))]
    for name, model in models:
        if model.preprocessing is None or not model.n_mels:
            raise ConfigError(f"{name} takes no mel, or names no mel convention: it cannot speak the clip")
    for name, model in models:
        clip, _ = read_wav(CLIP, sample_rate=model.sample_rate, resample=True)
        mel = model.preprocessing.features(clip)[None]
        for precision in precisions_of(model):
            try:
                wav = model.vocode(mel, seed=seed, precision=precision, **OPTIONS.get(model.family, {}))[0][: len(clip)]
            except (BackendUnavailableError, ConfigError) as reason:
                log.warning("%s in %s is left out: %s", name, precision, reason)
                continue
            figures = quality(clip[: len(wav)], wav, model.sample_rate)
            made.append({
                "name": name, "family": model.family, "precision": precision, "wav": wav, "rate": model.sample_rate,
                "figures": figures,
            })  # fmt: skip
    for entry in made:
        wav, rate = entry.pop("wav"), entry["rate"]
        entry["audio"], entry["picture"] = _sound(wav, rate), spectrogram(wav, rate)
        entry["seconds"] = len(wav) / rate
    return made


def _sound(wav, rate: int) -> str:
    try:
        import soundfile
    except ImportError:
        raise ConfigError("the report needs soundfile to write sound", hint="pip install soundfile, or pass --no-audio.") from None
    buffer = io.BytesIO()
    soundfile.write(buffer, wav.clip(-1, 1), rate, format="FLAC", subtype="PCM_16")
    return data_url("audio/flac", buffer.getvalue())
