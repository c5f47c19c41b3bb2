"""fastvoc demo: hear the bundled clip again from its mel alone, and see how fast that was and how near it came."""

import importlib.util
import logging
from pathlib import Path

import numpy as np

import fastvoc
from fastvoc.audio import quality, read_wav, write_wav
from fastvoc.cli.options import add_command, add_generation, check_folder, positive, use_threads
from fastvoc.cli.terminal import print_table, progress_bar
from fastvoc.demo import CLIP, WAVENET
from fastvoc.demo.run import CHECKED_SAMPLES, ENGINE, LOOP, TOLERANCE, check_agreement, vocode_timed
from fastvoc.errors import ConfigError

log = logging.getLogger("fastvoc")

MEASURES = (  # name in `quality`, name for people, format
    ("log_mel_distance", "log-mel distance", "{:.2f} dB"), ("pesq_wb", "PESQ-WB", "{:.2f}"), ("stoi", "STOI", "{:.3f}"),
)


def add(commands) -> None:
    parser = add_command(commands, "demo", run, "vocode a speech clip, and time it beside a plain PyTorch loop")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), metavar="DIR",
                        help="gets two wavs and a picture (default: demo-out/)")
    parser.add_argument("--model", type=Path, default=WAVENET, metavar="DIR",
                        help="default: the small WaveNet that comes with fastvoc")
    parser.add_argument("--clip", type=Path, default=CLIP, metavar="WAV",
                        help="default: the speech that comes with fastvoc")
    parser.add_argument("--peer-seconds", type=positive, default=0.2, metavar="S",
                        help="how much of the clip the PyTorch loop vocodes (default: 0.2)")
    add_generation(parser)


def run(options) -> None:
    check_folder(options.out, may_be_made=True)
    threads = use_threads(options)
    model = fastvoc.load(options.model)
    if model.preprocessing is None:
        raise ConfigError(f"{options.model} has no preprocessor_config.json: it names no mel convention")
    rate = model.preprocessing.mel.sample_rate
    original, _ = read_wav(options.clip, sample_rate=rate)
    mel = model.preprocessing.features(original)

    difference = check_agreement(model, mel, original, threads)
    log.info("engine and PyTorch loop agree: %.1e ≤ %.0e over %d samples, fp32", difference, TOLERANCE, CHECKED_SAMPLES)
    n_frames = max(1, round(options.peer_seconds * rate / model.samples_per_frame))
    ours = _timed(model, ENGINE, mel, "fastvoc", options.precision, threads, options)
    peer = _timed(model, LOOP, mel[:, :n_frames], "PyTorch loop", "fp32", threads, options)
    result = ours.wavs[0][: len(original)]
    figures = quality(original, result, rate)

    _write(options.out, original, result, rate)
    n = f"{threads} thread" + ("s" if threads > 1 else "")
    print_table([
        ("", "samples/s", "real-time factor", "ratio"),
        _row(f"fastvoc (cpu, {fastvoc.cpu_isa()}, {options.precision}, {n})", ours, peer),
        _row("PyTorch incremental loop", peer, peer),
    ])
    print()
    for key, name, style in MEASURES:
        print(f"{name:<17} {'not installed' if figures[key] is None else style.format(figures[key])}")
    print(f"\n{len(result) / rate:.2f} s of sound at {rate} Hz in {options.out}")


def _timed(model, backend: str, mel, name: str, precision: str, threads: int, options):
    settings = {"seed": options.seed, "precision": precision, "threads": threads}
    vocode_timed(model, backend, mel[None, :, :1], **settings)
    with progress_bar(options, name) as update:
        return vocode_timed(model, backend, mel[None], progress=update, **settings)


def _row(name: str, timing, peer) -> tuple[str, ...]:
    ratio = timing.samples_per_s / peer.samples_per_s
    return name, f"{timing.samples_per_s:,.0f}", f"{timing.rtf:.3f}", f"{ratio:.3g}×"


def _write(folder: Path, original: np.ndarray, result: np.ndarray, rate: int) -> None:
    folder.mkdir(exist_ok=True)
    write_wav(folder / "original.wav", original, rate)
    write_wav(folder / "wavenet.wav", result, rate)
    if importlib.util.find_spec("matplotlib") is None:
        log.warning("matplotlib is not installed, so there is no picture")
        return
    from fastvoc.demo.plot import plot_pair

    plot_pair(folder / "wavenet.png", original, result, rate, "WaveNet, from the original's mel")
