"""fastvoc: five neural vocoders, as fast as the hardware allows, from the checkpoints that people already have."""

import logging
import os

import torch

from fastvoc import _C, _cpus
from fastvoc._cuda import warmup
from fastvoc._op import backend
from fastvoc.errors import ConfigError

__version__ = "0.1.0"

logging.getLogger("fastvoc").addHandler(logging.NullHandler())
if os.environ.get("FASTVOC_LOG"):
    try:
        logging.getLogger("fastvoc").setLevel(os.environ["FASTVOC_LOG"].upper())
    except ValueError:
        raise ConfigError(f"FASTVOC_LOG: got {os.environ['FASTVOC_LOG']!r}, expected a level such as debug") from None


def cpu_isa() -> str:
    """The instruction set that the CPU kernels use: baseline, avx2, avx512, avx512bf16 or amx."""
    return _C.cpu_isa()


def set_cpu_isa(name: str) -> None:
    """Use another instruction set, for every later call in this process. Plans are independent of it."""
    try:
        _C.set_cpu_isa(name)
    except ValueError:
        raise ConfigError(f"unknown instruction set {name!r}; known are {[row[0] for row in _C.cpu_isas()]}") from None
    except RuntimeError as reason:
        raise ConfigError(f"this machine cannot run {reason}") from None


def set_num_threads(n: int) -> None:
    """Threads that one call of a CPU kernel may use. Default: FASTVOC_NUM_THREADS, else torch.get_num_threads(),
    or fewer where the process's CPU affinity or control group (a container's limit) leaves it less.
    """
    if not 1 <= n <= 1024:
        raise ConfigError(f"the number of threads must lie in 1…1024, got {n}")
    _C.set_num_threads(n)


def get_num_threads() -> int:
    return _C.get_num_threads()


if os.environ.get("FASTVOC_CPU_ISA"):
    set_cpu_isa(os.environ["FASTVOC_CPU_ISA"])
try:
    set_num_threads(int(os.environ.get("FASTVOC_NUM_THREADS") or min(torch.get_num_threads(), _cpus.available(), 1024)))
except ValueError:
    raise ConfigError(f"FASTVOC_NUM_THREADS: got {os.environ['FASTVOC_NUM_THREADS']!r}, expected 1…1024") from None

from fastvoc.adapters import accelerate  # noqa: E402  (the models need the settings above)
from fastvoc.models import DiffWave, WaveNet, load  # noqa: E402  (the models need the settings above)

__all__ = [
    "DiffWave",
    "WaveNet",
    "__version__",
    "accelerate",
    "backend",
    "cpu_isa",
    "get_num_threads",
    "load",
    "set_cpu_isa",
    "set_num_threads",
    "warmup",
]
