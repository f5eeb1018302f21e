"""How many requests may have their pictures in memory at once; the others wait, the clients in turn."""

from __future__ import annotations

import asyncio

from vl2.infer.engine.engine import EngineFull
from vl2.infer.engine.fair_queue import FairQueue


class FairSlots:
    """A semaphore that is fair between clients. Used in the event loop only."""

    def __init__(self, num_slots: int, max_waiting: int) -> None:
        self._num_free = num_slots
        self._max_waiting = max_waiting
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    async def acquire(self, client: str) -> None:
        """Wait for a slot. EngineFull if too many wait already."""
        if self._num_free > 0:
            self._num_free -= 1
            return
        if len(self._waiting) >= self._max_waiting:
            raise EngineFull(f"{len(self._waiting)} requests wait already: try again later")
        turn = asyncio.get_running_loop().create_future()
        self._waiting.add(client, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not self._waiting.remove(client, turn) and turn.done() and not turn.cancelled():
                self.release()  # the slot came with the cancellation
            raise

    def release(self) -> None:
        """Hand the slot to who is next."""
        while len(self._waiting):
            turn = self._waiting.pop()
            if not turn.done():
                turn.set_result(None)
                return
        self._num_free += 1
