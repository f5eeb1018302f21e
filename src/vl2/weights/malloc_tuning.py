"""Malloc tuning: memory that a process frees is kept for what it allocates next.

A pass of a model allocates the same again and again. With glibc's defaults freed memory goes back to the system, and
comes back with a page fault for each 4 KiB: simple operations on a CPU take three times their time.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def tune_malloc() -> None:
    """Let the C library keep what is freed, in this process. C libraries other than glibc are left as they are."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
