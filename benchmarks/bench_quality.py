"""What a precision costs: the error against float64, and how the sound compares with the recording.

Every model that comes with fastvoc (fastvoc/demo/FAMILY), on the bundled clip, whose sentences no model was trained on, and on
data/heldout where `make speech` has made it. Families without trained weights show their error alone, with random weights.
"""

import math
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import fastvoc
from benchmarks import timer
from benchmarks.bench_models import CASES, TINY, noise_of
from benchmarks.bench_wavenet import say
from fastvoc.audio import quality, read_wav
from fastvoc.audio.mulaw import mulaw_encode
from fastvoc.audio.quality import log_mel_distance
from fastvoc.demo import CLIP, OPTIONS, bundled_models, precisions_of

COLUMNS = ["model", "weights", "precision", "error_db", "divergence_nats", "heard_on", "log_mel_distance", "pesq_wb", "stoi",
           "distance_to_fp32"]  # fmt: skip
HELDOUT = Path(__file__).parent.parent / "data" / "heldout"
FORCED_SECONDS = 2.0
SEEDS, FILES = 3, 24
LIMITS_DB = {"fp32": -80.0, "high": -60.0, "bf16": -20.0, "int8": -15.0}
METHOD = {
    "work": "no timings here",
    "error_db": "rms of the difference to the same weights in float64, relative to the rms of its output. WaveNet: network outputs "
    f"while the recording's samples are fed, {FORCED_SECONDS:.0f} s; the others: samples, the noise given",
    "divergence_nats": "WaveNet with classes: mean Kullback-Leibler divergence of a sample's distribution from float64's",
    "log_mel_distance, pesq_wb, stoi": "copy-synthesis against the recording (fastvoc.audio.quality): its mel, vocoded "
    f"freely; mean over {SEEDS} seeds on the clip, or over up to {FILES} files of data/heldout. A sampled WaveNet differs between "
    "precisions as it does between seeds: log_mel_distance_sd is the standard deviation over seeds",
    "distance_to_fp32": "log-mel distance between this precision's sound and that of fp32 with the same noise, clip, dB; of a "
    "WaveNet it says little, since one other draw makes another utterance",
    "random": "weights drawn at random, activations of order one: the error is telling, the sound is not, and is not rated. "
    "Quality needs trained weights",
    "checked": "error_db is at most " + ", ".join(f"{limit:.0f} in {p}" for p, limit in LIMITS_DB.items()),
}
REPORT = {
    "title": "Precision and quality", "group": ["model", "weights", "heard_on"], "vary": [], "metric": "error_db", "unit": "dB",
    "better": "lower", "ours": "fastvoc",
    "tables": [
        {"title": "Error against float64", "where": {"part": "error"}, "columns": {
            "model": "model", "weights": "weights", "precision": "precision", "divergence_nats": "divergence, nats a sample",
            "error_db": "error, dB relative to the signal"}},
        {"title": "Beside the recording", "where": {"part": "sound"}, "columns": {
            "model": "model", "heard_on": "heard on", "precision": "precision", "pesq_wb": "PESQ-WB", "stoi": "STOI",
            "log_mel_distance_sd": "± over seeds, dB", "log_mel_distance": "log-mel distance, dB"}},
    ],
}  # fmt: skip


def error_db(output: Tensor, exact: Tensor) -> float:
    rms = lambda t: float(t.double().pow(2).mean().sqrt())
    return 20 * math.log10(max(rms(output - exact), 1e-30) / rms(exact))


def error_row(name: str, weights: str, precision: str, db: float, **more) -> dict:
    if not db <= LIMITS_DB[precision]:
        raise timer.DisagreementError(f"{name} in {precision}: {db:.1f} dB beside float64, allowed are {LIMITS_DB[precision]:.0f}")
    return timer.rounded({"part": "error", "contender": "fastvoc", "model": name, "weights": weights, "precision": precision,
                          "error_db": db, **more})  # fmt: skip


def wavenet_errors(name: str, model, wave, mel: Tensor, seconds: float) -> Iterator[dict]:
    """Teacher-forced on the recording; float64 by `forward`, all samples at once."""
    frames = max(1, round(seconds * model.sample_rate / model.hop_length))
    mel, n = mel[:, :, :frames], frames * model.hop_length
    samples = torch.from_numpy(model.preprocessing.to_model(wave[:n]))[None].float()
    samples = F.pad(samples, (0, n - samples.shape[1]))
    config = model.config
    fed = samples if config.scalar_input else mulaw_encode(samples, config.mulaw_classes)
    start = config.start or 0.0
    if config.start is None and not config.scalar_input:
        start = mulaw_encode(torch.zeros(1), config.mulaw_classes).item()
    before = torch.cat([torch.full_like(fed[:, :1], start), fed[:, :-1]], 1)
    padded = F.pad(mel, (model.context_frames,) * 2, mode="replicate").double()
    exact_model = fastvoc.load(bundled_models()[name]).eval().double()
    exact = exact_model(before[:, None].double() if config.scalar_input else before, padded)
    for precision in precisions_of(model):
        with fastvoc.backend("cpu"):
            outputs = model.infer(mel, forced=fed, precision=precision)
        more = {}
        if config.head == "softmax":
            p = exact.log_softmax(1)
            more["divergence_nats"] = float((p.exp() * (p - outputs.double().log_softmax(1))).sum(1).mean())
        yield error_row(name, "trained", precision, error_db(outputs, exact), **more)


