"""What the CUDA compiler made of every kernel, for every architecture: registers, spills, shared memory.

    python csrc/cuda/resources.py            checks resources.json against the sources (needs nvcc; minutes)
    python csrc/cuda/resources.py --write    writes it anew
    python csrc/cuda/resources.py --library fastvoc/libfastvoc_cuda.so
                                             checks that a built library has every kernel for every architecture

Exit status 1 and a line for each fault: a kernel that spills, that some architecture lacks, or that differs from the table.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
TABLE = HERE / "resources.json"
CACHE = HERE.parent.parent / "build" / "cuda-resources"
ARCHITECTURES = ("75", "80", "86", "89", "90a", "100", "120")


def nvcc() -> str | None:
    return shutil.which("nvcc") or next((p for p in ["/usr/local/cuda/bin/nvcc"] if os.path.exists(p)), None)


def cuobjdump() -> str | None:
    """Of the toolkit, or of the triton package, which ships one."""
    beside = [str(Path(nvcc()).resolve().parent)] if nvcc() else []
    triton = importlib.util.find_spec("triton")
    if triton and triton.origin:
        beside.append(str(Path(triton.origin).parent / "backends/nvidia/bin"))
    return shutil.which("cuobjdump", path=os.pathsep.join([os.environ.get("PATH", ""), *beside]))


def nvcc_version() -> str:
    text = subprocess.run([nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V([\d.]+)", text)[1]


def readable(names: list[str]) -> dict[str, str]:
    """Mangled name -> the kernel's name and template arguments."""
    text = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True).stdout
    short = lambda s: s.replace("fastvoc::", "").replace("(anonymous namespace)::", "").replace("void ", "", 1)
    found = {}
    for mangled, line in zip(names, text.splitlines(), strict=True):
        name = short(line)
        found[mangled] = name[: name.index(">") + 1] if "<" in name.split("(")[0] else name.split("(")[0]
    return found


def compiled(source: Path, arch: str) -> dict[str, dict]:
    """Kernel -> its resources, as ptxas reports them. Kept in build/ by what they were made from."""
    text = [p.read_bytes() for p in sorted([*HERE.glob("*.cuh"), *(HERE.parent / "core").glob("*.h"), source])]
    key = hashlib.sha256(b"\0".join([*text, arch.encode(), nvcc_version().encode()])).hexdigest()[:16]
    kept = CACHE / f"{source.stem}-{arch}-{key}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    command = [nvcc(), "-std=c++17", "-O3", f"-arch=sm_{arch}", f"-I{HERE.parent}", "-Xptxas", "-v", "-cubin", "-o", os.devnull]
    result = subprocess.run([*command, str(source)], capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{source.name} for sm_{arch}:\n{result.stderr}")
    report = re.findall(
        r"Compiling entry function '(\S+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)",
        result.stderr, re.S,
    )
    names = readable([r[0] for r in report]) if report else {}
    found = {}
    for mangled, stores, loads, registers, rest in report:
        shared = re.search(r"(\d+) bytes smem", rest)
        found[names[mangled]] = {
            "registers": int(registers), "spills": int(stores) + int(loads), "shared": int(shared[1]) if shared else 0,
        }
    CACHE.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(found))
    return found


def measured(architectures=ARCHITECTURES, jobs: int | None = None) -> dict[str, dict[str, dict]]:
    """Kernel -> architecture -> resources."""
    work = [(source, arch) for source in sorted(HERE.glob("*.cu")) for arch in architectures]
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        results = list(pool.map(lambda w: compiled(*w), work))
    table = {}
    for (_, arch), kernels in zip(work, results):
        for name, resources in kernels.items():
            table.setdefault(name, {})[arch] = resources
    return dict(sorted(table.items()))


def faults(kernels: dict, architectures=ARCHITECTURES) -> list[str]:
    found = []
    for name, by_arch in kernels.items():
        found += [f"{name} is missing for sm_{a}" for a in architectures if a not in by_arch]
        found += [f"{name} spills {r['spills']} bytes on sm_{a}" for a, r in by_arch.items() if r["spills"]]
    return found


def kernels_of(library: Path) -> dict[str, set[str]]:
    """Architecture -> the kernels that a built library has for it."""
    if not cuobjdump():
        raise SystemExit("needs cuobjdump, of the CUDA toolkit or of the triton package")
    text = subprocess.run([cuobjdump(), "-res-usage", str(library)], capture_output=True, text=True, check=True).stdout
    found, arch = {}, None
    for line in text.splitlines():
        if m := re.search(r"arch = sm_(\w+)", line):
            arch = m[1]
        elif m := re.search(r"Function (\S+):", line):
            found.setdefault(arch, []).append(m[1])
    return {arch: set(readable(names).values()) for arch, names in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write resources.json")
    parser.add_argument("--library", type=Path, help="check a built library's kernels, by cuobjdump")
    parser.add_argument("--jobs", type=int)
    options = parser.parse_args()
    if options.library:
        table, has = json.loads(TABLE.read_text())["kernels"], kernels_of(options.library)
        found = [f"{name} is missing for sm_{a}" for a in ARCHITECTURES for name in table if name not in has.get(a, ())]
    else:
        kernels = measured(jobs=options.jobs)
        found = faults(kernels)
        content = {"nvcc": nvcc_version(), "architectures": list(ARCHITECTURES), "kernels": kernels}
        if options.write:
            lines = [f'  "{k}": {json.dumps(v)}' for k, v in kernels.items()]
            head = json.dumps({k: content[k] for k in ("nvcc", "architectures")})[:-1]
            TABLE.write_text(head + ', "kernels": {\n' + ",\n".join(lines) + "\n}}\n")
        elif json.loads(TABLE.read_text()) != content:
            found.append("resources.json differs from what the sources give: write it anew with --write")
    print("\n".join(found) or "every kernel, every architecture, no spills")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
