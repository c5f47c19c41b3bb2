"""Builds csrc/cuda/*.cu for the host (csrc/emulator) and opens the result as the CUDA library of this process.

    with emulated(): y = op(x)          # backend "cuda", CPU tensors, no GPU

FASTVOC_EMULATOR_SANITIZE=thread or address,undefined builds with that sanitizer: see `make sanitize`.
"""

import hashlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import fastvoc
from fastvoc import _cuda

ROOT = Path(__file__).parent.parent
CACHE = ROOT / "build" / "emulator"
SANITIZE = os.environ.get("FASTVOC_EMULATOR_SANITIZE", "")
SMALL = {  # few threads, that tests be quick
    "wavenet_generate": {"teams": [2], "team_threads": 64, "block_threads": 64, "block_threads_fp32": 64}
}
FLAGS = ["-x", "c++", "-std=c++20", "-O1", "-g1", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-fno-omit-frame-pointer"]


def _hash(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def kernels() -> dict[str, str]:
    """File name -> text of every CUDA source."""
    return {p.name: p.read_text() for p in sorted((ROOT / "csrc/cuda").glob("*.cu"))}


def build(sources: dict[str, str], sanitize: str = SANITIZE) -> Path:
    """-> the shared library of these files; objects are kept by what they were made from."""
    headers = [*(ROOT / "csrc/cuda").glob("*.cuh"), *(ROOT / "csrc/core").glob("*.h"), *(ROOT / "csrc/emulator").glob("*.h")]
    flags = [*FLAGS, *([f"-fsanitize={sanitize}", "-fno-sanitize-recover=undefined"] if sanitize else [])]
    common = _hash(*[p.read_bytes() for p in sorted(headers)], " ".join(flags).encode())
    CACHE.mkdir(parents=True, exist_ok=True)

    def compiled(name: str) -> Path:
        made = CACHE / f"{Path(name).stem}-{_hash(common.encode(), sources[name].encode())}.o"
        if not made.exists():
            temporary = made.with_suffix(f".{os.getpid()}")
            include = [f"-I{ROOT / 'csrc' / 'emulator'}", f"-I{ROOT / 'csrc'}"]
            command = [os.environ.get("CXX", "g++"), *flags, *include, "-c", "-", "-o", str(temporary)]
            named = f'#line 1 "csrc/cuda/{name}"\n{sources[name]}'
            subprocess.run(command, input=named, text=True, check=True)
            temporary.replace(made)
        return made

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources))
    library = CACHE / f"libfastvoc_emulated-{_hash(*[o.name.encode() for o in objects])}.so"
    if not library.exists():
        temporary = library.with_suffix(f".{os.getpid()}")
        link = [f for f in flags if f.startswith("-fsanitize")]
        command = [os.environ.get("CXX", "g++"), "-shared", *link, *map(str, objects), "-o", str(temporary)]
        subprocess.run(command, check=True)
        temporary.replace(library)
    return library


@cache
def library() -> _cuda.Library:
    return _cuda.Library(build(kernels()), emulated=True)


@contextmanager
def emulated(
    seed: int = 0, processors: int = 2, shared_bytes: int = 96 << 10, capability: tuple[int, int] = (9, 0), **knobs
):
    """Backend "cuda" is the emulated one. seed: of the order of blocks and threads; 0: in order. knobs: op={knob: value}"""
    tunings = _cuda._tunings()
    for op in tunings:
        if op != "about":
            tunings[op]["emulator"] = SMALL.get(op, {}) | knobs.get(op, {})
    with _cuda.using(library()) as lib, fastvoc.backend("cuda"):
        lib.c.fastvoc_emulator_seed(seed)
        lib.c.fastvoc_emulator_device(processors, shared_bytes, *capability)
        yield lib
