"""make gpu: builds the CUDA library for the card of this machine, tests it there, times it. Within ten minutes.

    python -m benchmarks.gpu [--out FOLDER] [--minutes 10]

Needs torch with CUDA, nvcc, cmake, ninja, pybind11 and pytest; no network. Writes gpu.json (every step: passed or not, the
end of its output; the card, its clocks, the commit) and summary.txt. Exit status 1 where a step fails; a later step still
runs. Steps that no time is left for are written down as not run.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


def output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()


def card() -> dict:
    names = "name", "driver_version", "compute_cap", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit"
    row = output_of("nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader", "--id=0").split(", ")
    return dict(zip(names, row))


def commit() -> str | None:
    try:
        return output_of("git", "rev-parse", "HEAD") + ("-dirty" if output_of("git", "status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def steps(folder: Path, capability: str) -> list[tuple[str, list[str], dict, int]]:
    """(name, command, environment, seconds that it may take)"""
    python, build = sys.executable, str(folder / "build")
    arch = {"9.0": "90a"}.get(capability, capability.replace(".", "")) + "-real"
    pybind11 = Path(importlib.util.find_spec("pybind11").origin).parent / "share/cmake/pybind11"
    configure = [
        "cmake", "-S", ".", "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DFASTVOC_CUDA=ON",
        f"-DFASTVOC_CUDA_ARCHITECTURES={arch}", f"-DPython_EXECUTABLE={python}", f"-Dpybind11_DIR={pybind11}",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={ROOT / 'fastvoc'}", "-DFASTVOC_EMULATED_ISAS=OFF",
    ]  # fmt: skip
    found = [
        ("configure", configure, {}, 120),
        ("build", ["cmake", "--build", build, "--parallel"], {}, 240),
        ("tests", [python, "-m", "pytest", "-m", "gpu", "tests", "-q", "--durations=10"], {}, 240),
        ("operators", [python, "-m", "pytest", "tests/test_ops.py", "-q", "-k", "cuda or triton"], {}, 120),
    ]
    if sanitizer := shutil.which("compute-sanitizer"):
        pytest = [python, "-m", "pytest", "-m", "gpu", "tests/test_gpu.py", "-q", "-x", "-k"]
        for tool in ("memcheck", "racecheck"):
            which = "(test_stack or test_wavenet) and (odd or residual) and not 250"
            command = [sanitizer, "--tool", tool, "--error-exitcode", "9", *pytest, which]
            found.append((tool, command, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, 90))
    found.append(("benchmarks", [python, "-m", "benchmarks.bench_gpu", "--out", str(folder / "bench.json")], {}, 180))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--minutes", type=float, default=10)
    options = parser.parse_args()
    folder = options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        facts = {"card": card(), "commit": commit(), "steps": []}
    except (OSError, subprocess.CalledProcessError) as reason:
        print(f"error: no NVIDIA GPU here ({reason})", file=sys.stderr)
        print("hint: without one, `make test` runs the kernels in the emulator", file=sys.stderr)
        return 1
    end = time.monotonic() + 60 * options.minutes - 5
    for name, command, environment, limit in steps(folder, facts["card"]["compute_cap"]):
        left = end - time.monotonic()
        if left < 5:
            facts["steps"].append({"step": name, "result": "not run: no time left"})
            continue
        start = time.monotonic()
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=os.environ | environment, timeout=min(limit, left), text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            result, text = "passed" if done.returncode == 0 else f"failed: exit status {done.returncode}", done.stdout
        except subprocess.TimeoutExpired as late:
            result, text = f"failed: longer than {min(limit, left):.0f} s", (late.stdout or b"").decode(errors="replace")
        facts["steps"].append(
            {"step": name, "result": result, "seconds": round(time.monotonic() - start, 1), "end": text[-6000:]}
        )
        print(f"{name}: {result}", flush=True)
    if (folder / "bench.json").exists():
        facts["benchmarks"] = json.loads((folder / "bench.json").read_text())
    (folder / "gpu.json").write_text(json.dumps(facts, indent=1) + "\n")
    lines = [f"{facts['card']['name']}, driver {facts['card']['driver_version']}, commit {facts['commit']}", ""]
    lines += [f"{s['step']:<12} {s.get('seconds', 0):>6.1f} s  {s['result']}" for s in facts["steps"]]
    for row in facts.get("benchmarks", {}).get("rows", []):
        lines.append(f"{row['what']:<44} {row['contender']:<16} {row['us']:>10.1f} µs  {row['of_floor']:>6.1%} of floor")
    for step in facts["steps"]:
        if step["result"].startswith("failed"):
            lines += ["", f"--- {step['step']} ---", step.get("end", "")[-3000:]]
    (folder / "summary.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return int(any(s["result"] != "passed" for s in facts["steps"]))


if __name__ == "__main__":
    sys.exit(main())
