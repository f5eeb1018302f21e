"""Limits on requests: a semaphore that is fair between clients, and the state of a server that drains."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from vl2.infer.engine.engine import EngineFull
from vl2.infer.engine.request import FairQueue


@dataclass(frozen=True, eq=False)
class _Turn:
    weight: int
    has_come: asyncio.Future[None]


class FairSemaphore:
    """A semaphore that is fair between clients, and from which one may take several permits at once.

    Nobody overtakes the next in line, so that large requests are served too. Used in the event loop only.
    """

    def __init__(self, num_permits: int, max_waiting: int | None = None) -> None:
        self._num_permits = self._num_free = num_permits
        self._max_waiting = max_waiting
        self._waiting: FairQueue[_Turn] = FairQueue()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_taken(self) -> int:
        return self._num_permits - self._num_free

    @contextlib.asynccontextmanager
    async def hold(self, client: str, weight: int = 1) -> AsyncIterator[None]:
        """Wait for so many permits and hold them. EngineFull if too many wait already."""
        weight = min(weight, self._num_permits)  # a request that wants more than there is gets all
        await self._acquire(client, weight)
        try:
            yield
        finally:
            self._num_free += weight
            self._hand_out()

    async def _acquire(self, client: str, weight: int) -> None:
        if weight == 0 or (not len(self._waiting) and weight <= self._num_free):
            self._num_free -= weight
            return
        if self._max_waiting is not None and len(self._waiting) >= self._max_waiting:
            raise EngineFull(f"{len(self._waiting)} requests wait already: try again later")
        turn = _Turn(weight, asyncio.get_running_loop().create_future())
        self._waiting.add(client, turn)
        try:
            await turn.has_come
        except asyncio.CancelledError:
            if not self._waiting.remove(client, turn) and turn.has_come.done() and not turn.has_come.cancelled():
                self._num_free += weight  # the permits came at the same moment as the cancellation
            self._hand_out()  # to those that waited behind it
            raise

    def _hand_out(self) -> None:
        while (turn := self._waiting.peek()) is not None:
            if not turn.has_come.done():  # otherwise its client has just gone
                if turn.weight > self._num_free:
                    return
                self._num_free -= turn.weight
                turn.has_come.set_result(None)
            self._waiting.pop()


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
