"""One training step of every family: fastvoc in fp32 and bf16, beside the same models in plain PyTorch.

A step is what the trainer does: it cuts the batch out of the recordings, runs the networks, their losses and the backward
pass, clips the gradients, and updates weights and their average. Parallel WaveGAN's with its discriminator is two updates.
Sizes are those of the recipes for a CPU; the 256-channel WaveGlow is the published one with 2 of its 12 flows.

Memory is measured in a process of each contender's own:

    python -m benchmarks.bench_training CASE CONTENDER [--quick]        prints the bytes that a step adds at its highest
"""

import argparse
import copy
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import numpy as np
import torch

import fastvoc
from benchmarks import timer
from benchmarks.bench_serving import peak_memory
from benchmarks.bench_wavenet import say
from benchmarks.timer import Contender
from benchmarks.training_peers import plain_layers
from fastvoc.audio.mel import MelConfig
from fastvoc.audio.wav import write_wav
from fastvoc.cli.train import read_recipe
from fastvoc.models import Preprocessing, WaveNet
from fastvoc.models.pretrained import config_from_dict
from fastvoc.training.task import with_statistics
from fastvoc.training.trainer import Trainer

REPORT = {
    "title": "Training", "group": ["case"], "vary": ["threads"], "metric": "ms", "unit": "ms a step", "better": "lower",
    "baseline": "PyTorch eager", "ours": "fastvoc",
    "tables": [{
        "title": "Memory of a step",
        "columns": {"case": "case", "contender": "contender", "precision": "precision", "step_mb": "MB that a step adds"},
    }],
}  # fmt: skip
COLUMNS = [
    "case", "contender", "precision", "threads", "ms", "ms_min", "ms_max", "vs_eager", "step_mb", "of_eager_mb",
    "gradient_error", "disturbed_rounds",
]  # fmt: skip
METHOD = {
    "work": "one step of the trainer: batch, forward, losses, backward, clipping, optimiser, average; median of interleaved rounds",
    "PyTorch": "the same models with conv1d layers, channels first (benchmarks/training_peers.py); bf16: autocast, as ours is",
    "step_mb": "how far the resident memory rises above what it was before, in the third step of a process of its own",
    "gradient_error": "rms of the first step's gradient minus that of PyTorch eager in fp32, over the latter's rms",
    "checked": "loss and gradient of the first step against PyTorch eager: see TOLERANCES",
}
# Of the loss, and of the gradient's rms: relative. A logarithm's gradient at what is nearly silent makes bf16's large
TOLERANCES = {"fp32": (1e-4, 2e-2), "bf16": (5e-2, 0.5)}
CASES = {  # recipe, and what is changed in its training and model sections
    "WaveNet": ("wavenet-demo", {}, {}),
    "WaveGlow": ("waveglow-demo", {}, {}),
    "WaveGlow, 256 channels, 2 flows": ("waveglow-paper", {"batch_size": 1}, {"n_flows": 2}),
    "DiffWave": ("diffwave-demo", {}, {}),
    "Parallel WaveGAN, spectra": ("parallel_wavegan-demo", {}, {}),
    "Parallel WaveGAN, adversarial": ("parallel_wavegan-demo", {"discriminator": {"start": 0, "learning_rate": 2e-4}}, {}),
    "Parallel WaveNet": ("parallel_wavenet-demo", {}, {}),
}
CONTENDERS = {  # precision, ours, what is changed in the training section
    "PyTorch eager": ("fp32", False, {}),
    "torch.compile": ("fp32", False, {"compile": True}),
    "PyTorch autocast": ("bf16", False, {}),
    "fastvoc": ("fp32", True, {}),
    "fastvoc bf16": ("bf16", True, {}),
    "fastvoc memory-efficient": ("fp32", True, {"memory_efficient": True}),
}
ROUNDS, RETRIES = 5, 1
COMPILE_SECONDS = 300  # from the start; cases that begin later are timed without torch.compile
QUICK = "WaveGlow", "Parallel WaveGAN, adversarial"


def recipe_of(case: str, quick: bool) -> dict:
    name, training, model = CASES[case]
    recipe = read_recipe(name, name.partition("-")[0])
    recipe["training"] = {**recipe["training"], **training, "compile": False, "precision": "fp32", "memory_efficient": False}
    recipe["model"] = {**recipe["model"], **model}
    if quick:
        recipe["training"] = {**recipe["training"], "batch_size": 1, "segment_frames": 12}
        if recipe["family"] == "waveglow":
            recipe["model"] = {**recipe["model"], "n_flows": 2}
        if "stft" in recipe:
            recipe["model"] = {**recipe["model"], "layers": 4}
    if recipe["family"] == "parallel_wavenet":
        recipe["teacher"] = str(teacher())
    return recipe


@cache
def folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="fastvoc-training-")


@cache
def recordings(rate: int) -> Path:
    """Gliding tones with noise: a step's time does not hang on what is said."""
    to, t, rng = Path(folder().name) / str(rate), np.arange(2 * rate) / rate, np.random.default_rng(0)
    to.mkdir()
    for i, pitch in enumerate((110, 170, 230)):
        wave = 0.3 * np.sin(2 * np.pi * pitch * t * (1 + 0.1 * t)) + 0.03 * rng.standard_normal(len(t))
        write_wav(to / f"{i}.wav", wave.astype(np.float32), rate)
    return to


@cache
def teacher() -> Path:
    """An untrained Gaussian WaveNet of the demo's size."""
    recipe = read_recipe("wavenet-gaussian", "wavenet")
    torch.manual_seed(3)
    model = WaveNet(config_from_dict(WaveNet.Config, recipe["model"], "teacher"))
    mel = with_statistics(MelConfig.preset(**recipe["mel"]), [-3.0] * 80, [2.0] * 80)
    model.preprocessing = Preprocessing(mel, preemphasis=recipe["preemphasis"], gain=recipe["gain"])
    path = Path(folder().name) / "teacher"
    model.save_pretrained(path)
    return path


