"""fastvoc convert: a public checkpoint as a model folder of fastvoc, which loads faster and holds nothing but tensors."""

import hashlib
import logging
import os
import shutil
from pathlib import Path

import fastvoc
from fastvoc.checkpoints import dropped, read_recognised, recognise
from fastvoc.cli.options import add_command, add_reader_options, check_folder, reader_options
from fastvoc.errors import ConfigError
from fastvoc.models.pretrained import is_model_folder

FILES = {"config.json", "model.safetensors", "preprocessor_config.json"}

log = logging.getLogger("fastvoc")


def add(commands) -> None:
    parser = add_command(commands, "convert", run, "a checkpoint as a model folder of fastvoc")
    parser.add_argument("source", type=Path, metavar="SRC", help="a checkpoint file, or the folder where it lies")
    parser.add_argument("target", type=Path, metavar="DST", help="the model folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace a model folder that exists (else an error)")
    add_reader_options(parser)


def run(options) -> None:
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
    log.info("%s: %s, %d parameters", options.target, reader.LAYOUT, sum(p.numel() for p in model.parameters()))
    if left_behind:
        log.info("left behind: %s", ", ".join(left_behind))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
