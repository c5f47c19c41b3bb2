"""Compiles the Triton kernels for GPUs that need not be there, and says what the machine code uses.

    python -m tests.triton_compile                 everything, against the table
    python -m tests.triton_compile --write         writes the table anew

What is compiled is what an operator launches: its launcher runs on CPU tensors while `Tuned` only takes notes.
"""

import argparse
import csv
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget

import fastvoc.ops  # noqa: F401  (registers every operator)
from fastvoc._op import OPS
from fastvoc.kernels import launch

ARCHITECTURES = 80, 90, 100, 120
PRECISIONS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RECORDED = "fp32", "tf32", "bf16"  # fp16 has the instructions and tiles of bf16
MOST_SHARED = 99 * 1024  # bytes that a block may have on every one of them; 12.0 has the least
TABLE = Path(__file__).parent / "data" / "triton_resources.csv"
KEY = "kernel", "precision", "configuration", "architecture"
USED = "registers", "shared_bytes", "spill_bytes"
# Launches that show the whole of their kernels: every channel loop runs, the widest tiles, conditioning and a step
LAUNCHES = [
    ("gated_activation", (1, 64, 4096)),
    ("gated_activation_backward", (1, 64, 4096)),
    ("affine_coupling", (1, 4, 4096)),
    ("affine_coupling_inverse", (1, 4, 4096)),
    ("affine_coupling_backward", (1, 4, 4096)),
    ("invertible_conv1x1", (1, 16, 4096)),
    ("invertible_conv1x1_backward", (1, 16, 4096)),
    ("gated_residual", (1, 4096, 64, 64, 64, 3, 4, False, True, True)),
    ("gated_residual", (1, 4096, 256, 256, 256, 3, 4, False, True, True)),
    ("gated_residual_backward", (1, 4096, 256, 256, 256, 3, 4, False, True, True)),
]


@dataclass
class Job:
    """A kernel as it is launched with one configuration, to be compiled for one architecture."""

    kernel: object
    args: tuple
    constants: dict
    configuration: dict
    precision: str
    architecture: int

    @property
    def key(self) -> tuple:
        module = self.kernel.__module__.removeprefix("fastvoc.kernels.")
        sizes = " ".join(f"{name}={value}" for name, value in self.configuration.items())
        return f"{module}.{self.kernel.__name__}", self.precision, sizes, str(self.architecture)


def jobs(precisions=PRECISIONS, architectures=ARCHITECTURES, first_only=False) -> list[Job]:
    """Every kernel × precision × configuration × architecture."""
    found = {}

    def note(tuned, key, grid, *args, accumulates=None, **constants):
        if precision == "tf32" and "PRECISION" not in constants:
            return  # no product in it: the same as fp32
        for configuration in tuned.configurations[args[0].element_size()][: 1 if first_only else None]:
            for architecture in architectures:
                job = Job(tuned.kernel, args, constants, configuration, precision, architecture)
                found.setdefault(job.key, job)

    with noting(note):
        for precision in precisions:
            torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
            for name, case in LAUNCHES:
                OPS[name].backends["triton"](*OPS[name].make_args(case, PRECISIONS[precision], "cpu"))
    return list(found.values())


@contextmanager
def noting(note):
    """Launchers take CPU tensors, and tell `note` what they would launch."""
    before = launch.Tuned.__call__, launch.INTERPRETED, torch.get_float32_matmul_precision()
    launch.Tuned.__call__, launch.INTERPRETED = note, True
    try:
        yield
    finally:
        launch.Tuned.__call__, launch.INTERPRETED = before[:2]
        torch.set_float32_matmul_precision(before[2])


class AbsentDriver:
    """What Triton's just-in-time compiler asks of a GPU's driver before it launches anything."""

    def __init__(self, architecture: int):
        self.architecture = architecture

    def get_current_device(self) -> int:
        return self.architecture  # each has its own cache of compiled kernels

    def get_current_stream(self, device) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)


def compiled(job: Job):
    """By the way of a real launch: signature, specialisation and options are Triton's own doing."""
    triton.runtime.driver.set_active(AbsentDriver(job.architecture))
    try:
        return job.kernel.warmup(*job.args, grid=(1,), **job.constants, **job.configuration, enable_fp_fusion=True)
    finally:
        triton.runtime.driver.set_active(None)  # the real one, where there is one, when it is next wanted


def resources(binary) -> tuple[int, int, int]:
    """-> registers a thread, bytes of shared memory a block, bytes a thread spills"""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    found = {name: int(n) for name, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return found["REG"], binary.metadata.shared, found["STACK"] + found["LOCAL"]


def used_by(job: Job) -> dict[str, int]:
    return dict(zip(USED, resources(compiled(job)), strict=True))


def table() -> dict[tuple, dict[str, int]]:
    with TABLE.open(newline="") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    return {tuple(row[k] for k in KEY): {name: int(row[name]) for name in USED} for row in rows}


def table_version() -> str:
    """The Triton that the table was made with."""
    return TABLE.read_text().partition("triton ")[2].split()[0]


def faults(used: dict[str, int]) -> list[str]:
    found = [f"spills {used['spill_bytes']} bytes"] if used["spill_bytes"] else []
    return found + ([f"{used['shared_bytes']} bytes shared"] if used["shared_bytes"] > MOST_SHARED else [])


def _used_by_number(n: int) -> dict[str, int]:
    return used_by(everything[n])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the table anew")
    parser.add_argument("--precisions", default=",".join(RECORDED))
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    everything = jobs(arguments.precisions.split(","))
    rows, bad = {}, 0
    # Forked, so that the launches that were noted need not be sent
    with multiprocessing.get_context("fork").Pool(arguments.processes) as pool:
        for n, used in enumerate(pool.imap(_used_by_number, range(len(everything)), chunksize=4)):
            key = everything[n].key
            rows[key] = used
            for fault in faults(used):
                print(*key, fault, flush=True)
                bad += 1
            if n % 50 == 49:
                print(f"{n + 1} of {len(everything)}", flush=True)
    if arguments.write:
        with TABLE.open("w", newline="") as file:
            file.write(f"# triton {triton.__version__}: what the machine code of the Triton kernels uses, a thread and a block\n")
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(KEY + USED)
            writer.writerows([*key, *used.values()] for key, used in rows.items())
    elif triton.__version__ == table_version():
        for key in rows.keys() ^ table().keys() or [k for k, used in table().items() if rows[k] != used]:
            print(*key, "is not as in the table")
            bad += 1
    print(f"{len(everything)} compiled, {bad} faults")
    sys.exit(bad > 0)
