"""The trainer: one loop for every family. A recipe says what to train; an output folder holds everything that comes of it.

    OUT/state.pt      networks, averaged model, optimisers, step: what a resumed training needs
    OUT/log.jsonl     one line per report: step, loss and its parts, validation loss, learning rate, seconds
    OUT/curve.png     the losses so far, where matplotlib is installed
    OUT/model/        the averaged weights as a fastvoc model folder, ready to load
    OUT/samples/      what the averaged model says when it runs free

A resumed training is the same training: the data and the noise of a step depend on the seed and the step alone. What a
family trains, and on which losses, is its Task's (task.py).
"""

import importlib.util
import json
import logging
import pickle
import time
from collections import defaultdict
from pathlib import Path

import torch
from torch.func import functional_call
from torch.utils._pytree import tree_map

from fastvoc._atomic import atomic_path
from fastvoc._memory import keep_freed_memory
from fastvoc.errors import ConfigError, CorruptCheckpointError
from fastvoc.models import load
from fastvoc.training import processes
from fastvoc.training.curve import plot_curve
from fastvoc.training.data import Corpus
from fastvoc.training.diffwave import DiffWaveTask
from fastvoc.training.muon import Muon
from fastvoc.training.parallel_wavegan import ParallelWaveGANTask
from fastvoc.training.parallel_wavenet import ParallelWaveNetTask
from fastvoc.training.task import Draws
from fastvoc.training.waveglow import WaveGlowTask
from fastvoc.training.wavenet import WaveNetTask

log = logging.getLogger("fastvoc")

TASKS = {
    "diffwave": DiffWaveTask,
    "parallel_wavegan": ParallelWaveGANTask,
    "parallel_wavenet": ParallelWaveNetTask,
    "waveglow": WaveGlowTask,
    "wavenet": WaveNetTask,
}
OPTIONS = (
    "seed", "steps", "batch_size", "segment_frames", "learning_rate", "warmup_steps", "half_life_steps",
    "minimum_learning_rate", "gradient_clip", "ema_decay", "validate_every", "checkpoint_every", "sample_every",
)  # fmt: skip
STATE = ("networks", "average", "optimizers", "step", "statistics")
OPTIMIZERS = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW, "RAdam": torch.optim.RAdam, "Muon": Muon}
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}  # of the networks; weights, sums of gradients and losses are fp32
REPORT_EVERY = 100
VALIDATION_BATCHES = 8


def learning_rate(step: int, options: dict) -> float:
    """Linear warm-up, then halved every half_life_steps: smoothly, or at once with `staircase`."""
    halvings = step / options["half_life_steps"]
    rate = options["learning_rate"] * 0.5 ** (int(halvings) if options.get("staircase") else halvings)
    return max(rate, options["minimum_learning_rate"]) * min(1.0, (step + 1) / options["warmup_steps"])


def fixed(network: torch.nn.Module, weights: dict | None = None):
    """The network with these weights, its own by default, as constants: gradients go through it, none to it."""
    constants = {k: v.detach() for k, v in (weights or dict(network.named_parameters())).items()}
    return lambda *args: functional_call(network, constants, args)


def in_precision(network, dtype: torch.dtype, device: torch.device):
    """The network under autocast. What it returns is float32 again, so the losses are not rounded."""

    def call(*args):
        with torch.autocast(device.type, dtype):
            outputs = network(*args)
        return tree_map(lambda t: t.float() if isinstance(t, torch.Tensor) and t.is_floating_point() else t, outputs)

    return call


