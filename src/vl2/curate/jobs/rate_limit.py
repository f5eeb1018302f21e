"""A limit on what is spent in any 60 seconds, requests and tokens. Waiting is first come, first served."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

from vl2.errors import UserError

WINDOW_S = 60.0

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]


class Spending:
    """An amount spent at a time; it can be put right once it is known."""

    def __init__(self, time_s: float, amount: float) -> None:
        self.time_s = time_s
        self.amount = amount


class Window:
    """What was spent in the last 60 seconds of one kind; None is no limit."""

    def __init__(self, limit: float | None) -> None:
        if limit is not None and limit <= 0:
            raise UserError(f"a limit per minute must be above 0, got {limit}")
        self._limit = limit
        self._spent: deque[Spending] = deque()

    def wait_s(self, now: float, amount: float) -> float:
        """Return the seconds until the amount may be spent, 0 for now. One larger than the limit goes alone."""
        while self._spent and self._spent[0].time_s <= now - WINDOW_S:
            self._spent.popleft()
        if self._limit is None:
            return 0.0
        over = sum(spending.amount for spending in self._spent) + amount - self._limit
        wait_s = 0.0
        for spending in self._spent:
            if over <= 0:
                break
            over -= spending.amount
            wait_s = spending.time_s + WINDOW_S - now
        return wait_s

    def spend(self, now: float, amount: float) -> Spending:
        spending = Spending(now, amount)
        if self._limit is not None:
            self._spent.append(spending)
        return spending


class RateLimit:
    """Sliding windows over requests and tokens, taken together: both are counted when the request goes out."""

    def __init__(
        self,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._requests = Window(requests_per_minute)
        self._tokens = Window(tokens_per_minute)
        self._clock = clock
        self._sleep = sleep
        self._turn = asyncio.Lock()

    async def take(self, tokens: float) -> Spending:
        """Wait until one request of so many tokens may go out; return the tokens, to be put right later."""
        async with self._turn:  # held while waiting, so that nobody overtakes
            while (wait_s := self._wait_s(tokens)) > 0:
                await self._sleep(wait_s)
            self._requests.spend(self._clock(), 1)
            return self._tokens.spend(self._clock(), tokens)

    def _wait_s(self, tokens: float) -> float:
        now = self._clock()
        return max(self._requests.wait_s(now, 1), self._tokens.wait_s(now, tokens))
