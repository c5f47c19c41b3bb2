"""Values of a model's config as they come from JSON: of the type that the config declares, and of a size that can be meant."""

import math
import re
import types
import typing

from fastvoc.errors import ConfigError

LARGEST = 1 << 26  # of any whole number: samples, channels, taps
MOST = 4096  # layers, flows, numbers in a list: each costs an object, before a weight is compared
COUNTS = re.compile(r"(n_)?(layers|flows|stacks)|\w*cycle")


def check_values(cls, values: dict, source) -> None:
    """Raise ConfigError naming the file and the place in it, such as `dilations[3]`, where a value is none of its field's."""
    declared = typing.get_type_hints(cls)
    for name, value in values.items():
        expected = declared[name]
        if not _fits(value, expected):
            raise ConfigError(f"{source}: {name} must be {_worded(expected)}, got {_short(value)}")
        _check_sizes(name, value, source)
        if COUNTS.fullmatch(name) and type(value) is int and value > MOST:
            raise ConfigError(f"{source}: {name} must be at most {MOST}, got {value}")


def _fits(value, expected) -> bool:
    origin, inner = typing.get_origin(expected), typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if expected is float:
        return type(value) in (int, float) and math.isfinite(value)
    if origin in (list, tuple):
        return isinstance(value, list | tuple) and all(_fits(x, inner[0]) for x in value) if inner else True
    if expected in (bool, int, str, list, dict, type(None)):
        return type(value) is expected
    return True


def _check_sizes(place: str, value, source) -> None:
    """Whole numbers and lists, as deep as they go."""
    if type(value) is int and abs(value) > LARGEST:
        raise ConfigError(f"{source}: {place} must be at most {LARGEST} in magnitude, got {_short(value)}")
    if isinstance(value, list | tuple):
        if len(value) > MOST:
            raise ConfigError(f"{source}: {place} holds {len(value)} values; at most {MOST} are read")
        for i, x in enumerate(value):
            _check_sizes(f"{place}[{i}]", x, source)
    elif isinstance(value, dict):
        for key, x in value.items():
            _check_sizes(f"{place}.{key}", x, source)


def _worded(expected) -> str:
    return expected.__name__ if isinstance(expected, type) and not typing.get_args(expected) else str(expected)


def _short(value) -> str:
    text = repr(value) if type(value) is not int or abs(value) < 1 << 128 else "a number past 128 bits"
    return text if len(text) <= 60 else text[:57] + "…"