class Trainer:
    """Trainer(recipe, data, out).train(). Under torchrun the batch is shared by its processes (processes.py).

    init: a checkpoint or model folder of the recipe's configuration, to start from its weights (a fine-tuning). A training
    that resumes from out ignores it.
    """

    def __init__(
        self,
        recipe: dict,
        data: Path,
        out: Path,
        compile: bool | None = None,
        device: str = "cpu",
        init: Path | None = None,
    ):
        if recipe["family"] not in TASKS:
            raise ConfigError(f"recipe of unknown family {recipe['family']!r}; known are {sorted(TASKS)}")
        self.recipe, self.options, self.out = recipe, recipe["training"], Path(out)
        missing = [name for name in OPTIONS if name not in self.options]
        if missing:
            raise ConfigError(f"the recipe's training section lacks {missing}")
        if self.options.get("precision", "fp32") not in PRECISIONS:
            raise ConfigError(f"precision: got {self.options['precision']!r}, expected one of {sorted(PRECISIONS)}")
        self.dtype = PRECISIONS[self.options.get("precision", "fp32")]
        self.task = TASKS[recipe["family"]](recipe)
        self.device = processes.local_device(device)
        self.rank, n_processes = processes.join(self.device)
        self.rows = processes.rows_of(self.rank, n_processes, self.options["batch_size"])
        data = Path(data)
        has_parts = (data / "train").is_dir() and (data / "heldout").is_dir()
        self.corpus = Corpus(data / "train" if has_parts else data, self.task.mel)
        self.heldout = Corpus(data / "heldout", self.task.mel) if has_parts else self.corpus
        state = self._read_state()
        # The statistics are the training's: a resumed one keeps them, whatever the folder holds by then
        if state:
            self.statistics = state["statistics"]
        else:
            given = self.task.start_from(load(init)) if init is not None else None
            self.statistics = given or [x.tolist() for x in self.corpus.band_statistics()]
        self.task.set_statistics(*self.statistics)
        for corpus in {self.corpus, self.heldout}:
            self.task.prepare(corpus)

        torch.manual_seed(self.options["seed"])
        self.modules = {name: module.to(self.device) for name, module in self.task.networks().items()}
        self.average = {k: v.detach().clone() for k, v in self.modules["model"].state_dict().items()}
        self.optimizers = {name: self._optimizer(name) for name in self.modules}
        self.step = 0
        compile = self.options.get("compile", False) if compile is None else compile
        called = {name: torch.compile(module) if compile else module for name, module in self.modules.items()}
        self.networks = {name: processes.shared(module, n_processes) for name, module in called.items()}
        self.out.mkdir(parents=True, exist_ok=True)
        self.draws_curve = importlib.util.find_spec("matplotlib") is not None
        if not self.draws_curve:
            log.warning("curve.png is not drawn: matplotlib is not installed; log.jsonl has its numbers")
        if state:
            self._resume(state)
        keep_freed_memory()  # a step frees and maps the same gigabyte again, a fifth of its time

    @property
    def model(self) -> torch.nn.Module:
        return self.modules["model"]

    def train(self, until: int | None = None, progress=None) -> None:
        """Runs to step `until` (default: the recipe's). An interrupt saves the state and is passed on."""
        until = self.options["steps"] if until is None else until
        every = lambda name: self.step % self.options[name] == 0 or self.step == until
        losses, started = defaultdict(list), time.monotonic()
        first = self.step
        try:
            while self.step < until:
                for name, value in self._update().items():
                    losses[name].append(value)
                if self.step % REPORT_EVERY == 0 or self.step == until:
                    row = {"step": self.step, **_means(losses), "learning_rate": learning_rate(self.step, self.options)}
                    row["seconds_per_step"] = (time.monotonic() - started) / (self.step - first)
                    if every("validate_every"):
                        row["validation_loss"] = self.validate()
                    self._report(row)
                    if progress is not None:
                        progress(row)
                    losses, started, first = defaultdict(list), time.monotonic(), self.step
                if every("checkpoint_every"):
                    self.save()
                if every("sample_every"):
                    self.sample()
        except (KeyboardInterrupt, SystemExit):  # Ctrl-C, or SIGTERM through the command line
            self.save()
            raise

    def _update(self) -> dict[str, torch.Tensor]:
        """One step of every network whose turn it is. -> "loss", the model's, and the parts of all losses."""
        waves, mels = self._segments(self.corpus, self.options["seed"], self.step, self.rows)
        report = {}
        for name in self.task.phases(self.step):
            options, optimizer = self._options(name), self.optimizers[name]
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.step - options.get("start", 0), options)
            networks = {n: self.networks[n] if n == name else fixed(module) for n, module in self.modules.items()}
            if self.dtype is not None:
                networks = {n: in_precision(network, self.dtype, self.device) for n, network in networks.items()}
            draws = self._draws(self.options["seed"], self.step, self.rows)  # the same ones for every network
            optimizer.zero_grad()
            losses = self.task.losses(name, networks, waves, mels, draws, self.step)
            total = sum(losses.values())
            total.backward()
            if options["gradient_clip"] is not None:
                torch.nn.utils.clip_grad_norm_(self.modules[name].parameters(), options["gradient_clip"])
            optimizer.step()
            report |= {part: value.detach() for part, value in losses.items()}
            if name == "model":
                report["loss"] = total.detach()
        self.step += 1
        # The average must not remember the random start: its window grows with the training
        decay = min(self.options["ema_decay"], (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(
            list(self.average.values()), [v.detach() for v in self.model.state_dict().values()], 1 - decay
        )
        return report

    def _options(self, name: str) -> dict:
        """The training options of one network: the common ones, and what the recipe gives it of its own."""
        return self.options if name == "model" else {**self.options, **self.options.get(name, {})}

    def _optimizer(self, name: str) -> torch.optim.Optimizer:
        options = self._options(name)
        kind = options.get("optimizer", "Adam")
        if kind not in OPTIMIZERS:
            raise ConfigError(f"optimizer: got {kind!r}, expected one of {sorted(OPTIMIZERS)}")
        parameters = [(n, p) for n, p in self.modules[name].named_parameters() if p.requires_grad]
        if kind != "Muon":  # which sorts them by name
            parameters = [p for _, p in parameters]
        faster = {"fused": True} if kind in ("Adam", "AdamW") else {}
        return OPTIMIZERS[kind](parameters, **faster, **options.get("optimizer_options", {}))

    def _segments(self, corpus: Corpus, seed: int, step: int, rows: slice = slice(None)):
        o = self.options
        waves, mels = corpus.segments(seed, step, o["batch_size"], o["segment_frames"], self.task.context)
        return waves[rows].to(self.device), mels[rows].to(self.device)

    def _draws(self, seed: int, step: int, rows: slice = slice(None)) -> Draws:
        return Draws(seed, step, self.options["batch_size"], rows, self.device)

    @torch.no_grad()
    def validate(self) -> float:
        """Loss of the averaged weights on held-out segments, always the same ones."""
        networks = {name: fixed(module, self.average if name == "model" else None) for name, module in self.modules.items()}
        batches = [(*self._segments(self.heldout, 0, i), self._draws(0, i)) for i in range(VALIDATION_BATCHES)]
        losses = [self.task.validation_loss(networks, *batch) for batch in batches]
        return sum(loss.item() for loss in losses) / len(losses)

    def averaged_model(self):
        return self.task.finished({k: v.cpu() for k, v in self.average.items()})

    def sample(self) -> None:
        """Held-out sentence 0, generated freely from its mel: the failure that the loss does not show is heard here."""
        from fastvoc.audio.wav import write_wav

        if self.rank:
            return
        wave = self.task.sample(self.averaged_model(), self.heldout.mels[0])
        (self.out / "samples").mkdir(exist_ok=True)
        write_wav(self.out / "samples" / f"step{self.step:07d}.wav", wave, self.task.mel.sample_rate)

    def save(self) -> None:
        if self.rank:
            return
        state = {
            "networks": {name: module.state_dict() for name, module in self.modules.items()},
            "average": self.average,
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
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
            state = torch.load(path, weights_only=True, map_location="cpu")
            return {k: state[k] for k in STATE}
        except (RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as fault:
            raise CorruptCheckpointError(
                f"{path} is no training state: {fault}", hint="Move it away to start afresh."
            ) from None

    def _resume(self, state: dict) -> None:
        for name, module in self.modules.items():
            module.load_state_dict(state["networks"][name])
            self.optimizers[name].load_state_dict(state["optimizers"][name])
        self.average = {k: v.to(self.device) for k, v in state["average"].items()}
        self.step = state["step"]
        log.info("resuming at step %d", self.step)

    def _report(self, row: dict) -> None:
        if self.rank:
            return
        path = self.out / "log.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        rows = [r for r in rows if r["step"] < row["step"]] + [row]  # a resumed training repeats its last steps
        with atomic_path(path) as temporary:
            temporary.write_text("".join(json.dumps(r) + "\n" for r in rows))
        if "validation_loss" in row and self.draws_curve:
            plot_curve(rows, self.out / "curve.png", self.task.loss_unit)


def _means(losses: dict[str, list]) -> dict:
    """{"loss": …, "parts": {…}} from the values of every step."""
    means = {name: torch.stack(values).mean().item() for name, values in losses.items()}
    return {"loss": means.pop("loss"), "parts": means}
