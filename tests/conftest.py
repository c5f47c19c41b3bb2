"""Fixtures that several files use. Tests marked `gpu` are skipped where there is no CUDA device."""

import pytest
import torch

import fastvoc
from fastvoc.cli import main


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def one_torch_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(one_torch_thread):
    """Of torch, and of fastvoc."""
    before = fastvoc.get_num_threads()
    fastvoc.set_num_threads(1)
    yield
    fastvoc.set_num_threads(before)


@pytest.fixture
def call(capsys):
    """The command line: call(*arguments) -> (exit code, stdout, stderr)"""

    def run(*arguments):
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return run
