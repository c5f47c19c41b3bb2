"""fastvoc info: what runs here, what does not, and why."""

import importlib.metadata
import importlib.util
import json
import os
import platform
from pathlib import Path

import torch

import fastvoc
from fastvoc import _C, _cpus, _cuda
from fastvoc._op import BACKENDS, OPS
from fastvoc.cli.options import add_command
from fastvoc.cli.terminal import print_table

FEATURES = (  # of x86, as Linux spells them: those that kernels are written for
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8",
)
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


def add(commands) -> None:
    parser = add_command(commands, "info", run, "what runs on this machine, what does not, and why")
    parser.add_argument("--json", action="store_true", help="the same for programs")


def run(options) -> None:
    facts = {
        "versions": versions(), "cpu": cpu(), "instruction_sets": instruction_sets(),
        "threads": {"fastvoc": fastvoc.get_num_threads(), "torch": torch.get_num_threads()},
        "backends": backends(), "cuda_library": cuda_library(), "gpus": gpus(), "environment": environment(),
    }
    if options.json:
        print(json.dumps(facts, indent=2))
        return
    for name, version in facts["versions"].items():
        print(f"{name:<11} {version or 'not installed'}")
    machine = facts["cpu"]
    print(f"\nCPU      {machine['name']}, {machine['cpus']} CPUs usable")
    print(f"         {' '.join(machine['features']) or 'features unknown'}")
    print(f"threads  fastvoc {facts['threads']['fastvoc']}, torch {facts['threads']['torch']}\n")
    rows = [(row["name"], _state(row)) for row in facts["instruction_sets"]]
    print_table([("instruction set", "state"), *rows], left=2)
    print()
    rows = [(op, *(reason or "available" for reason in states.values())) for op, states in facts["backends"].items()]
    print_table([("operator", *BACKENDS), *rows], left=1 + len(BACKENDS))
    library = facts["cuda_library"]
    print(f"\nCUDA     {library['reason'] or 'in use'}: {library['path'] or 'no library'}")
    for gpu in facts["gpus"]:
        print(f"         {gpu['name']}, compute capability {gpu['capability']}, {gpu['memory'] / 2**30:.0f} GiB")
    print()
    for name, value in facts["environment"].items():
        print(f"{name}={value}")


def versions() -> dict[str, str | None]:
    found = {
        "fastvoc": fastvoc.__version__, "python": platform.python_version(), "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,  # the toolkit that torch was built with
    }
    for name in ("numpy", "safetensors", "PyYAML", "triton", "soundfile", "soxr", "h5py"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def cpu() -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", fields.get("Features", "")).split()
    return {
        "name": fields.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cpus": _cpus.available(),
        "features": [flag for flag in FEATURES if flag in flags],
    }


def instruction_sets() -> list[dict]:
    names = "name", "supported", "emulated", "reason"
    return [{**dict(zip(names, row)), "in_use": row[0] == fastvoc.cpu_isa()} for row in _C.cpu_isas()]


def backends() -> dict[str, dict[str, str | None]]:
    """operator -> backend -> None where it is available, else the reason."""
    return {name: {backend: _why_not(op, backend) for backend in BACKENDS} for name, op in OPS.items()}


def cuda_library() -> dict:
    """path: of the library, if this fastvoc has one;  reason: None where it works here, else why not"""
    reason = _cuda.why_not()
    return {"path": str(_cuda.PATH) if _cuda.PATH.exists() else None, "interface": _cuda.INTERFACE, "reason": reason}


def gpus() -> list[dict]:
    """As torch sees them."""
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [{"name": g.name, "capability": f"{g.major}.{g.minor}", "memory": g.total_memory} for g in found]


def environment() -> dict[str, str]:
    return {k: v for k, v in sorted(os.environ.items()) if k.startswith("FASTVOC_") or k in VARIABLES}


def _why_not(op, backend: str) -> str | None:
    if backend not in op.backends:
        return "no kernel yet"
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if backend == "cuda":
        return _cuda.why_not()
    if backend == "triton" and not torch.cuda.is_available():
        return "torch sees no GPU"
    return None


def _state(row: dict) -> str:
    if not row["supported"]:
        return row["reason"]
    return "in use" if row["in_use"] else "for tests: emulated" if row["emulated"] else "available"
