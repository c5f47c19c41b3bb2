"""Memory of large results and workspaces, from the system in large pages.

The system clears each new page before a kernel may write to it. torch asks for pages of 4 KB: for gated_activation on 64 MB that
took most of the time, of 2 MB far less (benchmarks/NOTES.md has the figures).
"""

import ctypes
import functools
import sys
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

LARGE = 4 << 20  # bytes: below, little of a tensor would fill whole large pages
_HUGEPAGE = 14  # MADV_HUGEPAGE of Linux: a hint, that costs a microsecond


@functools.cache
def _madvise():
    """The system's, where it is Linux."""
    return getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None


def empty(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """torch.empty on the CPU; where it is large, in large pages if the system has them."""
    made = torch.empty(shape, dtype=dtype, device="cpu")  # whatever torch.set_default_device says
    if made.nbytes >= LARGE and (madvise := _madvise()) is not None:
        first = -(-made.data_ptr() // 4096) * 4096
        n_bytes = (made.data_ptr() + made.nbytes) // 4096 * 4096 - first
        madvise(ctypes.c_void_p(first), ctypes.c_size_t(n_bytes), _HUGEPAGE)
    return made


def keep_freed_memory() -> None:
    """Tell glibc, for the rest of the process, to keep large freed blocks for the next ones of their size."""
    with suppress(OSError, AttributeError):
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
