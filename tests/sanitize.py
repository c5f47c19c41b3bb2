"""python -m tests.sanitize [thread|address,undefined]: the CUDA kernels' tests in the emulator, under sanitizers.

What is left out under a sanitizer: the largest sizes, which show nothing that the smaller do not, the test of the
sanitizers themselves, and launches that are given up half-way, which nothing orders with what follows.
Exit status 1 where a fault is found.
"""

import os
import subprocess
import sys

from tests.emulator import ROOT, build, kernels
from tests.test_cuda_emulated import runtime_of

TESTS = ["tests/test_cuda_emulated.py", "tests/test_cuda_stack.py", "tests/test_cuda_wavenet.py"]
LEFT_OUT = ("removed_barrier", "never_reach", "nobody", "wide", "256", "front", "waveglow", "0.0")
SLOW = {"thread": ("wavegan", "diffwave", "philsyn", "clarinet")}  # it keeps a clock for every thread of a block


def main() -> int:
    failed = 0
    for sanitizer in sys.argv[1:] or ["thread", "address,undefined"]:
        build(kernels(), sanitizer)  # before the sanitizer is loaded into every process, compilers too
        env = os.environ | {
            "LD_PRELOAD": runtime_of(sanitizer), "FASTVOC_EMULATOR_SANITIZE": sanitizer, "OMP_NUM_THREADS": "1",
            "TSAN_OPTIONS": "exitcode=66 halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1",
        }  # fmt: skip
        which = " and ".join(f"not {word}" for word in LEFT_OUT + SLOW.get(sanitizer, ()))
        for file in TESTS:  # a process each: ThreadSanitizer's memory only grows
            # -s: a sanitizer's report goes to the terminal, not into a capture that dies with the process
            command = [sys.executable, "-m", "pytest", "-x", "-q", "-s", "-k", which, file]
            result = subprocess.run(command, cwd=ROOT, env=env)
            passed = result.returncode == 0
            print(f"{sanitizer}, {file}: {'passed' if passed else f'FAILED ({result.returncode})'}", flush=True)
            failed += not passed
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
