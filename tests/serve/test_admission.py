"""What is scarce is shared: clients take turns, who wants much gets it too, and who goes gives it back."""

from __future__ import annotations

import asyncio

import pytest

from vl2.infer.engine.engine import EngineFull
from vl2.serve.admission import FairSemaphore


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


class Holder:
    """Somebody who holds slots until told."""

    def __init__(self, semaphore: FairSemaphore, client: str, weight: int, order: list[str]) -> None:
        self.release = asyncio.Event()
        self._order = order
        self.task = asyncio.create_task(self._hold(semaphore, client, weight))

    async def _hold(self, semaphore: FairSemaphore, client: str, weight: int) -> None:
        async with semaphore.hold(client, weight):
            self._order.append(client)
            await self.release.wait()


def test_clients_take_turns_and_nobody_overtakes_who_wants_much() -> None:
    async def main() -> None:
        semaphore, order = FairSemaphore(10), list[str]()
        first = Holder(semaphore, "a", 8, order)
        await settle()
        others = [
            Holder(semaphore, client, weight, order) for client, weight in (("a", 5), ("a", 5), ("b", 9), ("c", 1))
        ]
        await settle()
        assert order == ["a"]  # "c" would fit beside, but others came before
        assert semaphore.num_waiting == 4
        first.release.set()
        await settle()
        assert order == ["a", "a"]
        others[0].release.set()
        await settle()
        assert order == ["a", "a", "b", "c"]
        for other in others:
            other.release.set()
        await asyncio.gather(*(other.task for other in others))
        assert order == ["a", "a", "b", "c", "a"]
        assert (semaphore.num_waiting, semaphore.num_taken) == (0, 0)

    asyncio.run(main())


def test_who_goes_while_waiting_lets_those_behind_through() -> None:
    async def main() -> None:
        semaphore, order = FairSemaphore(10), list[str]()
        first = Holder(semaphore, "a", 6, order)
        await settle()
        large, small = Holder(semaphore, "b", 10, order), Holder(semaphore, "c", 4, order)
        await settle()
        assert order == ["a"]
        large.task.cancel()
        await settle()
        assert order == ["a", "c"]
        # What comes in the moment in which its client goes is not lost.
        late = Holder(semaphore, "d", 8, order)
        await settle()
        first.release.set()
        small.release.set()
        await asyncio.gather(first.task, small.task)
        late.task.cancel()
        await settle()
        assert (semaphore.num_waiting, semaphore.num_taken) == (0, 0)

    asyncio.run(main())


def test_many_who_go_in_one_moment_give_back_all() -> None:
    async def main() -> None:
        semaphore, order = FairSemaphore(10), list[str]()
        holders = [Holder(semaphore, "a", weight, order) for weight in (4, 6, 8, 3, 7, 10, 1)]
        await settle()
        for holder in holders:
            holder.task.cancel()
        await asyncio.gather(*(holder.task for holder in holders), return_exceptions=True)
        assert (semaphore.num_waiting, semaphore.num_taken) == (0, 0)

    asyncio.run(main())


def test_more_than_there_is_means_all_and_nothing_needs_no_turn() -> None:
    async def main() -> None:
        semaphore, order = FairSemaphore(10), list[str]()
        everything = Holder(semaphore, "a", 1000, order)
        await settle()
        assert semaphore.num_taken == 10
        waiting = Holder(semaphore, "b", 1, order)
        await settle()
        async with semaphore.hold("c", 0):
            assert order == ["a"]
        everything.release.set()
        waiting.release.set()
        await asyncio.gather(everything.task, waiting.task)
        assert semaphore.num_taken == 0

    asyncio.run(main())


def test_too_many_are_not_kept_waiting() -> None:
    async def main() -> None:
        semaphore, order = FairSemaphore(1, max_waiting=1), list[str]()
        holders = [Holder(semaphore, "a", 1, order) for _ in range(2)]
        await settle()
        with pytest.raises(EngineFull, match="1 requests wait already"):
            async with semaphore.hold("b"):
                pass
        for holder in holders:
            holder.release.set()
        await asyncio.gather(*(holder.task for holder in holders))

    asyncio.run(main())
