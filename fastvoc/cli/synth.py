"""fastvoc synth: sound from mel files, from wavs whose mel it extracts first, or from noise alone, with any of the models."""

import argparse
import inspect
import json
import logging
import os
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

import fastvoc
from fastvoc._atomic import atomic_path
from fastvoc.audio.wav import read_wav, write_wav
from fastvoc.cli.features import read_mel
from fastvoc.cli.options import (
    add_command,
    add_device,
    add_generation,
    add_overwrite,
    add_reader_options,
    add_reading,
    check_folder,
    checked_device,
    is_done,
    positive,
    reader_options,
    use_threads,
    whole,
)
from fastvoc.cli.terminal import progress_bar, report
from fastvoc.errors import BackendUnavailableError, ConfigError, DeviceError

log = logging.getLogger("fastvoc")

FAILURES = "failures.jsonl"
FATAL = BrokenPipeError, BackendUnavailableError, ConfigError, DeviceError  # which no other input can mend: said once


def add(commands) -> None:
    parser = add_command(commands, "synth", run, "sound from mels (.npy), or from wavs whose mel is extracted first")
    parser.add_argument("inputs", nargs="*", type=Path, metavar="IN",
                        help="a wav, or a .npy of (n_mels, n_frames) log-mel values in the model's convention; none for a "
                        "model that takes no mel")
    parser.add_argument("-o", "--out", required=True, metavar="OUT",
                        help="a .wav or .flac file; for several inputs a folder")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a model folder or a checkpoint file")
    parser.add_argument("--normalised", action="store_true",
                        help="the .npy has the model's statistics applied; what `fastvoc mel` writes says so itself")
    parser.add_argument("--fail-fast", action="store_true", help="stop at the first input that fails (else go on)")
    add_reader_options(parser)
    unconditional = parser.add_argument_group("a model that takes no mel")
    unconditional.add_argument("--seconds", type=positive, metavar="S", help="of sound to make (default: the model's own length)")
    unconditional.add_argument("--rate", type=whole(1, 10**6), metavar="HZ",
                               help="sample rate of what comes out, where the model does not name it")
    family = parser.add_argument_group("options that some families take")
    family.add_argument("--speaker", type=int, metavar="N", help="for a model trained with speakers")
    family.add_argument("--label", type=whole(0, 2**31 - 1), metavar="N",
                        help="DiffWave: the class, for a model trained with classes")
    family.add_argument("--temperature", type=float, metavar="T",
                        help="WaveNet, Parallel WaveNet: 0 takes the most probable value (default: the model's own)")
    family.add_argument("--sigma", type=float, metavar="S", help="WaveGlow: deviation of the noise (default: 0.6)")
    family.add_argument("--denoise", type=float, metavar="STRENGTH",
                        help="WaveGlow: how much of its hum is taken out; 0.1 is usual (default: none)")
    family.add_argument("--schedule", type=_schedule, metavar="NAME",
                        help="DiffWave: full, fast, or β for each step, such as 1e-4,1e-3,0.01,0.05,0.2,0.5 (default: full)")
    add_reading(parser)
    add_overwrite(parser)
    add_generation(parser)
    add_device(parser)


def run(options) -> int:
    jobs = _jobs(options.inputs, options.out)
    threads, device = use_threads(options), checked_device(options)
    with fastvoc.backend(options.backend) if options.backend else nullcontext():
        model = fastvoc.load(options.model, device, options.precision, **reader_options(options))
        rate = _sample_rate(model, options)
        generation, denoise = _generation(model, threads, rate, options), _denoiser(model, options.denoise)
        failures = []
        for source, target in jobs:
            if is_done(target, options):
                continue
            try:
                _synthesise(source, target, model, generation, denoise, rate, options)
            except Exception as fault:
                if options.debug or isinstance(fault, FATAL):
                    raise
                failures.append({"input": str(source), "output": str(target), "error": type(fault).__name__, "message": str(fault)})
                report(fault, about=source)
                if options.fail_fast:
                    break
    if len(jobs) > 1:
        _write_failures(jobs[0][1].parent / FAILURES, failures, len(jobs))
    return 1 if failures else 0


