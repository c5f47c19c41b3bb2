"""fastvoc demo: hear the bundled clip again from its mel alone, and see how fast that was and how near it came."""

import importlib.util
import logging
from pathlib import Path

import numpy as np

import fastvoc
from fastvoc.audio import quality, read_wav, write_wav
from fastvoc.cli.options import add_command, add_generation, check_folder, positive, use_threads
from fastvoc.cli.terminal import print_table, progress_bar
from fastvoc.demo import CLIP, OPTIONS, bundled_models
from fastvoc.demo.run import CHECKED_SAMPLES, ENGINE, LOOP, TOLERANCE, check_agreement, vocode_timed
from fastvoc.errors import ConfigError

log = logging.getLogger("fastvoc")

MEASURES = (  # name in `quality`, name for people, format
    ("log_mel_distance", "log-mel distance", "{:.2f} dB"), ("pesq_wb", "PESQ-WB", "{:.2f}"), ("stoi", "STOI", "{:.3f}"),
)
PEER_SECONDS = {"wavenet": 0.2}  # its loop makes some thousand samples a second
OTHER_PEER_SECONDS = 2.0


def add(commands) -> None:
    parser = add_command(commands, "demo", run, "vocode a speech clip, and time it beside plain PyTorch")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), metavar="DIR",
                        help="gets the recording, a wav of every model and a picture (default: demo-out/)")
    parser.add_argument("--model", type=Path, action="append", metavar="DIR",
                        help="a model folder or checkpoint; may be given several times (default: all that come with fastvoc)")
    parser.add_argument("--clip", type=Path, default=CLIP, metavar="WAV",
                        help="default: the speech that comes with fastvoc")
    parser.add_argument("--peer-seconds", type=positive, metavar="S",
                        help="how much of the clip plain PyTorch vocodes (default: 0.2 by a WaveNet, else 2)")
    add_generation(parser)


def run(options) -> None:
    check_folder(options.out, may_be_made=True)
    threads = use_threads(options)
    models = [fastvoc.load(path) for path in options.model or bundled_models().values()]
    for model in models:
        if model.preprocessing is None:
            raise ConfigError(f"this {model.family} has no preprocessor_config.json: it names no mel convention")
    original, own_rate = read_wav(options.clip)
    made = [("recording", original, own_rate)]
    rows = [("", "samples/s", "real-time factor", "ratio", *(name for _, name, _ in MEASURES))]
    for i, model in enumerate(models):
        namesakes = sum(m.family == model.family for m in models[:i])
        name = model.family + (f"-{namesakes + 1}" if namesakes else "")
        clip, rate = read_wav(options.clip, sample_rate=model.sample_rate, resample=True)
        mel = model.preprocessing.features(clip)
        difference = check_agreement(model, mel, clip, threads)
        log.info("%s: kernels and plain PyTorch agree: %.1e ≤ %.0e over %d samples, fp32",
                 name, difference, TOLERANCE, CHECKED_SAMPLES)
        seconds = options.peer_seconds or PEER_SECONDS.get(model.family, OTHER_PEER_SECONDS)
        n_frames = max(1, round(seconds * rate / model.hop_length))
        ours = _timed(model, ENGINE, mel, name, options.precision, threads, options)
        peer = _timed(model, LOOP, mel[:, :n_frames], f"{name}, PyTorch", "fp32", threads, options)
        result = ours.wavs[0][: len(clip)]
        made.append((name, result, rate))
        figures = quality(clip[: len(result)], result, rate)
        styled = ("not installed" if figures[key] is None else style.format(figures[key]) for key, _, style in MEASURES)
        rows.append((name, *_speeds(ours, peer), *styled))
        loop = ", sample by sample" if model.family == "wavenet" else ""
        rows.append((f"  the same in PyTorch{loop}", *_speeds(peer, peer), *[""] * len(MEASURES)))

    _write(options.out, made)
    n = f"{threads} thread" + ("s" if threads > 1 else "")
    print(f"fastvoc on the CPU: {fastvoc.cpu_isa()}, {options.precision}, {n}\n")
    print_table(rows)
    print(f"\n{len(original) / own_rate:.2f} s of sound from its mel spectrogram alone, by every model, in {options.out}")


def _timed(model, backend: str, mel, name: str, precision: str, threads: int, options):
    settings = {"seed": options.seed, "precision": precision, "threads": threads, **OPTIONS.get(model.family, {})}
    vocode_timed(model, backend, mel[None, :, :1], **settings)
    with progress_bar(options, name) as update:
        return vocode_timed(model, backend, mel[None], progress=update, **settings)


def _speeds(timing, peer) -> tuple[str, ...]:
    return f"{timing.samples_per_s:,.0f}", f"{timing.rtf:.3f}", f"{timing.samples_per_s / peer.samples_per_s:.3g}×"


def _write(folder: Path, made: list[tuple[str, np.ndarray, int]]) -> None:
    folder.mkdir(exist_ok=True)
    for name, wav, rate in made:
        write_wav(folder / f"{name}.wav", wav, rate)
    if importlib.util.find_spec("matplotlib") is None:
        log.warning("matplotlib is not installed, so there is no picture")
        return
    from fastvoc.demo.plot import plot_side_by_side

    recording, *others = made
    plot_side_by_side(folder / "demo.png", [recording, *((f"{name}, from its mel", wav, rate) for name, wav, rate in others)])
