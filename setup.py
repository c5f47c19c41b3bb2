"""Build fastvoc: CMake makes fastvoc/_C, setuptools packs it. Metadata lives in pyproject.toml.

Environment: CMAKE_ARGS (passed on), CMAKE_BUILD_PARALLEL_LEVEL,
FASTVOC_CUDA=1 or 0 (build the CUDA library or not; otherwise where nvcc and a GPU are),
FASTVOC_CUDA_LIBRARY=PATH (pack one that was built before; it depends on no Python, so one does for all),
FASTVOC_EMULATED_ISAS=1 (also build what the tests need to run AMX code on machines without AMX).
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    def build_extension(self, ext):
        import pybind11

        package = Path(self.get_ext_fullpath(ext.name)).parent.resolve()
        emulated = os.environ.get("FASTVOC_EMULATED_ISAS") == "1"
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}{'-emulated' if emulated else ''}"
        library = os.environ.get("FASTVOC_CUDA_LIBRARY")
        cuda = "OFF" if library else {"1": "ON", "0": "OFF"}.get(os.environ.get("FASTVOC_CUDA"), "AUTO")
        configure = [
            "cmake",
            "-S",
            str(ROOT),
            "-B",
            str(build),
            "-G",
            "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={package}",
            f"-DFASTVOC_EMULATED_ISAS={'ON' if emulated else 'OFF'}",
            f"-DFASTVOC_CUDA={cuda}",
            *os.environ.get("CMAKE_ARGS", "").split(),
        ]
        subprocess.run(configure, check=True)
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count()))
        subprocess.run(["cmake", "--build", str(build), "--parallel", jobs], check=True)
        if library:
            shutil.copy(library, package / "libfastvoc_cuda.so")


setup(
    packages=find_packages(include=["fastvoc", "fastvoc.*"]),
    package_dir={"fastvoc.kernels": "kernels"},  # the Triton kernels; fastvoc/kernels/ only points there, in a source tree
    package_data={
        "fastvoc": ["py.typed", "_C.pyi", "cuda_tuning.json"],
        "fastvoc.demo": ["*.wav", "text/*.txt", "*/*"],
        "fastvoc.report": ["*.html"],
        "fastvoc.training": ["recipes/*.json"],
    },
    ext_modules=[Extension("fastvoc._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
