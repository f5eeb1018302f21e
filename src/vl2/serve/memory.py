"""What large requests leave behind goes back to the system: the C library keeps freed memory, here by intention.

Passes of the model allocate the same again and again, so the process keeps what they free (`vl2.malloc`). A body
of 60 MB, once, is not of that kind.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from collections.abc import Callable

from vl2.malloc import return_freed_memory

CHECK_S = 2.0
GROWTH_BYTES = 96 << 20  # since the last time
BUSY_S = 60.0  # so often at most while requests are under way, for what the model needs comes back page by page


async def keep_small(is_busy: Callable[[], bool]) -> None:
    """Return freed memory now and then, for ever."""
    floor, last = _resident_bytes(), float("-inf")
    while floor:
        await asyncio.sleep(CHECK_S)
        now, was_busy = time.monotonic(), is_busy()
        if _resident_bytes() - floor > GROWTH_BYTES and (not was_busy or now - last > BUSY_S):
            await asyncio.to_thread(_return_memory)
            last = now
            # What requests hold while they are under way is not what stays.
            floor = floor if was_busy or is_busy() else _resident_bytes()


def _return_memory() -> None:
    gc.collect()  # requests leave circles of frames and tasks, which hold their bodies until somebody looks
    return_freed_memory()


def _resident_bytes() -> int:
    """Return the resident memory of this process, 0 where the system does not tell."""
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
