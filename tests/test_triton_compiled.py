"""The Triton kernels compile to machine code for GPUs that are not here, and use no more of them than the table says."""

import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="pip install triton (Linux)")

from tests import triton_compile  # noqa: E402  (imports Triton)


def test_compiles_for_a_gpu_that_is_not_there():
    """The first configuration of every kernel, in bf16 for Hopper; all of them: `make triton-check`."""
    jobs = triton_compile.jobs(["bf16"], [90], first_only=True)
    assert len(jobs) >= 13
    recorded = triton_compile.table()
    for job in jobs:
        used = triton_compile.used_by(job)
        assert not triton_compile.faults(used) and 0 < used["registers"] <= 255
        if triton.__version__ == triton_compile.table_version():
            assert used == recorded[job.key], job.key


def test_tensor_cores_are_used():
    """By low precisions; fp32 means float32 multiply-adds."""
    for precision, wanted in {"bf16": "wgmma", "fp32": "fma.rn.f32"}.items():
        (job,) = [j for j in triton_compile.jobs([precision], [90], first_only=True) if j.kernel.__name__ == "out_kernel"]
        ptx = triton_compile.compiled(job).asm["ptx"]
        assert wanted in ptx and ("mma" in ptx) == (wanted == "wgmma")


def test_the_table_is_whole_and_within_bounds():
    recorded = triton_compile.table()
    assert recorded.keys() == {job.key for job in triton_compile.jobs(triton_compile.RECORDED)}
    assert not {key: faults for key, used in recorded.items() if (faults := triton_compile.faults(used))}


@pytest.mark.slow
def test_every_configuration_compiles_for_every_architecture():
    command = [sys.executable, "-m", "tests.triton_compile"]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
