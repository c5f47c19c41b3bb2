"""Types: the extension's stub is what was built, users' code passes mypy --strict, everything public is annotated."""

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastvoc import _C

ROOT = Path(__file__).parent.parent
STUB = ROOT / "fastvoc" / "_C.pyi"
# What pybind11 writes into a docstring -> what the stub says; None: any type, where pybind11 knows no better
KINDS = {
    "typing.SupportsInt | typing.SupportsIndex": "int", "typing.SupportsInt": "int",
    "typing.SupportsFloat | typing.SupportsIndex": "float", "typing.SupportsFloat": "float",
    "collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]": "Sequence[int]",
    "collections.abc.Sequence[typing.SupportsInt]": "Sequence[int]",
    "typing.Annotated[numpy.typing.ArrayLike, numpy.float32]": "ArrayLike",
    "bool": "bool", "str": "str", "dict": "dict", "int": "int", "None": "None", "list": None, "": None,
}  # fmt: skip


def split_arguments(text: str) -> list[str]:
    """At the commas that stand in no bracket."""
    depth, parts = 0, [""]
    for character in text:
        depth += (character in "[(") - (character in "])")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def built_signature(documentation: str) -> tuple[list, str | None]:
    """(kinds of the arguments, kind of the result) from the first line of a pybind11 docstring; without self."""
    arguments, result = re.match(r"[^(]*\((.*)\) -> (.*)$", documentation.splitlines()[0]).groups()
    kinds = []
    for argument in split_arguments(arguments):
        kind = argument.partition(": ")[2]
        if not kind.startswith("fastvoc._C."):
            kinds.append(KINDS[kind])
    return kinds, KINDS[result]


def stub_signature(function: ast.FunctionDef) -> tuple[list, str]:
    named = [a.arg for a in [*function.args.args, *function.args.kwonlyargs] if a.arg != "self"]
    assert not named, f"{function.name}: pybind11 takes {named} by position only: end the list with /"
    kinds = [ast.unparse(a.annotation).replace("dict[str, Any]", "dict") for a in function.args.posonlyargs if a.arg != "self"]
    return kinds, ast.unparse(function.returns)


def assert_same(name: str, documentation: str, function: ast.FunctionDef) -> None:
    built, stub = built_signature(documentation), stub_signature(function)
    assert len(built[0]) == len(stub[0]), f"{name}: {len(built[0])} arguments built, {len(stub[0])} in fastvoc/_C.pyi"
    for i, (real, said) in enumerate(zip([*built[0], built[1]], [*stub[0], stub[1]], strict=True)):
        assert real in (said, None), f"{name}, argument {i}: {real} built, {said} in fastvoc/_C.pyi"


def public(names) -> set[str]:
    return {name for name in names if not name.startswith("_")}


def test_the_stub_is_what_was_built():
    body = {node.name: node for node in ast.parse(STUB.read_text()).body if hasattr(node, "name")}
    assert set(body) == public(dir(_C)), "fastvoc/_C.pyi and the module have different names"
    for name, node in body.items():
        real = getattr(_C, name)
        if isinstance(node, ast.FunctionDef):
            assert_same(name, real.__doc__, node)
            continue
        members = {member.name: member for member in node.body}
        assert public(members) == public(vars(real)), name
        for member, function in members.items():
            found = inspect.getattr_static(real, member)
            assert isinstance(found, property) == bool(function.decorator_list), (name, member)
            documentation = found.fget.__doc__ if isinstance(found, property) else getattr(real, member).__doc__
            assert_same(f"{name}.{member}", documentation, function)


def test_the_comparison_sees_a_wrong_stub():
    wrong = ast.parse("def f(a: int, b: int, /) -> None: ...").body[0]
    assert_same("f", "f(arg0: typing.SupportsInt, arg1: typing.SupportsInt) -> None", wrong)
    for built in ("f(arg0: typing.SupportsInt) -> None", "f(arg0: typing.SupportsInt, arg1: bool) -> None",
                  "f(arg0: typing.SupportsInt, arg1: typing.SupportsInt) -> int"):  # fmt: skip
        with pytest.raises(AssertionError):
            assert_same("f", built, wrong)


def functions_of(thing):
    """The functions that a user of a public function or class calls, with their names."""
    if inspect.isclass(thing):
        for base in thing.__mro__:
            for name, value in vars(base).items() if base.__module__.startswith("fastvoc") else ():
                value = getattr(value, "__func__", value)
                if isinstance(value, property):
                    value = value.fget
                if inspect.isfunction(value) and (name == "__init__" or not name.startswith("_")):
                    yield f"{base.__name__}.{name}", value
    elif inspect.isfunction(thing):
        yield thing.__name__, thing


@pytest.mark.parametrize("package", ["", ".audio", ".errors", ".layers", ".losses", ".models"])
def test_everything_public_is_annotated(package):
    module = importlib.import_module(f"fastvoc{package}")
    lacking = set()
    for name in getattr(module, "__all__", None) or public(vars(module)):
        for function_name, function in functions_of(getattr(module, name)):
            if function.__qualname__.startswith("__create_fn__") or "<string>" in function.__code__.co_filename:
                continue  # a dataclass wrote it
            hints = function.__annotations__
            arguments = list(inspect.signature(function).parameters)
            lacking |= {f"{function_name}({a})" for a in arguments if a not in hints and a not in ("self", "cls")}
            if "return" not in hints:
                lacking.add(f"{function_name} ->")
    assert not lacking, sorted(lacking)


@pytest.mark.slow
def test_a_users_code_passes_mypy_strict(tmp_path):
    pytest.importorskip("mypy", reason="pip install mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file=", "--cache-dir"]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    cache = ROOT / ".mypy_cache" if os.access(ROOT, os.W_OK) else tmp_path
    run = lambda file: subprocess.run([*command, cache, file], cwd=tmp_path, env=environment, capture_output=True, text=True)
    done = run(ROOT / "tests" / "typed_user.py")
    assert done.returncode == 0, done.stdout + done.stderr
    # and mypy does see the types: what users get wrong is an error
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import fastvoc\nmodel = fastvoc.load('x', precision=8)\nx: str = fastvoc.get_num_threads()\n")
    done = run(wrong)
    assert done.returncode == 1 and done.stdout.count("error:") == 2, done.stdout
