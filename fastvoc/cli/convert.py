"""fastvoc convert: a public checkpoint as a model folder of fastvoc, which loads faster and holds nothing but tensors."""

import argparse
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fastvoc
from fastvoc.checkpoints import dropped, n_parameters, read_recognised, recognise
from fastvoc.cli.options import add_command, add_reader_options, check_folder, positive, reader_options
from fastvoc.errors import CheckpointError, ConfigError
from fastvoc.models.pretrained import is_model_folder

FILES = {"config.json", "model.safetensors", "preprocessor_config.json"}

log = logging.getLogger("fastvoc")


def add(commands) -> None:
    parser = add_command(commands, "convert", run, "a checkpoint as a model folder of fastvoc")
    parser.add_argument("source", type=Path, metavar="SRC", help="a checkpoint file, or the folder where it lies")
    parser.add_argument("target", type=Path, metavar="DST", help="the model folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace a model folder that exists (else an error)")
    parser.add_argument("--sandbox", type=positive, metavar="GB",
                        help="convert in a process of its own that may take that much memory, for files of unknown origin")
    parser.add_argument("--memory", type=positive, help=argparse.SUPPRESS)  # what --sandbox tells its process
    add_reader_options(parser)


def run(options) -> int:
    if options.sandbox:
        return _in_a_process(options)
    if options.memory:
        _limit_memory(options.memory)
    source, target = options.source, Path(os.path.abspath(options.target))
    check_folder(target.parent)
    if target.exists():
        if not (target.is_dir() and set(os.listdir(target)) <= FILES):
            raise ConfigError(f"{options.target} exists and is no model folder", hint="Name a folder that is still to be made.")
        if not options.overwrite:
            raise ConfigError(f"{options.target} exists", hint="--overwrite replaces it.")
    if source.is_dir() and is_model_folder(source):
        raise ConfigError(f"{source} is a model folder of fastvoc already")
    if not source.exists():
        fastvoc.load(source)  # which says what there is instead
    path, reader, contents = recognise(source)
    left_behind = dropped(reader, contents)
    model = read_recognised(path, reader, contents, **reader_options(options))
    metadata = {"source": path.name, "source_sha256": _sha256(path), "fastvoc": fastvoc.__version__}
    temporary = target.with_name(f".{target.name}.tmp.{os.getpid()}")
    replaced = target.with_name(f".{target.name}.old.{os.getpid()}")
    try:
        model.save_pretrained(temporary, metadata=metadata)
        if target.exists():
            os.replace(target, replaced)
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if replaced.exists() and not target.exists():
            os.replace(replaced, target)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
    log.info("%s: %s, %d parameters", options.target, reader.LAYOUT, n_parameters(reader, contents))
    if left_behind:
        log.info("left behind: %s", ", ".join(left_behind))
    return 0


def _in_a_process(options) -> int:
    """The same command without --sandbox, elsewhere: what it takes or breaks is not ours."""
    command = [sys.executable, "-m", "fastvoc", "convert", str(options.source), str(options.target)]
    command += ["--memory", str(options.sandbox)]
    flags = "overwrite", "quiet", "debug", "allow_nan"
    command += ["--" + flag.replace("_", "-") for flag in flags if getattr(options, flag)]
    for name, value in reader_options(options).items():
        command += ["--teacher", str(value)] if name == "teacher" else ["--reader", f"{name}={json.dumps(value)}"]
    code = subprocess.run(command).returncode
    if code < 0 or code > 2:
        raise CheckpointError(f"{options.source}: the conversion was stopped in its sandbox (exit code {code})")
    return code


def _limit_memory(gigabytes: float) -> None:
    """Address space beyond what the process has already."""
    import resource

    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    limit = taken + int(gigabytes * (1 << 30))
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
