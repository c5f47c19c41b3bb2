"""A pytest plugin of `make sanitize`: fastvoc._C is the file that FASTVOC_SANITIZED names.

Deselects what says nothing there: tests that start a Python of their own, which would load the usual extension, tests of
torch.compile, which would build code without the sanitizer, and the operators' large cases, which take the paths of the small.
"""

import importlib.util
import os
import sys

LARGE = ", 1 s", ", 1 min", " 10 s", "training batch"  # in the names of cases


def _load() -> None:
    spec = importlib.util.spec_from_file_location("fastvoc._C", os.environ["FASTVOC_SANITIZED"])
    sys.modules["fastvoc._C"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def pytest_collection_modifyitems(config, items):
    import fastvoc

    assert fastvoc._C.__file__ == os.environ["FASTVOC_SANITIZED"], fastvoc._C.__file__
    elsewhere = lambda item: {"run_python", "subprocess", "compile", "export"} & set(item.function.__code__.co_names)
    left_out = [item for item in items if elsewhere(item) or any(large in item.name for large in LARGE)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


_load()
