"""fastvoc train: a vocoder from a folder of wavs. What was interrupted goes on where it stopped."""

import logging
from argparse import BooleanOptionalAction
from pathlib import Path

from fastvoc.cli.options import add_command, add_threads, check_folder, use_threads, whole
from fastvoc.cli.terminal import progress_bar
from fastvoc.errors import ConfigError
from fastvoc.models import MODELS
from fastvoc.models.pretrained import read_json

log = logging.getLogger("fastvoc")

NEEDED = ("family", "model", "mel", "training")


def add(commands) -> None:
    parser = add_command(commands, "train", run, "train a vocoder; the same command again resumes")
    parser.add_argument("family", choices=sorted(MODELS), metavar="FAMILY", help=", ".join(sorted(MODELS)))
    parser.add_argument("--data", type=Path, required=True, metavar="DIR",
                        help="a folder of wavs, or one with the folders train and heldout")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="gets model/, samples/, log.jsonl, curve.png and the state to resume from")
    parser.add_argument("--recipe", metavar="NAME|PATH",
                        help="a recipe that comes with fastvoc, or a .json file (default: FAMILY-demo)")
    parser.add_argument("--init", type=Path, metavar="PATH",
                        help="start from the weights of this checkpoint or model folder: a fine-tuning")
    parser.add_argument("--teacher", type=Path, metavar="PATH",
                        help="the trained WaveNet that a Parallel WaveNet is distilled from")
    parser.add_argument("--steps", type=whole(1, 10**9), metavar="N",
                        help="train up to this step (default: the recipe's)")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--compile", action=BooleanOptionalAction, help="use torch.compile (default: the recipe's)")
    add_threads(parser)


def run(options) -> None:
    from fastvoc.training.trainer import Trainer  # it loads what no other command needs

    check_folder(options.out, may_be_made=True)
    use_threads(options)
    recipe = read_recipe(options.recipe or f"{options.family}-demo", options.family)
    if options.teacher is not None:
        recipe["teacher"] = str(options.teacher)
    steps = options.steps or recipe["training"]["steps"]
    trainer = Trainer(recipe, options.data, options.out, options.compile, options.device, options.init)
    if trainer.step >= steps:
        log.info("%s is at step %d already; --steps asks for more", options.out, trainer.step)
        return
    started = trainer.step
    try:
        with progress_bar(options, f"training {options.family}", "step") as update:
            update(started, steps, initial=started)
            trainer.train(steps, lambda row: update(row["step"], steps, loss=f"{row['loss']:.3f}"))
    except KeyboardInterrupt:
        log.warning("stopped at step %d; the same command resumes from %s", trainer.step, options.out / "state.pt")
        raise
    log.info("%s is ready: fastvoc synth IN.wav -o OUT.wav --model %s", options.out / "model", options.out / "model")


def read_recipe(name: str, family: str) -> dict:
    folder = Path(__file__).parent.parent / "training" / "recipes"
    path = Path(name) if name.endswith(".json") else folder / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.json")))
        raise ConfigError(f"there is no recipe {name}", hint=f"Recipes are {known}, or the path of a .json file.")
    recipe = read_json(path)
    missing = [key for key in NEEDED if key not in recipe]
    if missing:
        raise ConfigError(f"{path} is no recipe: it lacks {', '.join(missing)}")
    if recipe["family"] != family:
        raise ConfigError(f"{path} is a recipe for {recipe['family']}, not for {family}")
    return recipe
