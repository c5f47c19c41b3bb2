"""The trainer: one loop for every family. A recipe says what to train; an output folder holds everything that comes of it.

    OUT/state.pt      model, averaged model, optimiser, step: what a resumed training needs
    OUT/log.jsonl     one line per report: step, loss, validation loss, learning rate, seconds
    OUT/curve.png     the losses so far
    OUT/model/        the averaged weights as a fastvoc model folder, ready to load
    OUT/samples/      what the averaged model says when it runs free

A resumed training is the same training: the data and the noise of a step depend on the seed and the step alone.
"""

import ctypes
import json
import logging
import pickle
import time
from contextlib import suppress
from pathlib import Path

import torch

from fastvoc._atomic import atomic_path
from fastvoc.errors import ConfigError, CorruptCheckpointError
from fastvoc.training.data import Corpus
from fastvoc.training.wavenet import WaveNetTask

log = logging.getLogger("fastvoc")

TASKS = {"wavenet": WaveNetTask}
OPTIONS = (
    "seed", "steps", "batch_size", "segment_frames", "learning_rate", "warmup_steps", "half_life_steps",
    "minimum_learning_rate", "gradient_clip", "ema_decay", "validate_every", "checkpoint_every", "sample_every",
)  # fmt: skip
REPORT_EVERY = 100
VALIDATION_BATCHES = 8


def learning_rate(step: int, options: dict) -> float:
    """Linear warm-up, then halved every half_life_steps."""
    rate = options["learning_rate"] * 0.5 ** (step / options["half_life_steps"])
    return max(rate, options["minimum_learning_rate"]) * min(1.0, (step + 1) / options["warmup_steps"])


