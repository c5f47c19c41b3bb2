"""fastvoc bench: what this machine makes of all five vocoders in about a minute, each beside plain PyTorch.

Every configuration runs for about the same time in each round, and rounds go through all configurations in turn, so that a
machine that grows hot or busy slows all alike. The median over rounds counts.
"""

import dataclasses
import json
import statistics
import time
from pathlib import Path

import torch

import fastvoc
from fastvoc.cli.info import cpu, versions
from fastvoc.cli.options import add_command, add_threads, positive, use_threads
from fastvoc.cli.terminal import print_table, progress_bar
from fastvoc.demo import OPTIONS, WAVENET, precisions_of
from fastvoc.demo.random_weights import random_model
from fastvoc.demo.run import ENGINE, LOOP
from fastvoc.errors import ConfigError, KernelError

ROUNDS = 5
STREAMS = (1, 8)  # of one model on its own
LONGEST = 600  # seconds of sound in one call: bounds the memory
RATE = 22050  # of models that name none
RANDOM = {  # name -> family and options: the published sizes
    "Parallel WaveNet (ClariNet student)": ("parallel_wavenet", {}),
    "WaveGlow, 256 channels": ("waveglow", {}),
    "Parallel WaveGAN v1": ("parallel_wavegan", {}),
    "DiffWave, 6 steps": ("diffwave", {}),
}
AGREEMENT = {"fp32": 1e-3, "bf16": 0.1}  # rms of the difference to plain PyTorch over its own; not of a WaveNet, which draws


@dataclasses.dataclass
class Case:
    name: str
    model: torch.nn.Module
    backend: str
    precision: str
    threads: int
    streams: int = 1
    n_frames: int = 1
    rates: list[float] = dataclasses.field(default_factory=list)  # samples/s, one a round

    @property
    def median(self) -> float:
        return statistics.median(self.rates)

    @property
    def sample_rate(self) -> int:
        return RATE if self.model.preprocessing is None else self.model.preprocessing.mel.sample_rate

    def generate(self, n_frames: int) -> torch.Tensor:
        """(streams, n_samples) of random mel, by this backend and no other."""
        mel = torch.rand(self.streams, self.model.n_mels, n_frames, generator=torch.Generator().manual_seed(0))
        with fastvoc.backend(self.backend):
            options = dict(precision=self.precision, threads=self.threads, **OPTIONS.get(self.model.family, {}))
            return self.model.infer(mel, seed=0, **options)

    def measure(self, n_frames: int) -> float:
        """Samples per second."""
        torch.set_num_threads(self.threads)
        start = time.perf_counter()
        waves = self.generate(n_frames)
        return waves.numel() / (time.perf_counter() - start)

    def facts(self) -> dict:
        return {
            "model": self.name, "backend": self.backend, "precision": self.precision, "threads": self.threads,
            "streams": self.streams, "n_frames": self.n_frames, "sample_rate": self.sample_rate, "rates": self.rates,
            "samples_per_s": self.median,
        }  # fmt: skip


def add(commands) -> None:
    parser = add_command(commands, "bench", run, "a minute's measurement of this machine, beside plain PyTorch")
    parser.add_argument("--model", type=Path, metavar="DIR",
                        help="one model alone, on one and on all threads, one item and eight (default: all five families, the "
                        "bundled WaveNet and the others in their published sizes with random weights)")
    parser.add_argument("--seconds", type=positive, default=60.0, metavar="S", help="how long to measure (default: 60)")
    parser.add_argument("--json", action="store_true", help="the figures for programs, every round's")
    add_threads(parser)


def run(options) -> None:
    most = use_threads(options)
    try:
        cases = families(most) if options.model is None else alone(options.model, most)
        measure(cases, options)
    finally:
        torch.set_num_threads(most)
    print(as_json(cases)) if options.json else as_table(cases)


def families(threads: int) -> list[Case]:
    models = {"WaveNet (bundled)": fastvoc.load(WAVENET)}
    models |= {name: random_model(family, **options) for name, (family, options) in RANDOM.items()}
    return [case for name, model in models.items() for case in cases_of(name, model, threads, 1)]


def alone(path: Path, most: int) -> list[Case]:
    model = fastvoc.load(path).eval()
    if model.preprocessing is None or not model.n_mels:
        raise ConfigError(f"{path} takes no mel, or names no mel convention: there is nothing to measure")
    return [
        case for streams in STREAMS for threads in sorted({1, most}) for case in cases_of(path.name, model, threads, streams)
    ]  # fmt: skip


def cases_of(name: str, model, threads: int, streams: int) -> list[Case]:
    ours = [Case(name, model, ENGINE, precision, threads, streams) for precision in precisions_of(model)]
    return [Case(name, model, LOOP, "fp32", threads, streams), *ours]


def measure(cases: list[Case], options) -> None:
    seconds = options.seconds / len(cases) / (ROUNDS + 1)  # one round's worth goes into finding the lengths
    plain = None
    with progress_bar(options, "measuring", "run") as update:
        for case in cases:
            plain = checked(case, plain)  # which packs the weights
            rate, per_frame = case.measure(2), case.streams * case.model.hop_length
            longest = max(1, LONGEST * case.sample_rate // per_frame)
            case.n_frames = min(max(1, int(seconds * rate / per_frame)), longest)
        for i in range(ROUNDS):
            for k, case in enumerate(cases):
                case.rates.append(case.measure(case.n_frames))
                update(i * len(cases) + k + 1, ROUNDS * len(cases))


def checked(case: Case, plain: torch.Tensor | None) -> torch.Tensor | None:
    """Plain PyTorch's result, which comes before the others of its model. Raises KernelError where ours is another."""
    wave = case.generate(2)
    if case.backend == LOOP:
        return wave
    if case.model.family != "wavenet":
        error, allowed = float((wave - plain).norm() / plain.norm()), AGREEMENT.get(case.precision, 0.1)
        if not error <= allowed:
            raise KernelError(
                f"{case.name} in {case.precision} and plain PyTorch disagree by {error:.1e} of the signal, over {allowed:.0e}",
                hint="Run the tests on this machine, or force another instruction set with FASTVOC_CPU_ISA.",
            )
    return plain


def as_table(cases: list[Case]) -> None:
    peers = {(c.name, c.threads, c.streams): c for c in cases if c.backend == LOOP}
    names = {ENGINE: "fastvoc", LOOP: "PyTorch"}
    rows = [("", "", "precision", "threads", "items", "samples/s", "real-time factor", "ratio")]
    for c in cases:
        ratio = c.median / peers[c.name, c.threads, c.streams].median
        setting = c.precision, str(c.threads), str(c.streams)
        rtf = c.sample_rate / c.median
        rows.append((c.name, names[c.backend], *setting, f"{c.median:,.0f}", f"{rtf:.3f}", f"{ratio:.3g}×"))
    print_table(rows, left=2)
    print(f"\n{cpu()['name']}, {fastvoc.cpu_isa()}; medians of {ROUNDS} interleaved rounds; all items together; random mel")


def as_json(cases: list[Case]) -> str:
    facts = {"versions": versions(), "cpu": cpu(), "isa": fastvoc.cpu_isa()}
    return json.dumps({**facts, "cases": [case.facts() for case in cases]}, indent=2)
