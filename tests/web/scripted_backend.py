"""A backend that says what it is told, token by token, and waits where it is told: for tests of what a client shows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from vl2.infer.engine.request import Output
from vl2.process.processor import Processor
from vl2.serve.backend import GenerationRequest, Timing


class ScriptedBackend:
    """Answers every request with `text`, or all but the first with `later`.

    With `pause_after`, that many tokens come, and the rest after `go_on`.
    """

    def __init__(self, processor: Processor) -> None:
        self.processor = processor
        self.max_context = 4096
        self.is_ready = True
        self.calls_tools = False
        self.needs_images = True  # so that tests see what was sent
        self.reset()

    def reset(self) -> None:
        self.text = "Nothing was told."
        self.later: str | None = None
        self.pause_after: int | None = None
        self.error: Exception | None = None
        self.requests: list[GenerationRequest] = []
        self.num_closed = 0
        self.may_go_on = False

    def go_on(self) -> None:
        self.may_go_on = True

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def open(self, requests: Sequence[GenerationRequest]) -> ScriptedAnswers:
        if self.error is not None:
            raise self.error
        text = self.later if self.requests and self.later is not None else self.text
        self.requests += requests
        return ScriptedAnswers(self, text)

    def numbers(self) -> dict[str, float]:
        return {}


class ScriptedAnswers:
    def __init__(self, backend: ScriptedBackend, text: str) -> None:
        self._backend = backend
        self._text = text
        self._is_closed = False

    async def __aiter__(self) -> AsyncIterator[tuple[int, Output]]:
        backend = self._backend
        tokenizer = backend.processor.tokenizer
        stream = tokenizer.stream()
        for count, token_id in enumerate(tokenizer.encode(self._text)):
            while count == backend.pause_after and not backend.may_go_on:
                if self._is_closed:
                    return
                await asyncio.sleep(0.005)
            yield 0, Output(token_id=token_id, piece=stream.push(token_id))
        yield 0, Output(token_id=tokenizer.eos_id, piece=stream.flush(), finish_reason="stop")

    def close(self) -> None:
        self._backend.num_closed += not self._is_closed
        self._is_closed = True

    def timing(self, index: int) -> Timing:
        return Timing(started_s=0.0, first_token_s=0.0)
