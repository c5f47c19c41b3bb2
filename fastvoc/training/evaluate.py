"""Copy-synthesis quality of a model on a folder of recordings: mel of each, vocoded freely, compared with the recording.

python -m fastvoc.training.evaluate --model runs/wavenet/model --data data/heldout [--out quality.json]
"""

import argparse
import json
from pathlib import Path

import torch

import fastvoc
from fastvoc._atomic import atomic_path
from fastvoc.audio import quality, read_wav
from fastvoc.demo import OPTIONS


def evaluate(
    model, paths: list[Path], precision: str = "fp32", temperature: float | None = None, seed: int = 0
) -> dict:
    """Mean and per-file log-mel distance (dB), PESQ-WB and STOI; all files in one batch.

    temperature: of the families that have one; None: the model's own.
    """
    rate = model.preprocessing.mel.sample_rate
    waves = [read_wav(path, sample_rate=rate)[0] for path in paths]
    mels = [model.preprocessing.features(wave) for wave in waves]
    lengths = [m.shape[1] for m in mels]
    batch = torch.stack([torch.nn.functional.pad(m, (0, max(lengths) - m.shape[1])) for m in mels])
    options = dict(OPTIONS.get(model.family, {})) if temperature is None else {"temperature": temperature}
    made = model.vocode(batch, lengths=lengths, precision=precision, seed=seed, **options)
    rows = [{"file": path.name, **quality(wave, out[: len(wave)], rate)} for path, wave, out in zip(paths, waves, made)]
    names = [k for k in rows[0] if k != "file"]
    mean = {k: sum(r[k] for r in rows) / len(rows) for k in names if all(r[k] is not None for r in rows)}
    return {"mean": mean, "files": rows, "precision": precision, "temperature": temperature, "seed": seed}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--temperature", type=float, nargs="*", default=[None])
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--files", type=int, default=24)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model = fastvoc.load(options.model)
    paths = sorted(options.data.rglob("*.wav"))[: options.files]
    results = [evaluate(model, paths, options.precision, t) for t in options.temperature]
    for result in results:
        print(result["temperature"], {k: round(v, 3) for k, v in result["mean"].items()})
    if options.out:
        with atomic_path(options.out) as path:
            path.write_text(json.dumps(results, indent=2) + "\n")
