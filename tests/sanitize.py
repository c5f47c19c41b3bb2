"""python -m tests.sanitize [cpu|cuda] [thread|address,undefined]: the kernels' tests under sanitizers; all without arguments.

    cpu    the extension, built again with the sanitizer (build/sanitize-*), under the tests of its kernels, plans and threads
    cuda   the CUDA kernels in the emulator, on the CPU

What is left out under a sanitizer: the largest sizes, which show nothing that the smaller do not, the test of the
sanitizers themselves, and launches that are given up half-way, which nothing orders with what follows.
Exit status 1 where a fault is found.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.emulator import ROOT, build, kernels
from tests.test_cuda_emulated import runtime_of

SANITIZERS = "thread", "address,undefined"
CUDA_TESTS = ["tests/test_cuda_emulated.py", "tests/test_cuda_stack.py", "tests/test_cuda_wavenet.py"]
CUDA_LEFT_OUT = ("removed_barrier", "never_reach", "nobody", "wide", "256", "front", "waveglow", "0.0")
CUDA_SLOW = {"thread": ("wavegan", "diffwave", "philsyn", "clarinet")}  # it keeps a clock for every thread of a block

CPU_TESTS = {
    "thread": ["tests/test_robustness.py", "tests/test_wavenet_batcher.py", "tests/test_wavenet_generate.py",
               "tests/test_gated_residual_stack.py", "tests/test_ops.py"],
    "address,undefined": ["tests/test_wavenet_generate.py", "tests/test_gated_residual_stack.py", "tests/test_gated_residual.py",
                          "tests/test_flow_ops.py", "tests/test_ops.py", "tests/test_robustness.py"],
}  # fmt: skip
# Which tests of a file: those that start threads, and those that touch memory; of the rest the sums are the same. None that
# waits for the clock, and none that counts torch's threads, which ThreadSanitizer's build leaves alone
CPU_CHOSEN = {
    ("thread", "tests/test_wavenet_generate.py"): "number_of_threads or concurrently or pausing",
    ("thread", "tests/test_gated_residual_stack.py"): "threads or denormals",
    ("thread", "tests/test_ops.py"): "eight_threads",
    ("thread", "tests/test_robustness.py"): "not cgroup and not one_call and not long_team and not come_and_go and not ctrl_c "
                                            "and not torch_has",
}
CPU_LEFT_OUT = "not notices and not philox and not normal_numbers and not ulp and not second"
# Threads are shared out alike on all; memory: between them every path, vectors of 4, 8 and 16 floats and what AMX does (tile
# loads would not be watched)
ISAS = {"thread": "baseline", "address,undefined": "baseline;avx2;avx512bf16;amx_emulated"}


def build_extension(sanitizer: str) -> Path:
    import pybind11

    folder = ROOT / "build" / f"sanitize-{sanitizer.partition(',')[0]}"
    configure = [
        "cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={folder}", "-DFASTVOC_CUDA=OFF",
        f"-DFASTVOC_SANITIZE={sanitizer}", f"-DFASTVOC_ISAS={ISAS[sanitizer]}",
    ]  # fmt: skip
    subprocess.run([*map(str, configure), "-DCMAKE_BUILD_TYPE=Release"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", str(folder), "--parallel", str(os.cpu_count())], check=True, stdout=subprocess.DEVNULL)
    (made,) = folder.glob("_C.*.so")
    return made


def runs(kind: str, sanitizer: str):
    """(test file, what pytest selects, more options, more environment)"""
    if kind == "cuda":
        build(kernels(), sanitizer)  # before the sanitizer is loaded into every process, compilers too
        which = " and ".join(f"not {word}" for word in CUDA_LEFT_OUT + CUDA_SLOW.get(sanitizer, ()))
        return [(file, which, [], {"FASTVOC_EMULATOR_SANITIZE": sanitizer}) for file in CUDA_TESTS]
    plugin, extension = ["-p", "tests.sanitized_extension"], {"FASTVOC_SANITIZED": str(build_extension(sanitizer))}
    chosen = lambda file: f"({CPU_CHOSEN.get((sanitizer, file), '_')}) and {CPU_LEFT_OUT}"  # every test has a _ in its name
    return [(file, chosen(file), plugin, extension) for file in CPU_TESTS[sanitizer]]


def main() -> int:
    asked = set(sys.argv[1:])
    if unknown := asked - {"cpu", "cuda", *SANITIZERS}:
        sys.exit(f"unknown: {unknown}\n{__doc__}")
    failed = 0
    for kind in ("cpu", "cuda"):
        for sanitizer in SANITIZERS:
            if asked & {"cpu", "cuda"} and kind not in asked or asked & set(SANITIZERS) and sanitizer not in asked:
                continue
            env = os.environ | {
                "LD_PRELOAD": runtime_of(sanitizer), "OMP_NUM_THREADS": "1", "ASAN_OPTIONS": "detect_leaks=0",
                "TSAN_OPTIONS": "exitcode=66 halt_on_error=1", "UBSAN_OPTIONS": "print_stacktrace=1",
            }  # fmt: skip
            for file, which, options, more in runs(kind, sanitizer):  # a process each: ThreadSanitizer's memory only grows
                # -s: a sanitizer's report goes to the terminal, not into a capture that dies with the process
                command = [sys.executable, "-m", "pytest", "-x", "-q", "-s", *options, "-k", which, file]
                start = time.monotonic()
                result = subprocess.run(command, cwd=ROOT, env=env | more)
                passed = result.returncode == 0
                outcome = "passed" if passed else f"FAILED ({result.returncode})"
                print(f"{kind}, {sanitizer}, {file}: {outcome} in {time.monotonic() - start:.0f} s", flush=True)
                failed += not passed
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
