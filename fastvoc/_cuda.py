"""The CUDA library, fastvoc/libfastvoc_cuda.so: plain C with its own CUDA runtime inside, loaded at the first CUDA tensor.

Importing fastvoc loads nothing and needs no driver. Where the library cannot be used, `why_not()` says why.
The border: every pointer is an address, every integer an int64_t, every real a double; the last argument is the stream.
"""

import ctypes
import json
import os
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from fastvoc._op import Unsupported
from fastvoc.errors import BackendUnavailableError, DeviceError, KernelError

INTERFACE = 1
DTYPE_CODE = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
PATH = Path(__file__).parent / "libfastvoc_cuda.so"

_loaded: "Library | str | None" = None  # the library, or why there is none


class Library:
    """An opened library. emulated: built from the same sources for the host (csrc/emulator), for tests; takes CPU tensors."""

    def __init__(self, path: Path, emulated: bool = False):
        self.path, self.emulated = path, emulated
        self.c = ctypes.CDLL(str(path), mode=os.RTLD_LOCAL | os.RTLD_NOW)
        self.c.fastvoc_cuda_error.restype = ctypes.c_char_p
        self.warm: set[int] = set()
        if (found := self.c.fastvoc_cuda_interface()) != INTERFACE:
            raise OSError(f"{path} has interface {found}, this fastvoc needs {INTERFACE}; build it anew")

    def call(self, op: str, *args) -> None:
        """Launch `fastvoc_<op>` on the current stream of the tensors' device. Tensors must be contiguous.

        Raises DeviceError, and KernelError with the shapes where CUDA refuses.
        """
        tensors = [a.tensor if isinstance(a, Strided) else a for a in args if isinstance(a, Tensor | Strided)]
        device = tensors[0].device
        for a in args:
            if isinstance(a, Tensor) and not a.is_contiguous():
                raise DeviceError(f"fastvoc.{op}: a kernel expected a contiguous tensor, got strides {a.stride()}")
        for t in tensors:
            if t.device != device or t.is_cuda == self.emulated:
                raise DeviceError(f"fastvoc.{op}: a kernel expected tensors on one GPU, got {device} and {t.device}")
        numbers = [_as_c(a) for a in args]
        if self.emulated:
            code = getattr(self.c, f"fastvoc_{op}")(*numbers, ctypes.c_void_p(0))
        else:
            # Entering the context costs microseconds and is needed only where another device is current
            with nullcontext() if torch.cuda.current_device() == device.index else torch.cuda.device(device):
                if torch.cuda.is_current_stream_capturing() and device.index not in self.warm:
                    raise KernelError(
                        f"fastvoc.{op}: a CUDA graph is being captured and the kernels are not loaded on {device}.",
                        hint="Call fastvoc.warmup(device) before the capture.",
                    )
                stream = torch.cuda.current_stream(device).cuda_stream
                code = getattr(self.c, f"fastvoc_{op}")(*numbers, ctypes.c_void_p(stream))
        if code:
            shapes = [tuple(t.shape) for t in tensors]
            raise KernelError(f"fastvoc.{op} on {device}: {self.error()} (code {code}); shapes {shapes}")

    def number(self, name: str, *args: int) -> int:
        """What `fastvoc_<name>` answers: a size."""
        function = getattr(self.c, f"fastvoc_{name}")
        function.restype = ctypes.c_int64
        return function(*[ctypes.c_int64(a) for a in args])

    def error(self) -> str:
        return self.c.fastvoc_cuda_error().decode()

    def warmup(self, device: torch.device) -> None:
        """Load every kernel onto a device."""
        with nullcontext() if self.emulated else torch.cuda.device(device):
            if code := self.c.fastvoc_cuda_warmup():
                raise KernelError(f"fastvoc.warmup on {device}: {self.error()} (code {code})")
        self.warm.add(device.index)


class Strided:
    """A tensor whose strides the kernel is told: it need not be contiguous."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor


def _as_c(a):
    if isinstance(a, Tensor):
        return ctypes.c_void_p(a.data_ptr())
    if isinstance(a, Strided):
        return ctypes.c_void_p(a.tensor.data_ptr())
    if a is None:
        return ctypes.c_void_p(0)
    return ctypes.c_double(a) if isinstance(a, float) else ctypes.c_int64(a)


def _load() -> "Library | str":
    if os.environ.get("FASTVOC_DISABLE_CUDA") == "1":
        return "disabled by FASTVOC_DISABLE_CUDA=1"
    if not PATH.exists():
        return "fastvoc was built without its CUDA library"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    try:
        library = Library(PATH)
        library.warmup(torch.device("cuda", torch.cuda.current_device()))
    except (OSError, KernelError) as reason:  # the loader's or CUDA's own words: they name the cause best
        return str(reason)
    return library


def why_not() -> str | None:
    """None where the library works here, else the reason."""
    global _loaded
    if _loaded is None:
        _loaded = _load()
    return None if isinstance(_loaded, Library) else _loaded


def library() -> Library:
    """The library. Raises Unsupported, so that a backend that asks for it declines."""
    reason = why_not()
    if not isinstance(_loaded, Library):
        raise Unsupported(reason)
    return _loaded


def dtype_code(x: Tensor) -> int:
    if x.dtype not in DTYPE_CODE:
        raise Unsupported(f"{x.dtype}; the kernels know float32, float16 and bfloat16")
    return DTYPE_CODE[x.dtype]


def device_of(x: Tensor):
    """A block in which x's device is the current one."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


@cache
def _tunings() -> dict:
    return json.loads((Path(__file__).parent / "cuda_tuning.json").read_text())


def tuning(op: str, device: torch.device) -> dict:
    """The knobs of an op's kernels on this card."""
    table = _tunings()[op]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "emulator"
    return {**table["default"], **table.get(name, {})}


@contextmanager
def using(other: Library):
    """Use another library for a block: how tests put the emulated one in place."""
    global _loaded
    before, _loaded = _loaded, other
    try:
        yield other
    finally:
        _loaded = before


def warmup(device: str | torch.device | int = "cuda") -> None:
    """Load every CUDA kernel of fastvoc onto a device: needed once before a CUDA graph is captured.

    Raises BackendUnavailableError with the reason where the library cannot be used.
    """
    reason = why_not()
    if not isinstance(_loaded, Library):
        raise BackendUnavailableError(f"fastvoc.warmup: {reason}")
    device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    _loaded.warmup(device)
