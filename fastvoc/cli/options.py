"""Options that mean the same in every command, and what commands check about their outputs before they start."""

import argparse
import json
import logging
import math
import os
from pathlib import Path

import torch

import fastvoc
from fastvoc._op import BACKENDS
from fastvoc.errors import DeviceError
from fastvoc.ops.wavenet_generate import PRECISIONS

log = logging.getLogger("fastvoc")


def everywhere() -> argparse.ArgumentParser:
    """--debug and --quiet, before or after the command's name."""
    parent = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    parent.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parent.add_argument("--quiet", action="store_true", help="no progress bars and no notes")
    return parent


def add_command(commands, name: str, run, help: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=help, parents=[everywhere()])
    parser.set_defaults(run=run)
    return parser


def add_threads(parser) -> None:
    parser.add_argument("--threads", type=whole(1, 1024), metavar="N",
                        help="threads of fastvoc and of torch (default: FASTVOC_NUM_THREADS, else torch's)")


def add_generation(parser) -> None:
    add_threads(parser)
    parser.add_argument("--seed", type=whole(0, 2**64 - 1), default=0, metavar="N",
                        help="names the noise; the same seed gives the same audio (default: 0)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32",
                        help="of weights and products; sums are fp32 (default: fp32)")


def add_reading(parser) -> None:
    parser.add_argument("--resample", action="store_true", help="convert a wav of another sample rate (else an error)")
    parser.add_argument("--mix", action="store_true", help="average the channels of a wav (else an error)")


def add_overwrite(parser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace an output that exists (else it is skipped)")


def add_reader_options(parser) -> None:
    parser.add_argument("--teacher", type=Path, metavar="PATH", help="the teacher's checkpoint, for a ClariNet student")
    parser.add_argument("--reader", action="append", default=[], type=_named, metavar="NAME=VALUE",
                        help="what else the checkpoint's reader asks for; may be given several times")
    parser.add_argument("--allow-nan", action="store_true", help="take weights that hold NaN or infinity (else an error)")


def reader_options(options) -> dict:
    """What a checkpoint's reader is given beside the path."""
    teacher = {} if options.teacher is None else {"teacher": options.teacher}
    return {**dict(options.reader), **teacher}


def add_device(parser) -> None:
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--backend", choices=BACKENDS, help="of every operator, instead of the best that runs here")


def checked_device(options) -> torch.device:
    """Raises DeviceError with the reason where the machine has no such device."""
    try:
        device = torch.device(options.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as fault:  # torch's words run over many lines
        raise DeviceError(
            f"--device {options.device}: {str(fault).partition(chr(10))[0]}", hint="Use --device cpu."
        ) from None
    return device


def use_threads(options) -> int:
    """--threads for our kernels and for torch's alike, so that what is compared has the same means."""
    n = options.threads or fastvoc.get_num_threads()
    fastvoc.set_num_threads(n)
    torch.set_num_threads(n)
    return n


def positive(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _named(text: str) -> tuple[str, object]:
    """NAME=VALUE; a value that is JSON is taken as that, another as text."""
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def whole(low: int, high: int):
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} does not lie in {low}…{high}")
        return value

    return parse


def check_folder(folder: Path, may_be_made: bool = False) -> None:
    """Raise unless files can be written into it, or into a folder that can be made there. Makes nothing yet."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
    place = folder.parent if may_be_made and not folder.exists() else folder
    if not place.is_dir():
        raise FileNotFoundError(f"the folder {place} does not exist")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f"the folder {place} is not writable")


def is_done(path: Path, options) -> bool:
    """Whether an output is there already and is to be kept."""
    if path.exists() and not options.overwrite:
        log.info("%s exists, skipped; --overwrite replaces it", path)
        return True
    return False
