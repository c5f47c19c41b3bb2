"""fastvoc synth: sound from mel files, or from wavs whose mel it extracts first."""

import logging
import os
from pathlib import Path

import torch
from torch import Tensor

import fastvoc
from fastvoc.audio.wav import read_wav, write_wav
from fastvoc.cli.features import read_mel
from fastvoc.cli.options import (
    add_command,
    add_generation,
    add_overwrite,
    add_reading,
    check_folder,
    is_done,
    use_threads,
)
from fastvoc.cli.terminal import progress_bar, report
from fastvoc.errors import ConfigError

log = logging.getLogger("fastvoc")


def add(commands) -> None:
    parser = add_command(commands, "synth", run, "sound from mels (.npy), or from wavs whose mel is extracted first")
    parser.add_argument("inputs", nargs="+", type=Path, metavar="IN",
                        help="a wav, or a .npy of (n_mels, n_frames) log-mel values in the model's convention")
    parser.add_argument("-o", "--out", required=True, metavar="OUT",
                        help="a .wav or .flac file; for several inputs a folder")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a model folder or a checkpoint file")
    parser.add_argument("--speaker", type=int, metavar="N", help="for a model trained with speakers")
    parser.add_argument("--temperature", type=float, metavar="T",
                        help="0 takes the most probable value (default: the model's own)")
    parser.add_argument("--normalised", action="store_true",
                        help="the .npy has the model's statistics applied, as `fastvoc mel --model` writes it")
    add_reading(parser)
    add_overwrite(parser)
    add_generation(parser)


def run(options) -> int:
    jobs = _jobs(options.inputs, options.out)
    threads = use_threads(options)
    model = fastvoc.load(options.model)
    generation = {
        "seed": options.seed, "temperature": options.temperature, "precision": options.precision, "threads": threads,
        "speaker": options.speaker,
    }
    model.stream(**generation)  # what no input can mend is said once, before the first of them
    jobs[0][1].parent.mkdir(exist_ok=True)
    failures = 0
    for source, target in jobs:
        if is_done(target, options):
            continue
        try:
            _synthesise(source, target, model, generation, options)
        except Exception as fault:
            if options.debug or isinstance(fault, BrokenPipeError):
                raise
            failures += 1
            report(fault, about=source)
    if failures and len(jobs) > 1:
        log.warning("%d of %d inputs failed", failures, len(jobs))
    return 1 if failures else 0


def _synthesise(source: Path, target: Path, model, generation: dict, options) -> None:
    mel, rate = _features(source, model, options)
    with progress_bar(options, source.name) as update:
        wav = model.vocode(mel[None], progress=update, **generation)[0]
    write_wav(target, wav, rate)
    log.info("%s: %.2f s of sound", target, len(wav) / rate)


def _features(source: Path, model, options) -> tuple[Tensor, int]:
    """The mel as the model takes it, and the sample rate of what will come out."""
    if model.preprocessing is None:
        raise ConfigError(
            f"{options.model} does not say which recordings and mels it was trained on",
            hint="Save it with model.preprocessing set, which writes preprocessor_config.json.",
        )
    rate = model.preprocessing.mel.sample_rate
    if source.suffix == ".npy":
        return read_mel(source, model, options.normalised), rate
    wav, _ = read_wav(source, sample_rate=rate, resample=options.resample, mix=options.mix)
    with torch.inference_mode():
        return model.preprocessing.features(wav), rate


def _jobs(inputs: list[Path], out: str) -> list[tuple[Path, Path]]:
    """(input, output) pairs; raises where two inputs would meet in one output, or the output cannot be written."""
    target = Path(out)
    if len(inputs) == 1 and not target.is_dir() and not out.endswith(os.sep):
        if target.suffix.lower() not in (".wav", ".flac"):
            raise ConfigError(f"cannot write {target}: the output is a .wav or .flac file, or a folder that exists")
        check_folder(target.parent)
        return [(inputs[0], target)]
    check_folder(target, may_be_made=True)
    jobs = [(source, target / f"{source.stem}.wav") for source in inputs]
    taken = {}
    for source, wav in jobs:
        if wav in taken:
            raise ConfigError(f"{taken[wav]} and {source} would both be written to {wav}")
        if source.absolute() == wav.absolute():
            raise ConfigError(f"{source} would be replaced by its own synthesis", hint="Write to another folder.")
        taken[wav] = source
    return jobs
