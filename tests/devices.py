"""What this machine can run, for the tests that are generated from the operator records."""

from contextlib import contextmanager

import torch

import fastvoc
from fastvoc import _C

ISAS = [name for name, supported, *_ in _C.cpu_isas() if supported]
FMA_ISAS = [name for name in ISAS if name != "baseline"]  # one rounding for a product and a sum, as AMX has it
PAIR_ISAS = ("avx512bf16", "avx512bf16_emulated")  # vdpbf16ps sums bf16 products in an order of its own


@contextmanager
def running_on(isa: str):
    """Use the kernels of one instruction set, for a block."""
    before = fastvoc.cpu_isa()
    fastvoc.set_cpu_isa(isa)
    try:
        yield isa
    finally:
        fastvoc.set_cpu_isa(before)


@contextmanager
def threads(n: int):
    """Let kernels use n threads, for a block."""
    before = fastvoc.get_num_threads()
    fastvoc.set_num_threads(n)
    try:
        yield
    finally:
        fastvoc.set_num_threads(before)


def device_of(backend: str) -> str:
    return "cpu" if backend == "cpu" else "cuda"


def dtypes_of(backend: str, op) -> tuple[torch.dtype, ...] | list[torch.dtype]:
    """Of an operator; empty where the backend cannot run here."""
    if backend == "cpu":
        return op.cpu_dtypes
    return [torch.float32, torch.float16, torch.bfloat16] if torch.cuda.is_available() else []


def isas_of(backend: str, dtype: torch.dtype, case: tuple) -> list[str]:
    """The instruction sets to go through; for another backend the one in use. Emulated bf16 products take minutes on long cases."""
    if backend != "cpu":
        return [fastvoc.cpu_isa()]
    long = dtype == torch.bfloat16 and max(case) > 2000
    return [isa for isa in ISAS if not (long and isa.endswith("emulated"))]


def as_double(args) -> list:
    return [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args]
