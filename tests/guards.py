"""Memory whose neighbours may not be touched: one element read or written outside ends the process with SIGSEGV."""

import ctypes
import mmap

import numpy as np

PAGE = mmap.PAGESIZE


class Guards:
    """Arrays with a forbidden page on each side. What `clear` frees must not be used any more."""

    def __init__(self):
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        self._regions = []

    def bytes(self, n: int, at_end: bool) -> np.ndarray:
        """(n,) uint8 that begins right behind a forbidden page (and is aligned), or ends right before one."""
        room = max(-(-n // PAGE), 1) * PAGE
        memory = mmap.mmap(-1, room + 2 * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for side in (start, start + PAGE + room):
            assert self._libc.mprotect(side, PAGE, 0) == 0  # PROT_NONE
        self._regions.append(memory)
        return np.frombuffer(memory, np.uint8, n, PAGE + (room - n if at_end else 0))

    def floats(self, values, at_end: bool) -> np.ndarray:
        """A float32 copy of values, so placed."""
        values = np.asarray(values, np.float32)
        array = self.bytes(values.nbytes, at_end).view(np.float32).reshape(values.shape)
        array[:] = values
        return array

    def clear(self) -> None:
        self._regions.clear()
