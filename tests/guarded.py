"""Memory between pages that may not be touched: what reads or writes beside it dies. For processes of their own."""

import ctypes
import mmap

import numpy as np

PAGE = mmap.PAGESIZE
_regions = []  # kept: an array does not own its memory
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


def guarded() -> np.ndarray:
    """A page of float32 whose neighbours are forbidden. The process must end by os._exit: the region cannot be freed."""
    memory = mmap.mmap(-1, 3 * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for side in (start, start + 2 * PAGE):
        assert _libc.mprotect(side, PAGE, 0) == 0  # PROT_NONE
    _regions.append(memory)
    return np.frombuffer(memory, np.float32, PAGE // 4, PAGE)
