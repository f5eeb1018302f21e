"""Whether requests are taken, and how many are under way: what a graceful stop waits for."""

from __future__ import annotations

import asyncio


class Gate:
    """Open from the start; draining, it lets nobody in and says when the last has left. Used in the event loop only."""

    def __init__(self) -> None:
        self.num_inside = 0
        self.is_draining = False
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    def enter(self) -> None:
        self.num_inside += 1
        self._is_empty.clear()

    def leave(self) -> None:
        self.num_inside -= 1
        if self.num_inside == 0:
            self._is_empty.set()

    async def drain(self, timeout_s: float) -> bool:
        """Let nobody in and wait until all have left; False if some are still inside when the time is over."""
        self.is_draining = True
        try:
            await asyncio.wait_for(self._is_empty.wait(), timeout_s)
        except (TimeoutError, asyncio.TimeoutError):
            return False
        return True
