"""Admission of requests: a semaphore that is fair between clients, and the drain state of a stopping server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from vl2.infer.engine.engine import EngineFull
from vl2.infer.engine.request import FairQueue


@dataclass(frozen=True, eq=False)
class _Waiter:
    weight: int  # permits that it waits for
    granted: asyncio.Future[None]  # done when it has the permits


class FairSemaphore:
    """A semaphore with weighted permits that is fair between clients (`FairQueue`).

    Only the first waiter in the queue can get permits, so small requests do not starve a large one. Use it in the event
    loop only.
    """

    def __init__(self, num_permits: int, max_waiting: int | None = None) -> None:
        self._num_permits = self._num_free = num_permits
        self._max_waiting = max_waiting
        self._waiting: FairQueue[_Waiter] = FairQueue()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_taken(self) -> int:
        return self._num_permits - self._num_free

    @contextlib.asynccontextmanager
    async def hold(self, client: str, weight: int = 1) -> AsyncIterator[None]:
        """Hold `weight` permits, after waiting for them. Raise EngineFull if too many requests wait already."""
        weight = min(weight, self._num_permits)  # otherwise a request for more permits would wait forever
        await self._acquire(client, weight)
        try:
            yield
        finally:
            self._num_free += weight
            self._grant_next()

    async def _acquire(self, client: str, weight: int) -> None:
        if weight == 0 or (not len(self._waiting) and weight <= self._num_free):
            self._num_free -= weight
            return
        if self._max_waiting is not None and len(self._waiting) >= self._max_waiting:
            raise EngineFull(f"{len(self._waiting)} requests wait already: try again later")
        waiter = _Waiter(weight, asyncio.get_running_loop().create_future())
        self._waiting.add(client, waiter)
        try:
            await waiter.granted
        except asyncio.CancelledError:
            if not self._waiting.remove(client, waiter) and waiter.granted.done() and not waiter.granted.cancelled():
                self._num_free += weight  # the permits were granted just before the cancellation
            self._grant_next()  # the next waiter may need fewer permits than this one
            raise

    def _grant_next(self) -> None:
        while (waiter := self._waiting.peek()) is not None:
            if not waiter.granted.done():  # it is done if the waiter was just canceled
                if waiter.weight > self._num_free:
                    return
                self._num_free -= waiter.weight
                waiter.granted.set_result(None)
            self._waiting.pop()


class DrainState:
    """The number of active requests, and whether new ones are refused. Use it in the event loop only."""

    def __init__(self) -> None:
        self.num_active = 0
        self.is_draining = False
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    def enter(self) -> None:
        self.num_active += 1
        self._is_empty.clear()

    def leave(self) -> None:
        self.num_active -= 1
        if self.num_active == 0:
            self._is_empty.set()

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and wait until all active ones have ended. Return False if they have not in time."""
        self.is_draining = True
        try:
            await asyncio.wait_for(self._is_empty.wait(), timeout_s)
        except (TimeoutError, asyncio.TimeoutError):
            return False
        return True
