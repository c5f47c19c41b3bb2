"""A pickle's instructions, carried out on plain data alone: nothing that a file names is ever imported or called.

A name in a pickle (a class, a function) stays a `Name`. Where the file calls it, a function of our own answers for it
(`CONSTRUCTORS`: containers, numbers, numpy arrays; the caller adds tensors), or it is one of the classes whose objects
become inert shells (`PickledModule`), or the file is refused with that name. Containers are built, values are moved;
no method of a value is looked up. Python's own Unpickler, which calls what it is given, is not involved.

https://docs.python.org/3/library/pickletools.html describes the instructions.
"""

import pickletools
import re
from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor

from fastvoc.errors import CorruptCheckpointError, ResourceLimitError, UnsafeCheckpointError

MAX_INSTRUCTIONS = 5_000_000
MAX_VISITS = 100_000  # modules and tensors of one object; shared ones can be more than the file has

# Classes whose objects are read as shells: the upstreams' modules, torch's, and what hangs on them
INERT = re.compile(
    r"((\w+\.)*(glow|glow_old)|wavenet)\.\w+"  # WaveGlow's module also as a part of a package
    r"|torch\.nn\.modules\.\w+\.\w+"
    r"|torch\.nn\.utils\.(weight_norm\.WeightNorm|spectral_norm\.SpectralNorm)"
    r"|torch\.nn\.backends\.thnn\._get_thnn_function_backend"  # in every module pickle of torch 1.2 and before
    r"|apex\.[\w.]+"  # the loss scalers of mixed-precision training
)
DTYPES = {
    str(dtype): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.bool, torch.complex64, torch.complex128,
    )
}  # fmt: skip
OLD_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # Python 2's


class Name:
    """A class or function that a pickle names: its dotted name, and nothing behind it."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    def __repr__(self):
        return f"Name({self.name!r})"


class PickledModule:
    """What a pickle holds of an nn.Module object (or of what hangs on one), as plain data.

    class_name  as it was when the file was written, such as "glow_old.WaveGlow"
    attributes  its __dict__: numbers, tensors, containers and further PickledModules
    """

    __slots__ = ("attributes", "class_name")

    def __init__(self, class_name: str):
        self.class_name, self.attributes = class_name, {}

    def __repr__(self):
        return f"PickledModule({self.class_name!r})"

    def state_dict(self) -> dict[str, Tensor]:
        """Named as nn.Module.state_dict names them: parameters, persistent buffers, and those of the submodules."""
        state, visits = {}, 0
        pending = [("", self)]
        while pending:
            prefix, module = pending.pop()
            if not isinstance(module, PickledModule):
                raise CorruptCheckpointError(f"{self.class_name}: {prefix[:-1] or 'it'} is no module")
            transient = module._container("_non_persistent_buffers_set", (set, list, tuple))
            for kind in ("_parameters", "_buffers"):
                for name, value in module._container(kind, dict).items():
                    if isinstance(value, Tensor) and not (kind == "_buffers" and name in transient):
                        state[f"{prefix}{name}"] = value
            inner = module._container("_modules", dict)
            # The last is popped first, so that the order is torch's
            pending += [(f"{prefix}{name}.", inner[name]) for name in reversed(inner) if inner[name] is not None]
            visits += 1
            if visits + len(state) > MAX_VISITS or len(prefix) > 4096:
                raise ResourceLimitError(f"{self.class_name} holds more than {MAX_VISITS} modules, or holds itself")
        return state

    def _container(self, name: str, kind):
        value = self.attributes.get(name, {})
        if not isinstance(value, kind) and value != {}:
            raise CorruptCheckpointError(f"{self.class_name}.{name} is a {type(value).__name__}")
        return value


class PickledArray:
    """A numpy dtype or array in the making: numpy's own pickles fill them in afterwards."""

    __slots__ = ("code", "order")

    def __init__(self, code: str | None = None):
        self.code, self.order = code, "|"

    def dtype(self) -> np.dtype:
        if not re.fullmatch(r"[fiub][1248]", self.code or ""):
            raise ValueError(f"an array of the type {self.code!r}, which holds no plain numbers")
        return np.dtype({"<": "<", ">": ">"}.get(self.order, "=") + self.code)

    def numbers(self, data: bytes, shape: tuple, fortran: bool = False) -> np.ndarray:
        if not isinstance(data, bytes) or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("an array that is no block of numbers")
        return np.frombuffer(data, self.dtype()).reshape(shape, order="F" if fortran else "C").copy()

    def set_state(self, state):
        """An array's state is (version, shape, dtype, is it in Fortran's order, bytes); a dtype's begins (version, order."""
        if self.code is None:
            _, shape, dtype, fortran, data = state
            return dtype.numbers(data, shape, fortran)
        self.order = state[1]
        return self


def _scalar(dtype: PickledArray, data: bytes):
    return dtype.numbers(data, ()).item()


def _encoded(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):  # how Python 2 spelled bytes
        raise ValueError(f"the encoding {encoding!r}")
    return text.encode("latin-1")


def _dtype(code, *_) -> PickledArray:
    return PickledArray(code if isinstance(code, str) else "?")


