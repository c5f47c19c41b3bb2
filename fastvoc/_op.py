"""One record per operator. The public function, the tests and the benchmarks are all read from it.

The only file that knows torch.library.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial, reduce, wraps
from typing import TypeVar, cast

import torch
from torch import Tensor

from fastvoc.errors import BackendUnavailableError, ConfigError, DeviceError, DTypeError, ShapeError

OPS: dict[str, Op | PlanOp] = {}
ORDER = {"cuda": ("cuda", "triton", "reference"), "cpu": ("cpu", "reference")}
Function = TypeVar("Function", bound=Callable)
BACKENDS = ("cuda", "triton", "cpu", "reference")

_lib = torch.library.Library("fastvoc", "DEF")
_plain = (Tensor, torch.nn.Parameter)
_forced: str | None = None
_log = logging.getLogger("fastvoc")


class Unsupported(NotImplementedError):
    """Raised by a backend to decline its inputs, with the reason. The next backend is then tried."""


class Op:
    """A callable operator: one reference, and any number of faster backends with its signature.

    schema     torch.library schema, e.g. "gated_activation(Tensor a, Tensor b) -> Tensor"
    reference  plain torch; the definition of what the operator means
    fake       output tensors from input tensors without computing, for torch.compile
    inputs     (*case, rand) -> arguments;  cases: name -> sizes, taken from real models
    public     of an operator with gradients: what users call, with the operator's arguments; tests of gradients use it
    length_at  the place of T in a case
    cpu_dtypes what the cpu backend computes in
    """

    def __init__(
        self, schema: str, *, reference, fake, inputs, cases, public=None, length_at: int = 2,
        cpu_dtypes: tuple[torch.dtype, ...] = (torch.float32,), **backends: Callable,
    ):  # fmt: skip
        self.name = schema.split("(")[0]
        self.reference, self.inputs, self.cases = reference, inputs, cases
        self.public, self.length_at, self.cpu_dtypes = public, length_at, cpu_dtypes
        self.backends = {**backends, "reference": reference}
        self.order = {d: [(n, self.backends[n]) for n in names if n in self.backends] for d, names in ORDER.items()}
        _lib.define(schema, tags=(torch.Tag.needs_contiguous_strides, torch.Tag.pt2_compliant_tag))
        _lib.impl(self.name, self.run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"fastvoc::{self.name}", fake, lib=_lib)
        self._traced = getattr(torch.ops.fastvoc, self.name).default
        OPS[self.name] = self

    def __call__(self, x: Tensor, *args):
        # The dispatcher costs microseconds a call and buys nothing in eager mode, so only tracing pays it
        if torch.compiler.is_compiling() or type(x) not in _plain or x.is_meta:
            return self._traced(x, *args)
        return self.run(x, *args)

    def run(self, x: Tensor, *args):
        if _forced:
            try:
                return self._backend(_forced)(x, *args)
            except Unsupported as reason:
                raise BackendUnavailableError(f"fastvoc.{self.name}: backend {_forced!r} declined: {reason}") from None
        for name, fn in self.order["cuda" if x.is_cuda else "cpu"]:
            try:
                return fn(x, *args)
            except Unsupported as reason:
                _say_once(f"fastvoc.{self.name}: {name} declined ({reason}); trying the next backend")
        raise AssertionError("the reference never declines")

    def _backend(self, name: str) -> Callable:
        if name not in self.backends:
            raise BackendUnavailableError(f"fastvoc.{self.name} has no {name!r} backend; it has {list(self.backends)}")
        return self.backends[name]

    def make_args(self, case, dtype, device, seed=0):
        rng = torch.Generator(device).manual_seed(seed)
        return self.inputs(*case, rand=partial(torch.randn, generator=rng, dtype=dtype, device=device))


class PlanOp:
    """An operator whose backends are plans: built once from weights, run many times. No tracing, no gradient."""

    def __init__(self, name: str, **backends: Callable):
        self.name, self.backends = name, backends
        self.cases: dict[str, tuple] = {}
        OPS[name] = self

    def plan(self, device: torch.device, *args, **kwargs):
        """The plan of the first backend in order for this device that does not decline, or of the forced one."""
        names = [_forced] if _forced else [n for n in ORDER[device.type] if n in self.backends]
        for name in names:
            if name not in self.backends:
                raise BackendUnavailableError(
                    f"fastvoc.{self.name} has no {name!r} backend; it has {list(self.backends)}"
                )
            try:
                return self.backends[name](*args, **kwargs)
            except Unsupported as reason:
                if _forced:
                    raise BackendUnavailableError(f"fastvoc.{self.name}: backend {name!r} declined: {reason}") from None
                _say_once(f"fastvoc.{self.name}: {name} declined ({reason}); trying the next backend")
        raise BackendUnavailableError(f"fastvoc.{self.name}: no backend for device {device}")


def forced_backend() -> str | None:
    return _forced


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Force one backend everywhere: `with fastvoc.backend("reference"): ...`. A decline then raises."""
    global _forced
    previous, _forced = _forced, _checked(name)
    try:
        yield
    finally:
        _forced = previous