def around(ours: bool, n_threads: int):
    """The kernels forced, or nothing of ours: no fallback is ever timed."""

    def enter():
        stack = ExitStack()
        stack.enter_context(timer.threads(n_threads))
        stack.enter_context(fastvoc.backend("cpu") if ours else plain_layers())
        return stack

    return enter


def trainer_of(case: str, contender: str, quick: bool) -> Trainer:
    precision, _, changes = CONTENDERS[contender]
    recipe = copy.deepcopy(recipe_of(case, quick))
    recipe["training"] |= {"precision": precision, **changes}
    out = tempfile.mkdtemp(dir=folder().name)
    trainer = Trainer(recipe, recordings(recipe["mel"]["sample_rate"]), Path(out))
    wake(trainer.model)
    return trainer


@torch.no_grad()
def wake(model: torch.nn.Module) -> None:
    """Last layers that start as zeros let no gradient through: small numbers instead."""
    rng = torch.Generator().manual_seed(0)
    for p in model.parameters():
        if p.requires_grad and p.dim() > 1 and not p.any():
            p.copy_(0.01 * torch.randn(p.shape, generator=rng))


def first_step(trainer: Trainer) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss, and the gradient that the optimiser of "model" was given, one vector."""
    loss = trainer._update()["loss"]
    return loss.double(), torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]).double()


def contenders_of(case: str, with_compile: bool) -> tuple[list[str], dict[str, str]]:
    skipped = {}
    if not with_compile:
        skipped["torch.compile"] = "it takes minutes to compile: one thread only, and while COMPILE_SECONDS last"
    if not case.startswith("WaveGlow"):
        skipped["fastvoc memory-efficient"] = "only WaveGlow can compute its flows back"
    return [c for c in CONTENDERS if c not in skipped], skipped


def bench(case: str, n_threads: int, quick: bool, with_compile: bool) -> tuple[list[dict], dict]:
    say(f"{case}, {n_threads} threads")
    names, skipped = contenders_of(case, with_compile)
    contenders, errors, exact = {}, {}, None
    for name in names:
        precision, ours, _ = CONTENDERS[name]
        enter = around(ours, n_threads)
        try:
            with enter():
                trainer = trainer_of(case, name, quick)
                loss, gradient = first_step(trainer)
        except Exception as reason:
            if ours or name == "PyTorch eager":
                raise
            skipped[name] = f"{type(reason).__name__}: {str(reason).strip()[:300]}"  # a fact about the peer
            continue
        exact = exact or (loss, gradient)
        off = float((loss - exact[0]).abs() / exact[0].abs())
        errors[name] = float((gradient - exact[1]).norm() / exact[1].norm())
        if not (off <= TOLERANCES[precision][0] and errors[name] <= TOLERANCES[precision][1]):
            problem = f"loss off by {off:.3g}, gradient by {errors[name]:.3g}, allowed are {TOLERANCES[precision]}"
            if ours:
                raise timer.DisagreementError(f"{case}: {name}: {problem}")
            skipped[name] = problem
            continue
        contenders[name] = Contender(trainer._update, enter, output=lambda: None, threads=n_threads)
    rounds, retries = (2, 0) if quick else (ROUNDS, RETRIES)
    times = timer.interleave(contenders, rounds, min_time=0, retries=retries, check=lambda *_: None)  # all were checked just now
    memory = {name: memory_of(case, name, quick) for name in contenders if name != "torch.compile"}
    rows = []
    for name, t in times.items():
        mb = memory.get(name)
        rows.append(timer.rounded({
            "case": case, "contender": name.removesuffix(" bf16").removesuffix(" autocast"), "precision": CONTENDERS[name][0],
            "threads": n_threads, "ms": t.median * 1e3, "ms_min": t.min * 1e3, "ms_max": t.max * 1e3,
            "vs_eager": times["PyTorch eager"].median / t.median, "step_mb": mb,
            "of_eager_mb": mb and mb / memory["PyTorch eager"], "gradient_error": errors[name], **t.facts(),
        }))  # fmt: skip
    return rows, {f"{case}, {n_threads} threads, {what}": reason for what, reason in skipped.items()}


@cache
def memory_of(case: str, contender: str, quick: bool) -> float | None:
    """MB, in a process of its own; None where the system does not tell."""
    command = [sys.executable, "-m", "benchmarks.bench_training", case, contender, *(["--quick"] if quick else [])]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
    return None if said == "None" else int(said) / 1e6


def run(quick: bool = False, n_threads: int | None = None, only: str = "") -> Iterator[dict]:
    """A part for each case and number of threads. only: cases whose name has this in it."""
    start = time.monotonic()
    for case in QUICK if quick else CASES:
        for threads in sorted({1, n_threads or fastvoc.get_num_threads()}):
            if only in case:
                with_compile = not quick and threads == 1 and time.monotonic() - start < COMPILE_SECONDS
                rows, skipped = bench(case, threads, quick, with_compile)
                yield {"rows": rows, "skipped": skipped}


def main() -> None:
    parser = argparse.ArgumentParser(description="the memory of a training step")
    parser.add_argument("case", choices=CASES)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    with around(CONTENDERS[options.contender][1], 1)():
        trainer = trainer_of(options.case, options.contender, options.quick)
        trainer._update()
        trainer._update()  # the optimiser's state is there, and all that is made once
        for optimizer in trainer.optimizers.values():
            optimizer.zero_grad()
        print(peak_memory(trainer._update))


if __name__ == "__main__":
    main()