# What a file may call, and what happens then. Keys of dictionaries and sets are plain, so that hashing them is cheap
CONSTRUCTORS = {
    "collections.OrderedDict": lambda items=(): OrderedDict((_key(k), v) for k, v in items),
    "builtins.set": lambda items=(): {_key(k) for k in items},
    "builtins.frozenset": lambda items=(): {_key(k) for k in items},
    "_codecs.encode": _encoded,
    "torch.Size": tuple,
    "torch.device": lambda *parts: ":".join(str(_key(part)) for part in parts),
    "numpy.dtype": _dtype,
    "numpy.ndarray": lambda *_: PickledArray(),
}
for core in ("numpy.core.multiarray", "numpy._core.multiarray"):
    CONSTRUCTORS |= {f"{core}.scalar": _scalar, f"{core}._reconstruct": lambda *_: PickledArray()}

_VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = {"PROTO", "FRAME"}
_NUMBERS_AND_STRINGS = set(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8".split()
)


def unpickle(file, path, constructors: dict, persistent=None, inert=INERT.fullmatch, built=None):
    """The value of the pickle that starts at file's position; leaves the file behind its last byte.

    constructors  name -> function, for what the pickle calls
    persistent    what answers for persistent ids (torch's storages); None refuses them
    inert         whether a class becomes a shell
    built         called with (shell, file) when a shell has its attributes; what it returns takes the shell's place

    Raises UnsafeCheckpointError naming the first name that is neither; CorruptCheckpointError, ResourceLimitError.
    """
    stack, marks, memo = [], [], {}

    def since_mark() -> list:
        start = marks.pop()
        values = stack[start:]
        del stack[start:]
        return values

    def named(name: str):
        first, _, rest = name.partition(".")
        name = f"{OLD_NAMES.get(first, first)}.{rest}"
        if name in DTYPES:
            return DTYPES[name]
        if name in constructors or inert(name):
            return Name(name)
        raise UnsafeCheckpointError(
            f"{path} holds more than tensors: it asks for {name}, which could run code. Nothing was run.",
            hint="Ask its author for a state_dict.",
        )

    def called(function, arguments):
        if not isinstance(function, Name):
            raise ValueError(f"a call of a {type(function).__name__}")
        if function.name in constructors:
            return constructors[function.name](*arguments)
        return PickledModule(function.name)

    for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
        if count > MAX_INSTRUCTIONS:
            raise ResourceLimitError(f"{path} holds more than {MAX_INSTRUCTIONS} pickle instructions")
        name = operation.name
        if name in _IGNORED:
            pass
        elif name == "STOP":
            (value,) = stack
            return value
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            marks.append(len(stack))
        elif name in _VALUES:
            stack.append(_VALUES[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name in ("TUPLE", "LIST"):
            values = since_mark()
            stack.append(tuple(values) if name == "TUPLE" else values)
        elif name in ("FROZENSET", "ADDITEMS"):
            values = {_key(value) for value in since_mark()}
            stack.append(values) if name == "FROZENSET" else _a(set, stack[-1]).update(values)
        elif name in ("DICT", "SETITEMS"):
            values = since_mark()
            if name == "DICT":
                stack.append({})
            _a(dict, stack[-1]).update(zip(map(_key, values[::2]), values[1::2], strict=True))
        elif name == "SETITEM":
            value, key = stack.pop(), _key(stack.pop())
            _a(dict, stack[-1])[key] = value
        elif name == "APPEND":
            value = stack.pop()
            _a(list, stack[-1]).append(value)
        elif name == "APPENDS":
            values = since_mark()
            _a(list, stack[-1]).extend(values)
        elif name in ("POP", "POP_MARK"):
            since_mark() if name == "POP_MARK" else stack.pop()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "GLOBAL":
            stack.append(named(argument.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = _a(str, stack.pop()), _a(str, stack.pop())
            stack.append(named(f"{module}.{attribute}"))
        elif name == "INST":
            stack.append(called(named(argument.replace(" ", ".", 1)), since_mark()))
        elif name == "OBJ":
            function, *arguments = since_mark()
            stack.append(called(function, arguments))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments = _a(tuple, stack.pop())
            stack.append(called(stack.pop(), arguments))
        elif name == "BUILD":
            state = stack.pop()
            value = _set_state(stack[-1], state)
            if built is not None and isinstance(value, PickledModule):
                value = built(value, file)
            if value is not stack[-1]:
                memo = {key: value if kept is stack[-1] else kept for key, kept in memo.items()}
                stack[-1] = value
        elif name in ("PERSID", "BINPERSID"):
            if persistent is None:
                raise ValueError("a persistent id")
            stack.append(persistent(argument if name == "PERSID" else stack.pop()))
        elif name in _NUMBERS_AND_STRINGS:
            if type(argument) is int and argument.bit_length() > 128:
                raise ValueError("an integer past 128 bits")
            stack.append(argument)
        else:
            raise ValueError(f"the pickle instruction {name}")
    raise ValueError("a pickle without an end")


def _set_state(value, state):
    """What __setstate__ would do; what takes the value's place. An OrderedDict's attributes (versions) have no use here."""
    if isinstance(value, PickledArray):
        return value.set_state(state)
    if isinstance(value, PickledModule):
        if isinstance(state, tuple) and len(state) == 2:  # of a class with __slots__
            state = {**(state[0] or {}), **(state[1] or {})}
        value.attributes.update(_a(dict, state))
    elif not isinstance(value, OrderedDict):
        raise ValueError(f"a state for a {type(value).__name__}")
    return value


def _key(value):
    """Only plain keys: the hash of nested tuples can cost more than any file is long."""
    if value is not None and not isinstance(value, str | int | float | bytes):
        raise ValueError(f"a {type(value).__name__} as a key")
    return value


def _a(kind, value):
    if not isinstance(value, kind):
        raise ValueError(f"a {type(value).__name__} where a {kind.__name__} belongs")
    return value