def _checked(name: str) -> str:
    if name not in BACKENDS:
        raise ConfigError(f"unknown backend {name!r}; known are {list(BACKENDS)}")
    return name


if os.environ.get("FASTVOC_BACKEND"):
    _forced = _checked(os.environ["FASTVOC_BACKEND"])


def lazy(module: str, name: str) -> Callable:
    """A backend that is imported when first called: importing fastvoc imports no Triton."""

    @cache
    def load():
        return getattr(importlib.import_module(module), name)

    def backend(*args, **kwargs):
        try:
            fn = load()
        except ImportError as reason:
            raise Unsupported(f"{reason}; pip install triton") from None
        return fn(*args, **kwargs)

    return backend


def launch(kernel: Callable, *args) -> None:
    """Call a compiled CPU kernel. Tensors cross as addresses; they must be contiguous and on the CPU."""
    kernel(*[_address(a) if isinstance(a, Tensor) else a for a in args])


def _address(t: Tensor) -> int:
    if not t.is_cpu or not t.is_contiguous():
        raise DeviceError(f"a kernel expected a contiguous CPU tensor, got strides {t.stride()} on {t.device}")
    return t.data_ptr()


def same_kind(op: str, **tensors: Tensor) -> None:
    """Raise unless all tensors are floating point, of one dtype, shape and device; the message names the odd one out."""
    first, *rest = tensors.values()
    if all(t.dtype is first.dtype and t.shape == first.shape and t.device == first.device for t in rest):
        if first.is_floating_point():
            return
    (first_name, first), *others = tensors.items()
    if not first.is_floating_point():
        raise DTypeError(
            f"{op}: {first_name} is {first.dtype}, expected a floating point tensor.", hint="Convert it with .float()."
        )
    for name, t in others:
        if t.dtype != first.dtype:
            raise DTypeError(
                f"{op}: {first_name} is {first.dtype} but {name} is {t.dtype}.",
                hint=f"Convert one with .to({first.dtype}).",
            )
        if t.device != first.device:
            raise DeviceError(
                f"{op}: {first_name} is on {first.device} but {name} is on {t.device}.",
                hint="Move one with .to(device).",
            )
        if t.shape != first.shape:
            raise ShapeError(
                f"{op}: {first_name} is {tuple(first.shape)} but {name} is {tuple(t.shape)}; they must be equal."
            )


def autocast(policy: str, wide: tuple[str, ...] = ()) -> Callable[[Function], Function]:
    """A public function's behaviour under torch.autocast, which does not see our operators by itself.

    "lower"    float tensors go to autocast's dtype, as those of torch's matrix products do
    "float32"  they go to float32: what a likelihood or an inverse hangs on
    "widest"   they go to the widest dtype among them, as in torch's elementwise functions
    wide: names of arguments that stay as they are, such as weights whose gradients are not to be rounded.
    float64 stays. Within the function autocast is off, so that a reference computes in what it was given.
    """

    def decorate(fn: Function) -> Function:
        names = fn.__code__.co_varnames[1 : fn.__code__.co_argcount + fn.__code__.co_kwonlyargcount]

        @wraps(fn)
        def public(x: Tensor, *args, **kwargs):
            kind = "cuda" if x.is_cuda else "cpu"
            if not torch.is_autocast_enabled(kind):
                return fn(x, *args, **kwargs)
            floats = [a.dtype for a in (x, *args, *kwargs.values()) if isinstance(a, Tensor) and a.is_floating_point()]
            dtype = {"lower": torch.get_autocast_dtype(kind), "float32": torch.float32}.get(policy)
            dtype = dtype or reduce(torch.promote_types, floats)
            lowers = lambda a, name: isinstance(a, Tensor) and a.dtype in _AUTOCAST and name not in wide
            cast = lambda a, name: a.to(dtype) if lowers(a, name) else a
            with torch.autocast(kind, enabled=False):
                return fn(cast(x, ""), *map(cast, args, names), **{name: cast(a, name) for name, a in kwargs.items()})

        public.autocast = policy  # type: ignore[attr-defined]  # a function's type knows none
        return cast(Function, public)

    return decorate


_AUTOCAST = torch.float32, torch.float16, torch.bfloat16


def no_second_gradient(op: str):
    raise NotImplementedError(
        f"fastvoc.{op} has a first gradient only; a second one was asked for (create_graph=True, a gradient penalty). "
        f"Its reference in fastvoc/ops/{op}.py, plain torch, has gradients of any order."
    )


def needs_grad(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


@cache
def _say_once(message: str) -> None:
    _log.warning(message)
