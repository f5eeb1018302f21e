"""How long the threads of PyTorch's OpenMP runtime spin while they wait for each other.

GNU's runtime lets a waiting thread spin 300,000 times, some milliseconds, before it sleeps. Where other programs hold
the cores, the thread that is waited for does not run meanwhile, and all of that time is lost: reading one page took six
times the CPU time of one thread. A short spin covers most gaps between two products; then the thread sleeps.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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
