"""Ask an endpoint through a ledger on disk: what was answered once is not asked again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from vl2.curate.jobs.client import ChatAnswer, ChatRequest, Client, RequestFailed
from vl2.errors import UserError
from vl2.resumable_log import SYNC_EVERY, ResumableLog


class Ledger(ResumableLog):
    """Values by key, in lines of {"key", "value"}."""

    def __init__(self, path: Path, sync_every: int = SYNC_EVERY) -> None:
        """Open or make the file. UserError if another process has it open or it is no ledger."""
        foreign = "is not a ledger of answers: line {number} cannot be read"
        super().__init__(path, _key_of, foreign=foreign, surrogates="replace", sync_every=sync_every)

    def get(self, key: str) -> Any:
        """Return the value of a key, None if there is none."""
        return self.line(key)["value"] if key in self else None

    def put(self, key: str, value: Any) -> None:
        """Append a value, plain JSON. A key has one value for ever. UserError if the disk is full."""
        assert key not in self, f"{key} is in the ledger already"
        try:
            self.append({"key": key, "value": value})
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from None

    def close(self) -> None:
        self.sync()
        super().close()


def _key_of(line: Any) -> str:
    key = line["key"]
    if "value" not in line or not isinstance(key, str):
        raise TypeError(line)
    return key


# So many failures without one answer between them are the endpoint's, not the records'.
MAX_FAILURES_IN_A_ROW = 20


class Asker:
    """`asked` counts the answers that the endpoint gave, `reused` those that the ledger held."""

    def __init__(self, client: Client, ledger: Ledger) -> None:
        self._client = client
        self._ledger = ledger
        self._running: dict[str, asyncio.Task[ChatAnswer]] = {}
        self._failures_in_a_row = 0
        self.asked = 0
        self.reused = 0

    async def ask(self, request: ChatRequest) -> ChatAnswer:
        """Return the answer, kept in the ledger before it is returned. Raises what `Client.ask` raises."""
        key = request.key(self._client.endpoint.model)
        if key in self._ledger:
            self.reused += 1
            return ChatAnswer.from_json(self._ledger.get(key))
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(self._ask_anew(key, request))
            task.add_done_callback(lambda _: self._running.pop(key))
        return await task

    async def _ask_anew(self, key: str, request: ChatRequest) -> ChatAnswer:
        try:
            answer = await self._client.ask(request)
        except RequestFailed as failure:
            self._failures_in_a_row += 1
            if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
                self._client.stop()
                url = self._client.endpoint.base_url
                raise UserError(
                    f"{url} failed {MAX_FAILURES_IN_A_ROW} requests in a row; run again to go on. The last: {failure}"
                ) from None
            raise
        except UserError:
            self._client.stop()  # the others would fail alike
            raise
        self._failures_in_a_row = 0
        self._ledger.put(key, answer.to_json())
        self.asked += 1
        return answer