def _sample_rate(model, options) -> int:
    """Of what will come out. Raises ConfigError unless the model and the call agree on whether there is a mel."""
    name = f"{options.model}: this {model.family} model"
    if model.n_mels:
        if not options.inputs:
            raise ConfigError(f"{name} makes sound from a mel, and no input is named", hint="Name a wav, or a .npy with the mel.")
        for option in ("seconds", "rate"):
            if getattr(options, option) is not None:
                raise ConfigError(f"--{option}: {name} takes a mel, which tells it")
    elif options.inputs:
        hint = "Leave the inputs out; --seconds says how much it generates."
        if model.family == "wavenet":  # it may be nv-wavenet's export
            hint += " Of nv-wavenet, name the training checkpoint (wavenet_*): an export has no upsampler."
        raise ConfigError(f"{name} takes no mel, but {options.inputs[0]} was given", hint=hint)
    if model.sample_rate is None:
        if model.n_mels:
            raise ConfigError(
                f"{options.model} does not say which recordings and mels it was trained on",
                hint="Save it with model.preprocessing set, which writes preprocessor_config.json.",
            )
        if options.rate is None:
            raise ConfigError(f"{name} comes without a sample rate", hint="Pass --rate HZ.")
        return options.rate
    if options.rate not in (None, model.sample_rate):
        raise ConfigError(f"--rate: {name} works at {model.sample_rate} Hz, not {options.rate}")
    return model.sample_rate


def _generation(model, threads: int, rate: int, options) -> dict:
    """What `infer` is given beside the mel. Raises ConfigError for an option that this model's does not take."""
    known = inspect.signature(model.infer).parameters
    given = {name: getattr(options, name) for name in ("speaker", "label", "temperature", "sigma", "schedule")}
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name not in known:
            raise ConfigError(f"--{name}: a {model.family} model takes no {name}")
    if "label" in given:
        given["label"] = torch.tensor([given["label"]], device=next(model.parameters()).device)
    if not model.n_mels:
        own = getattr(model.config, "audio_len", None)
        if options.seconds is None and own is None:
            raise ConfigError(f"{options.model}: this {model.family} model does not say how long its sound is",
                              hint="Pass --seconds S.")
        given["n_samples"] = own if options.seconds is None else max(1, round(options.seconds * rate))
    return {"seed": options.seed, "precision": options.precision, "threads": threads, **given}


def _denoiser(model, strength: float | None):
    """wave (1, n_samples) -> the same with less hum, or None."""
    if strength is None:
        return None
    if model.family != "waveglow":
        raise ConfigError(f"--denoise: a {model.family} model has no hum of its own to take out")
    from fastvoc.models.waveglow_denoiser import Denoiser

    denoiser = Denoiser(model)
    return lambda wave: denoiser(wave, strength)[:, 0]


def _synthesise(source: Path | None, target: Path, model, generation: dict, denoise, rate: int, options) -> None:
    """source None: from noise alone."""
    mel, normalised = (None, False) if source is None else _features(source, model, options)
    known = inspect.signature(model.infer).parameters
    if normalised and "normalised" in known:  # the model has the statistics, not its mel convention
        generation = {**generation, "normalised": True}
    with progress_bar(options, (source or target).name, "step" if "schedule" in known else "sample") as update:
        wave = model.infer(None if mel is None else mel[None], **generation, progress=update)
    if denoise is not None:
        wave = denoise(wave)
    wav = wave[0].cpu().numpy()
    wav = wav if model.preprocessing is None else model.preprocessing.from_model(wav)
    target.parent.mkdir(exist_ok=True)
    write_wav(target, wav, rate)
    log.info("%s: %.2f s of sound", target, len(wav) / rate)


def _features(source: Path, model, options) -> tuple[Tensor, bool]:
    """The mel as the model takes it, and whether statistics are applied."""
    if source.suffix == ".npy":
        return read_mel(source, model, options.normalised)
    config = model.preprocessing.mel
    wav, _ = read_wav(source, sample_rate=config.sample_rate, resample=options.resample, mix=options.mix)
    with torch.inference_mode():
        mel = model.preprocessing.features(wav)
    return mel.to(next(model.parameters()).device), config.mean is not None


def _write_failures(path: Path, failures: list[dict], n_jobs: int) -> None:
    """One JSON object a line for every input that failed; a file of an earlier run goes when none does any more."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    log.warning("%d of %d inputs failed; they are listed in %s", len(failures), n_jobs, path)
    path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(failure) + "\n" for failure in failures))


def _schedule(text: str):
    if text in ("full", "fast"):
        return text
    try:
        return [float(beta) for beta in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither full, fast, nor numbers with commas between") from None


def _jobs(inputs: list[Path], out: str) -> list[tuple[Path | None, Path]]:
    """(input, output) pairs; raises where two inputs would meet in one output, or the output cannot be written."""
    target = Path(out)
    if not inputs or (len(inputs) == 1 and not target.is_dir() and not out.endswith(os.sep)):
        if target.suffix.lower() not in (".wav", ".flac") or target.is_dir():
            folder = ", or a folder that exists" if inputs else ""
            raise ConfigError(f"cannot write {target}: the output is a .wav or .flac file{folder}")
        check_folder(target.parent)
        return [(inputs[0] if inputs else None, target)]
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
