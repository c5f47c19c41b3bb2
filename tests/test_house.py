"""The house rules that a program can look after: file lengths, and rooms that are where the documents say."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [p for folder in ("csrc", "fastvoc", "kernels", "benchmarks", "tests") for p in (ROOT / folder).rglob("*")]
SOURCES = [p for p in SOURCES if p.suffix in (".py", ".cpp", ".h", ".c", ".cu", ".cuh")]
# Longer than 400 lines, and why. Tests are long by nature where they follow one module through all it does
LONG = {
    "csrc/cpu/gated_residual_stack.cpp": "one kernel: plain and minimal filtering share its tiles and its workspace",
    "csrc/cuda/wavenet_generate.cu": "one persistent kernel: its phases share the state of a block",
}


def test_no_source_is_long_without_a_reason():
    long = {str(p.relative_to(ROOT)) for p in SOURCES if p.read_text().count("\n") > 400}
    long = {name for name in long if not name.startswith("tests/")}
    assert long == set(LONG)


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "README.md", "SECURITY.md", "docs/design.md"])
def test_what_the_documents_name_is_there(document):
    named = re.findall(r"`((?:benchmarks|csrc|docs|fastvoc|kernels|tests)/[\w./-]*)`", (ROOT / document).read_text())
    missing = [name for name in named if "NAME" not in name and not (ROOT / name).exists()]
    assert (named or document == "SECURITY.md") and missing == []


def test_an_operator_has_one_name_in_every_room():
    """Files of kernels are named after operators, or hold what several share."""
    operators = {p.stem for p in (ROOT / "fastvoc/ops").glob("*.py")}
    shared = {
        "csrc/cpu": {"kernels"}, "csrc/cuda": {"library", "wavenet_condition"},
        "kernels": {"configurations", "gates", "gated_residual_backward", "launch", "__init__"},
    }  # fmt: skip
    for room, others in shared.items():
        names = {p.stem for p in (ROOT / room).iterdir() if p.suffix in (".cpp", ".cu", ".py")} - {"resources"}
        assert names - operators <= others, (room, names - operators - others)