def feed_forward_errors(name: str, model, exact_model, mel: Tensor, weights: str, options: dict) -> Iterator[dict]:
    """The same noise for all. options: of `infer`"""
    steps = len(model.schedule_steps(options.get("schedule", "full"))) if model.family == "diffwave" else 1
    noise = noise_of(model, model.family, 1, mel.shape[2] * model.hop_length, steps)
    double = lambda x: x.double() if isinstance(x, Tensor) else type(x)(double(y) for y in x)
    with fastvoc.backend("reference"):
        exact = exact_model.double().infer(mel.double(), noise=double(noise), **options).double()
    for precision in precisions_of(model):
        with fastvoc.backend("cpu"):
            wave = model.infer(mel, noise=noise, precision=precision, **options)
        yield error_row(name, weights, precision, error_db(wave, exact))


def sound(name: str, model, waves: list, heard_on: str, seeds: int) -> list[dict]:
    """Copy-synthesis of each recording, by precision."""
    rate, options, rows, first = model.sample_rate, OPTIONS.get(model.family, {}), [], None
    mels = [model.preprocessing.features(wave)[None] for wave in waves]
    for precision in precisions_of(model):
        figures, made = [], []
        with fastvoc.backend("cpu"):
            for seed in range(seeds):
                for wave, mel in zip(waves, mels):
                    made.append(model.vocode(mel, seed=seed, precision=precision, **options)[0][: len(wave)])
                    figures.append(quality(wave[: len(made[-1])], made[-1], rate))
        first = first or made
        row = {"part": "sound", "contender": "fastvoc", "model": name, "weights": "trained", "precision": precision,
               "heard_on": heard_on}  # fmt: skip
        for measure in figures[0]:
            known = [f[measure] for f in figures if f[measure] is not None]
            row[measure] = statistics.mean(known) if known else None
        if len(waves) == 1 and seeds > 1:
            row["log_mel_distance_sd"] = statistics.stdev(f["log_mel_distance"] for f in figures)
        row["distance_to_fp32"] = statistics.mean(log_mel_distance(a, b, rate) for a, b in zip(first, made))
        rows.append(timer.rounded(row))
    return rows


@torch.inference_mode()
def run(quick: bool = False, n_threads: int | None = None, only: str = "") -> Iterator[dict]:
    """A part for each model, first errors, then sound. only: models whose name has this in it."""
    threads = n_threads or fastvoc.get_num_threads()
    with timer.threads(threads):
        bundled = {name: folder for name, folder in bundled_models().items() if only in name}
        for name, folder in bundled.items():
            model = fastvoc.load(folder).eval()
            wave, _ = read_wav(CLIP, sample_rate=model.sample_rate, resample=True)
            mel, seconds = model.preprocessing.features(wave)[None], 0.1 if quick else FORCED_SECONDS
            say(f"{name}: error against float64")
            if model.family == "wavenet":
                yield {"rows": list(wavenet_errors(name, model, wave, mel, seconds))}
            else:
                mel = mel[:, :, : max(2, round(seconds * model.sample_rate / model.hop_length))]
                exact, options = fastvoc.load(folder).eval(), OPTIONS.get(model.family, {})
                yield {"rows": list(feed_forward_errors(name, model, exact, mel, "trained", options))}
        trained = {fastvoc.load(folder).family for folder in bundled.values()}
        for name, case in (TINY if quick else CASES).items():
            if only in name and case.family not in trained:
                say(f"{name}: error against float64, random weights")
                model, frames = case.build(), 8 if quick else round(0.25 * case.rate / case.build().hop_length)
                mel = torch.rand(1, model.n_mels, frames, generator=torch.Generator().manual_seed(1)) * 0.8
                rows = feed_forward_errors(name, model, case.build(), mel, "random", case.infer)
                why = f"no trained {case.family} in fastvoc/demo: needs weights"
                yield {"rows": list(rows), "skipped": {f"{name}, sound": why}}
        for name, folder in bundled.items():
            model = fastvoc.load(folder).eval()
            read = lambda path, rate=model.sample_rate: read_wav(path, sample_rate=rate, resample=True)[0]
            say(f"{name}: sound")
            clip = read(CLIP)[: model.sample_rate if quick else None]
            yield {"rows": sound(name, model, [clip], "the demo clip", 1 if quick else SEEDS)}
            files = sorted(HELDOUT.rglob("*.wav"))[:FILES]
            if files and not quick:
                yield {"rows": sound(name, model, [read(f) for f in files], f"{len(files)} held-out sentences", 1)}
            elif not quick:
                yield {"skipped": {f"{name}, held-out sentences": "data/heldout is not here: make speech"}}
