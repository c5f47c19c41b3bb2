"""What stands between an operator and its kernel: what a kernel declines, and which of its configurations runs."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache

import torch
import triton
from torch import Tensor

from fastvoc._op import Unsupported

INTERPRETED = triton.knobs.runtime.interpret  # TRITON_INTERPRET=1 was set when Triton was imported; then on the CPU
DTYPES = torch.float32, torch.float16, torch.bfloat16


def accept(*tensors: Tensor | None, contiguous: bool = True) -> list[Tensor | None]:
    """The tensors, made contiguous. Declines what the kernels are not made for."""
    for x in tensors:
        if x is None:
            continue
        if not (x.is_cuda or INTERPRETED):
            raise Unsupported("the Triton kernels run on GPU tensors only")
        if x.dtype not in DTYPES:
            raise Unsupported(f"{x.dtype}: the Triton kernels know {', '.join(str(d)[6:] for d in DTYPES)}")
        if x.is_cuda and _too_old(x.get_device()):
            raise Unsupported(f"{x.device} is older than compute capability 8.0, the oldest the kernels are compiled for")
    return [x.contiguous() if contiguous and x is not None else x for x in tensors]


@cache
def _too_old(device: int) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0)


def on_device_of(x: Tensor):
    """Triton launches on the current device, which need not be the tensor's. Entering a device guard costs
    microseconds, so only where they differ."""
    same = not x.is_cuda or x.get_device() == torch.cuda.current_device()
    return nullcontext() if same else torch.cuda.device(x.device)


def dot_precision(dtype: torch.dtype) -> str:
    """How a float32 product is computed; as torch's are, tf32 only where the user has asked for it."""
    matmul = torch.backends.cuda.matmul
    asked = matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32
    return "tf32" if dtype == torch.float32 and asked else "ieee"


class Tuned:
    """A kernel and its configurations. The fastest for a key (sizes, dtype) is found once, by timing the real launch.

    Untuned, with the first configuration: in the interpreter, under FASTVOC_AUTOTUNE=0, with deterministic algorithms
    (timing is not), and inside a CUDA graph's capture, where nothing can be timed.
    """

    def __init__(self, kernel, configurations: dict[int, list[dict]]):
        self.kernel, self.configurations, self.chosen = kernel, configurations, {}

    def __call__(self, key: tuple, grid: Callable[[dict], tuple], *args, accumulates: Tensor | None = None, **constants):
        """grid: configuration -> grid.   accumulates: an output that the kernel adds to, which timing must not change.

        The first argument's dtype is that of the tiles.
        """
        key = key, args[0].dtype, args[0].device
        configuration = self.chosen.get(key)
        if configuration is None:
            choice = self.configurations[args[0].element_size()]
            configuration = choice[0]
            if len(choice) > 1 and _may_time():
                times = [self._time(c, grid, args, constants, accumulates) for c in choice]
                configuration = self.chosen[key] = choice[times.index(min(times))]
        self._launch(configuration, grid, args, constants)

    def _launch(self, configuration, grid, args, constants):
        # Contracted multiply-adds everywhere: Triton's default differs between its versions
        self.kernel[grid(configuration)](*args, **constants, **configuration, enable_fp_fusion=True)

    def _time(self, configuration, grid, args, constants, accumulates) -> float:
        before = None if accumulates is None else accumulates.clone()
        try:
            return triton.testing.do_bench(lambda: self._launch(configuration, grid, args, constants), warmup=5, rep=20)
        except triton.runtime.errors.OutOfResources:
            return float("inf")
        finally:
            if before is not None:
                accumulates.copy_(before)


def _may_time() -> bool:
    return not (
        INTERPRETED
        or os.environ.get("FASTVOC_AUTOTUNE") == "0"
        or torch.are_deterministic_algorithms_enabled()
        or torch.cuda.is_current_stream_capturing()
    )


def tuning_key(n_samples: int, *sizes) -> tuple:
    """Lengths within a factor of two share a configuration."""
    return n_samples.bit_length(), *sizes
