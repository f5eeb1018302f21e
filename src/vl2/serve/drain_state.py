"""Whether requests are taken, and how many are under way: what a graceful stop waits for."""

from __future__ import annotations

import asyncio


class DrainState:
    """Counts the requests under way; `drain` refuses new ones and waits for the last. Used in the event loop only."""

    def __init__(self) -> None:
        self.num_under_way = 0
        self.is_draining = False
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    def enter(self) -> None:
        self.num_under_way += 1
        self._is_empty.clear()

    def leave(self) -> None:
        self.num_under_way -= 1
        if self.num_under_way == 0:
            self._is_empty.set()

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and wait until all have ended; False if some are still under way after the time."""
        self.is_draining = True
        try:
            await asyncio.wait_for(self._is_empty.wait(), timeout_s)
        except (TimeoutError, asyncio.TimeoutError):
            return False
        return True
