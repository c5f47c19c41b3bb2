"""Results files: what a benchmark has found so far, on which machine; written after every part of it."""

import copy
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

import fastvoc
from benchmarks.timer import real_isas
from fastvoc import _C
from fastvoc._atomic import atomic_path

RESULTS = Path(__file__).parent / "results"


def record(name: str, parts: Iterable[dict], path: Path | None = None, **facts) -> dict:
    """Joins facts and the parts of a benchmark as they come: lists grow, dictionaries are merged, the rest is replaced.

    path    gets all of it after each part, with "complete": false until the last one: an interrupted run leaves what it has
    -> name, complete, environment, rows, skipped and whatever facts and parts brought
    """
    result = {"name": name, "complete": False, "environment": environment(), **copy.deepcopy(facts), "skipped": {}, "rows": []}
    for part in parts:
        _merge(result, part)
        if path is not None:
            write(result, path)
    result["complete"] = True
    if path is not None:
        write(result, path)
    return result


def _merge(into: dict, part: dict) -> None:
    for key, value in part.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        elif isinstance(value, list) and isinstance(into.get(key), list):
            into[key] += value
        else:
            into[key] = value


def write(result: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def print_table(rows: list[dict], columns: list[str] | None = None) -> None:
    columns = columns or list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, *([_cell(row.get(c)) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        cells = [cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths))]
        print("  ".join(cells).rstrip())


def _cell(value) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def environment() -> dict:
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_model(), "cores": os.cpu_count(), "caches": _caches(),
        "isas": real_isas(), "isa": fastvoc.cpu_isa(),
        "isas_missing": {name: reason for name, supported, _, reason in _C.cpu_isas() if not supported},
        "threads": fastvoc.get_num_threads(), "torch_threads": torch.get_num_threads(),
        "fastvoc": fastvoc.__version__, "torch": torch.__version__, "numpy": np.__version__,
        **_peers(), "python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}", **_commit(),
    }


def _peers() -> dict:
    """Versions of what is timed beside us, so far as it is installed."""
    versions = {}
    for name in ("onnxruntime", "wavenet_vocoder", "parallel_wavegan", "diffwave"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _caches() -> dict:
    """Of the first core: {"L1d": "32K", "L2": …}"""
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            caches[f"L{level}" + ("d" if kind == "Data" else "")] = size
    return caches


def _commit() -> dict:
    def git(*args):
        result = subprocess.run(["git", *args], cwd=RESULTS.parent, capture_output=True, text=True, check=True)
        return result.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ":/", ":(top,exclude)benchmarks/results")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):  # an unpacked source archive, or no git here
        return {"commit": None, "dirty": None}
