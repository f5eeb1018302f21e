"""Return the memory of large requests to the system.

Forward passes allocate the same sizes again and again, so `vl2.process_tuning` makes the process keep freed memory.
The memory of one body of 60 MB should not be kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from collections.abc import Callable

from vl2.process_tuning import return_freed_memory

CHECK_S = 2.0
GROWTH_BYTES = 96 << 20  # since the last time
BUSY_S = 60.0  # at most this often while requests are under way: the model's memory comes back page by page


async def keep_small(is_busy: Callable[[], bool]) -> None:
    """Return freed memory whenever the process has grown. Runs until it is cancelled."""
    floor, last = _resident_bytes(), float("-inf")
    while floor:
        await asyncio.sleep(CHECK_S)
        now, was_busy = time.monotonic(), is_busy()
        if _resident_bytes() - floor > GROWTH_BYTES and (not was_busy or now - last > BUSY_S):
            await asyncio.to_thread(_return_memory)
            last = now
            # Memory that requests hold while they are under way is not counted.
            floor = floor if was_busy or is_busy() else _resident_bytes()


def _return_memory() -> None:
    gc.collect()  # requests leave reference cycles of frames and tasks, which hold their bodies
    return_freed_memory()


def _resident_bytes() -> int:
    """Return the resident memory of this process, 0 where the system does not tell."""
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