class Trainer:
    def __init__(self, recipe: dict, data: Path, out: Path, compile: bool | None = None):
        if recipe["family"] not in TASKS:
            raise ConfigError(f"recipe of unknown family {recipe['family']!r}; known are {sorted(TASKS)}")
        self.recipe, self.options, self.out = recipe, recipe["training"], Path(out)
        missing = [name for name in OPTIONS if name not in self.options]
        if missing:
            raise ConfigError(f"the recipe's training section lacks {missing}")
        self.task = TASKS[recipe["family"]](recipe)
        data = Path(data)
        has_parts = (data / "train").is_dir() and (data / "heldout").is_dir()
        corpus = Corpus(data / "train" if has_parts else data, self.task.mel)
        self.heldout = Corpus(data / "heldout", self.task.mel) if has_parts else corpus
        state = self._read_state()
        # The statistics are the training's: a resumed one keeps them, whatever the folder holds by then
        self.statistics = state["statistics"] if state else [x.tolist() for x in corpus.band_statistics()]
        self.task.set_statistics(*self.statistics)
        self.task.prepare(corpus)
        if has_parts:
            self.task.prepare(self.heldout)
        self.corpus = corpus

        torch.manual_seed(self.options["seed"])
        self.model = self.task.model()
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.optimizer = torch.optim.Adam(self.model.parameters(), fused=True)
        self.step = 0
        self.loss = self.task.loss
        compile = self.options.get("compile", False) if compile is None else compile
        self.network = torch.compile(self.model) if compile else self.model
        self.out.mkdir(parents=True, exist_ok=True)
        if state:
            self._resume(state)
        _keep_freed_memory()

    def train(self, until: int | None = None, progress=None) -> None:
        """Runs to step `until` (default: the recipe's). An interrupt saves the state and is passed on."""
        until = self.options["steps"] if until is None else until
        losses, started = [], time.monotonic()
        try:
            while self.step < until:
                losses.append(self._update())
                if self.step % REPORT_EVERY == 0 or self.step == until:
                    row = {
                        "step": self.step,
            "statistics": self.statistics,
                        "loss": sum(losses) / len(losses),
                        "learning_rate": learning_rate(self.step, self.options),
                    }
                    row["seconds_per_step"] = (time.monotonic() - started) / len(losses)
                    if self.step % self.options["validate_every"] == 0 or self.step == until:
                        row["validation_loss"] = self.validate()
                    self._report(row)
                    if progress is not None:
                        progress(row)
                    losses, started = [], time.monotonic()
                if self.step % self.options["checkpoint_every"] == 0 or self.step == until:
                    self.save()
                if self.step % self.options["sample_every"] == 0 or self.step == until:
                    self.sample()
        except (KeyboardInterrupt, SystemExit):  # Ctrl-C, or SIGTERM through the command line
            self.save()
            raise

    def _update(self) -> float:
        generator = torch.Generator().manual_seed(self.options["seed"] * 7_368_787 + self.step)
        waves, mels = self._segments(self.corpus, self.options["seed"], self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.options)
        self.optimizer.zero_grad()
        loss = self.loss(self.network, waves, mels, generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options["gradient_clip"])
        self.optimizer.step()
        self.step += 1
        # The average must not remember the random start: its window grows with the training
        decay = min(self.options["ema_decay"], (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(
            list(self.average.values()), [v.detach() for v in self.model.state_dict().values()], 1 - decay
        )
        return float(loss.detach())

    def _segments(self, corpus: Corpus, seed: int, step: int):
        o = self.options
        return corpus.segments(seed, step, o["batch_size"], o["segment_frames"], self.task.context)

    @torch.no_grad()
    def validate(self) -> float:
        """Teacher-forced loss of the averaged weights on held-out segments, always the same ones."""
        weights = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)
        losses = [
            self.loss(self.network, *self._segments(self.heldout, 0, i), None).item() for i in range(VALIDATION_BATCHES)
        ]
        self.model.load_state_dict(weights)
        return sum(losses) / len(losses)

    def averaged_model(self):
        model = self.task.model()
        model.load_state_dict(self.average)
        model.preprocessing = self.task.preprocessing()
        return model.eval()

    def sample(self) -> None:
        """Held-out sentence 0, generated freely from its mel: the failure that the loss does not show is heard here."""
        from fastvoc.audio.wav import write_wav

        model = self.averaged_model()
        wave = model.vocode(self.heldout.mels[0][None])[0]
        (self.out / "samples").mkdir(exist_ok=True)
        write_wav(self.out / "samples" / f"step{self.step:07d}.wav", wave, self.task.mel.sample_rate)

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "statistics": self.statistics,
        }
        with atomic_path(self.out / "state.pt") as path:
            torch.save(state, path)
        self.averaged_model().save_pretrained(self.out / "model")

    def _read_state(self) -> dict | None:
        path = self.out / "state.pt"
        if not path.exists():
            return None
        try:
            state = torch.load(path, weights_only=True)
            return {k: state[k] for k in ("model", "average", "optimizer", "step", "statistics")}
        except (RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as fault:
            raise CorruptCheckpointError(
                f"{path} is no training state: {fault}", hint="Move it away to start afresh."
            ) from None

    def _resume(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.average, self.step = state["average"], state["step"]
        self.optimizer.load_state_dict(state["optimizer"])
        log.info("resuming at step %d", self.step)

    def _report(self, row: dict) -> None:
        path = self.out / "log.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        rows = [r for r in rows if r["step"] < row["step"]] + [row]  # a resumed training repeats its last steps
        with atomic_path(path) as temporary:
            temporary.write_text("".join(json.dumps(r) + "\n" for r in rows))
        if "validation_loss" in row:
            plot_curve(rows, self.out / "curve.png")


def plot_curve(rows: list[dict], path: Path) -> None:
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([r["step"] for r in rows], [r["loss"] for r in rows], linewidth=0.8, alpha=0.6, label="training")
    held = [r for r in rows if "validation_loss" in r]
    axes.plot(
        [r["step"] for r in held],
        [r["validation_loss"] for r in held],
        "o-",
        markersize=3,
        label="held out, averaged weights",
    )
    axes.set(xlabel="step", ylabel="loss (nats per sample)", title="Training")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks: a step frees and maps the same gigabyte again, a fifth of its time."""
    with suppress(OSError, AttributeError):
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
