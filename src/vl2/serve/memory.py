"""Return the memory of large requests to the system.

`vl2.process_tuning` makes the process keep freed memory, because each forward pass allocates the same sizes again. But
the memory of a request body of 60 MB should not be kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from collections.abc import Callable

from vl2.process_tuning import return_freed_memory

CHECK_S = 2.0  # seconds between checks
GROWTH_BYTES = 96 << 20  # growth of the process after which memory is returned
BUSY_S = 60.0  # minimum interval while requests are active, because the next pass then has page faults


async def trim_memory(is_busy: Callable[[], bool]) -> None:
    """Return freed memory to the system whenever the process has grown. Run until canceled."""
    floor, last = _resident_bytes(), float("-inf")
    while floor:
        await asyncio.sleep(CHECK_S)
        now, was_busy = time.monotonic(), is_busy()
        if _resident_bytes() - floor > GROWTH_BYTES and (not was_busy or now - last > BUSY_S):
            await asyncio.to_thread(_return_memory)
            last = now
            # The floor must not include memory that active requests hold.
            floor = floor if was_busy or is_busy() else _resident_bytes()


def _return_memory() -> None:
    gc.collect()  # requests leave reference cycles of frames and tasks, which keep their bodies alive
    return_freed_memory()


def _resident_bytes() -> int:
    """Return the resident memory of this process, or 0 if the system does not report it."""
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
