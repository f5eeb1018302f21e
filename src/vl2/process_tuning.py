"""Process-wide settings for speed: whether malloc keeps freed memory, and how long OpenMP threads spin.

`tune_malloc` and `return_freed_memory` work with glibc only. With another C library they do nothing.

In GNU's OpenMP runtime a waiting thread spins 300,000 times (some milliseconds) before it sleeps. If other programs
occupy the cores, the spinning threads take CPU time from the thread they wait for: reading one page took six times the
CPU time of one thread. A short spin covers most gaps between two matrix products, and then the thread sleeps.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # parameter numbers in malloc.h


def tune_malloc() -> None:
    """Let malloc keep the memory that this process frees, for the next allocation.

    Each forward pass allocates the same sizes again. With glibc's defaults the freed memory goes back to the system
    and returns with a page fault for each 4 KiB, which makes elementwise operations on a CPU three times slower.
    """
    if (mallopt := _function("mallopt")) is not None:
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest value that glibc accepts


def return_freed_memory() -> None:
    """Return the memory that malloc holds free to the system."""
    if (trim := _function("malloc_trim")) is not None:
        trim(0)


@functools.cache
def _function(name: str) -> Any:
    """Return a function of the C library, or None if it does not have it (musl, macOS, Windows)."""
    import ctypes  # imported here because it is slow, and `import vl2` loads this module: Ctrl-C must work early

    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None


VARIABLE = "GOMP_SPINCOUNT"
SPINS = 2000
USER_SETTINGS = (VARIABLE, "OMP_WAIT_POLICY")  # if the environment has one of these, the user has chosen


@contextmanager
def brief_spins() -> Iterator[None]:
    """Make waiting OpenMP threads spin only briefly, if PyTorch is first imported inside this context.

    The runtime reads the variable once, when PyTorch is loaded, so the context does nothing after that. It does
    nothing either if the user has set the waiting policy in the environment.
    """
    if "torch" in sys.modules or any(name in os.environ for name in USER_SETTINGS):
        yield
        return
    os.environ[VARIABLE] = str(SPINS)
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
