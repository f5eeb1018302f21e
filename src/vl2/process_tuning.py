"""Tune how this process uses the system: freed memory of the C library, and waiting threads of OpenMP.

The C library keeps what the process frees for the next pass, or gives it back. Both are for glibc; other C libraries
are left as they are.

GNU's OpenMP runtime lets a waiting thread spin 300,000 times, some milliseconds, before it sleeps. Where other programs
hold the cores, the thread that is waited for does not run meanwhile, and all of that time is lost: reading one page
took six times the CPU time of one thread. A short spin covers most gaps between two products; then the thread sleeps.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
    import ctypes  # slow, and the package itself imports this file: a Ctrl-C at the start should meet little

    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None


VARIABLE = "GOMP_SPINCOUNT"
SPINS = 2000
SAID_BY_USER = (VARIABLE, "OMP_WAIT_POLICY")


@contextmanager
def brief_spins() -> Iterator[None]:
    """Let what is imported inside have short spins. What the environment says already stays.

    The runtime reads its variables once, when PyTorch is loaded: after that, nothing is changed.
    """
    if "torch" in sys.modules or any(name in os.environ for name in SAID_BY_USER):
        yield
        return
    os.environ[VARIABLE] = str(SPINS)
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
