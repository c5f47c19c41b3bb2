"""fastvoc bench: the compiled engine's speed on this machine in about a minute, beside the plain PyTorch loop.

Every configuration makes the same number of samples in each round, and rounds go through all configurations in turn, so
that a machine that grows hot or busy slows all alike. The median over rounds counts.
"""

import dataclasses
import json
import statistics
from pathlib import Path

import torch

import fastvoc
from fastvoc.cli.info import cpu, versions
from fastvoc.cli.options import add_command, add_threads, positive, use_threads
from fastvoc.cli.terminal import print_table, progress_bar
from fastvoc.demo import WAVENET
from fastvoc.demo.run import ENGINE, LOOP, vocode_timed
from fastvoc.errors import ConfigError

ROUNDS = 5
STREAMS = (1, 8)


@dataclasses.dataclass
class Case:
    backend: str
    precision: str
    threads: int
    streams: int
    n_frames: int = 1
    rates: list[float] = dataclasses.field(default_factory=list)  # samples/s, one a round

    @property
    def median(self) -> float:
        return statistics.median(self.rates)

    def measure(self, model, mel: torch.Tensor) -> float:
        torch.set_num_threads(self.threads)
        mel = mel[: self.streams]
        return vocode_timed(model, self.backend, mel, precision=self.precision, threads=self.threads).samples_per_s


def add(commands) -> None:
    parser = add_command(commands, "bench", run, "a minute's measurement of this machine, beside a plain PyTorch loop")
    parser.add_argument("--model", type=Path, default=WAVENET, metavar="DIR",
                        help="default: the small WaveNet that comes with fastvoc")
    parser.add_argument("--seconds", type=positive, default=60.0, metavar="S", help="how long to measure (default: 60)")
    parser.add_argument("--json", action="store_true", help="the figures for programs, every round's")
    add_threads(parser)


def run(options) -> None:
    most = use_threads(options)
    model = fastvoc.load(options.model)
    if model.preprocessing is None or model.config.cin_channels <= 0:
        raise ConfigError(f"{options.model} takes no mel, or names no mel convention: there is nothing to measure")
    try:
        cases = measured(model, most, options)
    finally:
        torch.set_num_threads(most)
    print(as_json(options, model, cases)) if options.json else as_table(model, cases)


def measured(model, most: int, options) -> list[Case]:
    cases = [
        Case(backend, precision, threads, streams)
        for streams in STREAMS for threads in sorted({1, most})
        for backend, precision in ((ENGINE, "bf16"), (ENGINE, "fp32"), (LOOP, "fp32"))
    ]  # fmt: skip
    seconds = options.seconds / len(cases) / (ROUNDS + 1)  # one round's worth goes into finding the lengths
    longest = max(1, round(600 * model.preprocessing.mel.sample_rate / model.samples_per_frame))  # bounds the memory
    generator = torch.Generator().manual_seed(0)
    noise = lambda n: torch.randn(max(STREAMS), model.config.cin_channels, n, generator=generator)
    with progress_bar(options, "measuring", "run") as update:
        for case in cases:
            case.measure(model, noise(1))  # packs the weights
            rate = case.measure(model, noise(2))
            case.n_frames = min(max(1, int(seconds * rate / (case.streams * model.samples_per_frame))), longest)
        mel = noise(max(case.n_frames for case in cases))
        for i in range(ROUNDS):
            for k, case in enumerate(cases):
                case.rates.append(case.measure(model, mel[:, :, : case.n_frames]))
                update(i * len(cases) + k + 1, ROUNDS * len(cases))
    return cases


def as_table(model, cases: list[Case]) -> None:
    peers = {(c.threads, c.streams): c for c in cases if c.backend == LOOP}
    names = {ENGINE: f"fastvoc (cpu, {fastvoc.cpu_isa()})", LOOP: "PyTorch incremental loop"}
    rows = [("", "precision", "threads", "streams", "samples/s", "real-time factor", "ratio")]
    for c in cases:
        ratio = c.median / peers[c.threads, c.streams].median
        rtf = model.preprocessing.mel.sample_rate / c.median
        setting = c.precision, str(c.threads), str(c.streams)
        rows.append((names[c.backend], *setting, f"{c.median:,.0f}", f"{rtf:.3f}", f"{ratio:.3g}×"))
    print_table(rows)
    print(f"\n{cpu()['name']}; medians of {ROUNDS} interleaved rounds; all streams together; random mel")


def as_json(options, model, cases: list[Case]) -> str:
    return json.dumps({
        "versions": versions(), "cpu": cpu(), "isa": fastvoc.cpu_isa(), "model": str(options.model),
        "sample_rate": model.preprocessing.mel.sample_rate, "samples_per_frame": model.samples_per_frame,
        "cases": [{**dataclasses.asdict(c), "samples_per_s": c.median} for c in cases],
    }, indent=2)  # fmt: skip
