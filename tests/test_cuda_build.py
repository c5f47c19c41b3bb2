"""The CUDA sources through the CUDA compiler, without a GPU: one architecture here, all of them in `make cuda-check`."""

import importlib.util
import json

import pytest
import torch

from fastvoc import _cuda
from fastvoc._op import OPS, Unsupported
from fastvoc.errors import BackendUnavailableError
from tests.emulator import ROOT, kernels

spec = importlib.util.spec_from_file_location("resources", ROOT / "csrc/cuda/resources.py")
resources = importlib.util.module_from_spec(spec)
spec.loader.exec_module(resources)
TABLE = json.loads(resources.TABLE.read_text())


def test_every_kernel_for_every_architecture_without_spills():
    assert TABLE["architectures"] == list(resources.ARCHITECTURES)
    assert resources.faults(TABLE["kernels"]) == []
    in_sources = sum(text.count("__global__") for text in kernels().values())
    assert len({name.split("<")[0] for name in TABLE["kernels"]}) == in_sources >= 10


def test_a_spill_and_a_missing_architecture_are_faults():
    fine = {a: {"registers": 32, "spills": 0, "shared": 0} for a in resources.ARCHITECTURES}
    assert resources.faults({"k": fine}) == []
    assert resources.faults({"k": fine | {"90a": {"registers": 255, "spills": 8, "shared": 0}}}) == ["k spills 8 bytes on sm_90a"]
    assert resources.faults({"k": {a: r for a, r in fine.items() if a != "75"}}) == ["k is missing for sm_75"]


@pytest.mark.slow
@pytest.mark.skipif(not resources.nvcc(), reason="needs nvcc; the emulator's tests run without")
def test_the_table_is_of_these_sources():
    ours = resources.measured(["80"], jobs=2)
    assert resources.faults(ours, ["80"]) == []
    if resources.nvcc_version() == TABLE["nvcc"]:
        theirs = {name: {"80": by_arch["80"]} for name, by_arch in TABLE["kernels"].items()}
        assert ours == theirs, "write the table anew: python csrc/cuda/resources.py --write"


def test_the_build_makes_what_the_table_lists():
    text = (ROOT / "csrc/cuda/CMakeLists.txt").read_text()
    wanted = ";".join(f"{a}-real" for a in resources.ARCHITECTURES) + f";{resources.ARCHITECTURES[-1]}-virtual"
    assert f'"{wanted}"' in text


def test_the_readme_claims_no_card_that_was_not_tested():
    cards = json.loads((ROOT / "csrc/cuda/verified.json").read_text())["hardware"]
    (row,) = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| CUDA (`csrc/cuda`)")]
    assert ("not yet on hardware" in row) == (not cards)
    assert all(card["card"] in row and card["commit"] for card in cards)


# ---- loading ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def unloaded(monkeypatch):
    monkeypatch.setattr(_cuda, "_loaded", None)
    return monkeypatch


def test_why_there_is_no_library(unloaded, tmp_path):
    unloaded.setenv("FASTVOC_DISABLE_CUDA", "1")
    assert _cuda.why_not() == "disabled by FASTVOC_DISABLE_CUDA=1"
    unloaded.delenv("FASTVOC_DISABLE_CUDA")
    unloaded.setattr(_cuda, "_loaded", None)
    unloaded.setattr(_cuda, "PATH", tmp_path / "libfastvoc_cuda.so")
    assert _cuda.why_not() == "fastvoc was built without its CUDA library"
    unloaded.setattr(_cuda, "_loaded", None)
    unloaded.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "libfastvoc_cuda.so").write_text("no library")
    assert _cuda.why_not() == "torch sees no GPU"
    unloaded.setattr(_cuda, "_loaded", None)
    unloaded.setattr(torch.cuda, "is_available", lambda: True)
    assert str(tmp_path) in _cuda.why_not()  # the loader's own words
    with pytest.raises(BackendUnavailableError, match="fastvoc.warmup: .*libfastvoc_cuda.so"):
        _cuda.warmup()
    with pytest.raises(Unsupported, match="libfastvoc_cuda.so"):
        _cuda.library()


def test_every_operator_has_a_cuda_backend_or_a_triton_one():
    for name in ("gated_activation", "affine_coupling", "affine_coupling_inverse", "affine_coupling_backward",
                 "invertible_conv1x1", "invertible_conv1x1_backward", "gated_residual_stack", "wavenet_generate"):
        assert "cuda" in OPS[name].backends
