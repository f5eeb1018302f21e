"""Memory that large requests leave free goes back to the system, also if the first look came too early."""

from __future__ import annotations

import asyncio

import pytest

from vl2.serve import memory


def test_memory_is_returned_after_the_work_although_it_was_tried_while_it_went_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resident, is_busy, returned = 100 << 20, False, list[bool]()

    def give_back() -> None:
        nonlocal resident
        returned.append(is_busy)
        resident = resident if is_busy else 120 << 20

    monkeypatch.setattr(memory, "CHECK_S", 0.01)
    monkeypatch.setattr(memory, "_resident_bytes", lambda: resident)
    monkeypatch.setattr(memory, "_return_memory", give_back)

    async def main() -> None:
        nonlocal resident, is_busy
        task = asyncio.create_task(memory.trim_memory(lambda: is_busy))
        await asyncio.sleep(0.1)
        assert returned == []
        resident, is_busy = 900 << 20, True
        await asyncio.sleep(0.3)
        assert returned == [True]  # once, not at every look
        is_busy = False
        await asyncio.sleep(0.3)
        assert returned == [True, False]
        task.cancel()

    asyncio.run(main())
