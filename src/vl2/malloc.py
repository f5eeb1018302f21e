"""What the C library does with memory that a process frees: keeps it for the next pass, or gives it back.

Both are for glibc. Other C libraries are left as they are.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def tune_malloc() -> None:
    """Let the C library keep what this process frees.

    A pass of a model allocates the same again and again. With glibc's defaults freed memory goes back to the system,
    and comes back with a page fault for each 4 KiB: simple operations on a CPU take three times their time.
    """
    if (mallopt := _function("mallopt")) is not None:
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes


def return_freed_memory() -> None:
    """Give back what is free now."""
    if (trim := _function("malloc_trim")) is not None:
        trim(0)


@functools.cache
def _function(name: str) -> Any:
    """Return a function of the C library, None where it has none of that name: musl, macOS, Windows."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
