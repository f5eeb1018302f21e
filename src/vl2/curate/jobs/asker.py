"""Ask through the ledger: what it holds is not asked again, and what is being asked is waited for."""

from __future__ import annotations

import asyncio

from vl2.curate.jobs.chat_request import ChatAnswer, ChatRequest
from vl2.curate.jobs.client import Client, RequestFailed
from vl2.curate.jobs.ledger import Ledger
from vl2.errors import UserError

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
