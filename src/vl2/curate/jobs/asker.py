"""Send requests to an endpoint and cache the answers in a ledger on disk, so that no request is sent twice."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from vl2.curate.jobs.client import ChatAnswer, ChatRequest, Client, RequestFailed
from vl2.errors import UserError
from vl2.resumable_log import SYNC_EVERY, ResumableLog


class Ledger(ResumableLog):
    """A persistent map from keys to JSON values, in lines of {"key", "value"}."""

    def __init__(self, path: Path, sync_every: int = SYNC_EVERY) -> None:
        """Open or create the file. Raise UserError if another process has it open or it is not a ledger."""
        foreign = "is not a ledger of answers: line {number} cannot be read"
        super().__init__(path, _key_of, foreign=foreign, surrogates="replace", sync_every=sync_every)

    def get(self, key: str) -> Any:
        """Return the value of a key, or None if the key is missing."""
        return self.line(key)["value"] if key in self else None

    def put(self, key: str, value: Any) -> None:
        """Append the JSON value of a new key. Raise UserError if it cannot be written.

        A key must not be in the ledger yet.
        """
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


# This many failures without an answer between them are caused by the endpoint, not by the records.
MAX_FAILURES_IN_A_ROW = 20


class Asker:
    """A client with a cache of answers. Concurrent equal requests are sent once.

    `asked` counts the answers from the endpoint, `reused` those from the ledger.
    """

    def __init__(self, client: Client, ledger: Ledger) -> None:
        self._client = client
        self._ledger = ledger
        self._running: dict[str, asyncio.Task[ChatAnswer]] = {}
        self._failures_in_a_row = 0
        self.asked = 0
        self.reused = 0

    async def ask(self, request: ChatRequest) -> ChatAnswer:
        """Return the answer to a request, from the ledger or else from the endpoint, and store it in the ledger.

        Raise what `Client.ask` raises. Raise UserError after MAX_FAILURES_IN_A_ROW failures.
        """
        key = request.key(self._client.endpoint.model)
        if key in self._ledger:
            self.reused += 1
            return ChatAnswer.from_json(self._ledger.get(key))
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(self._send(key, request))
            task.add_done_callback(lambda _: self._running.pop(key))
        return await task

    async def _send(self, key: str, request: ChatRequest) -> ChatAnswer:
        try:
            answer = await self._client.ask(request)
        except RequestFailed as failure:
            self._failures_in_a_row += 1
            if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
                self._client.stop()
                url = self._client.endpoint.base_url
                raise UserError(
                    f"{url} failed {MAX_FAILURES_IN_A_ROW} requests in a row; run again to resume. The last: {failure}"
                ) from None
            raise
        except UserError:
            self._client.stop()  # all other requests would fail in the same way
            raise
        self._failures_in_a_row = 0
        self._ledger.put(key, answer.to_json())
        self.asked += 1
        return answer
