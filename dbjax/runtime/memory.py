"""Keeping the allocator from giving memory back to the system."""

from __future__ import annotations

import ctypes
import ctypes.util

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Lets this process reuse freed buffers of any size; returns whether it worked.

    By default glibc returns every large buffer to the system when it is freed, and the
    next one of the same size is paid for with page faults: writing 42 M fresh parameters
    took 46 ms that way, and 7 ms in memory used before (docs/design.md, "Memory").
    The process then keeps its peak of memory to the end. Call it once, before the first
    array; commands do, the library does not. Without glibc it does nothing.
    """
    name = ctypes.util.find_library("c")
    try:
        mallopt = ctypes.CDLL(name).mallopt
    except (OSError, AttributeError):
        return False
    wanted = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_ARENA_MAX: 1}
    done = [mallopt(option, value) for option, value in wanted.items()]
    return all(done)
