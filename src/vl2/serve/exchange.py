"""Turn the outputs of a backend into an HTTP response: a complete answer, or a stream of server-sent events.

If the client disconnects, its answers are canceled.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vl2.infer.engine.request import Output
from vl2.infer.reply import Reply, Usage
from vl2.infer.sampling import GenerateOptions
from vl2.process.conversation import Turn
from vl2.process.processor import Processor
from vl2.process.sample import Sample
from vl2.process.tool_calls import ToolCallReader
from vl2.serve.answer_log import PendingAnswers
from vl2.serve.api_errors import to_api_error
from vl2.serve.backend import Answers
from vl2.serve.request_guard import ClientGone
from vl2.serve.service import Service

MIN_LOGPROB = -9999.0  # JSON has no infinity


@dataclass(kw_only=True)
class AnswerText:
    """Collects the outputs of one answer. Joined, the pieces that `add` returns are the text beside its calls."""

    sample: Sample
    processor: Processor
    strips: bool = True  # strip outer white space; False for the continuation of a raw prompt
    calls: ToolCallReader | None = None  # divides the answer into words and calls, if it may have calls
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)  # in OpenAI's format, for each token except eos
    finish_reason: str | None = None
    _pending_space: str = ""  # trailing white space, which is dropped unless more text follows

    def add(self, output: Output) -> str:
        """Add an output and return the new text that can be sent. Raise the output's error if it has one."""
        if output.error is not None:
            raise output.error
        if output.token_id is not None:
            self.token_ids.append(output.token_id)
            if output.logprobs is not None and output.token_id != self.processor.tokenizer.eos_id:
                self.logprobs.append(self._logprob(output))
        if output.finish_reason is not None:
            # OpenAI has no reason for an answer that was stopped because it repeats itself; "length" is the closest.
            self.finish_reason = "stop" if output.finish_reason == "stop" else "length"
        piece = output.piece if self.calls is None else self._words_of(self.calls, output.piece)
        if not self.strips:
            self.text += piece
            return piece
        pending = self._pending_space + piece
        certain = pending.rstrip()
        self._pending_space = pending[len(certain) :]
        if not self.text:
            certain = certain.lstrip()
            self._pending_space = self._pending_space if certain else ""
        self.text += certain
        return certain

    def _words_of(self, calls: ToolCallReader, piece: str) -> str:
        """Return the words in a piece of the answer, and set the finish reason of an answer with calls."""
        words = calls.push(piece)
        if self.finish_reason is None:
            return words
        words += calls.finish()
        if calls.is_in_call:
            self.finish_reason = "length"  # by whatever the call was cut off
        elif calls.calls and self.finish_reason == "stop":
            self.finish_reason = "tool_calls"
        return words

    def reply(self) -> Reply:
        """Return the answer as a `Reply`, the type of the Python API."""
        return Reply(
            text=self.text,
            token_ids=tuple(self.token_ids),
            finish_reason="length" if self.finish_reason == "length" else "stop",
            usage=Usage(
                prompt_tokens=len(self.sample),
                visual_tokens=int(self.sample.image_mask.sum()),
                completion_tokens=len(self.token_ids),
            ),
            image_sizes=self.sample.image_sizes,
            kind=self.processor.kind,
        )

    def box_fields(self) -> dict[str, Any]:
        """Return what an answer has beside its text, as JSON values.

        These are the boxes, in pixels and in units of 1/999 of the image, and for the DeepSeek-OCR family the Markdown
        and the blocks.
        """
        reply = self.reply()
        return {"boxes": reply.to_dict()["boxes"], **reply.page_fields()}

    def _logprob(self, output: Output) -> dict[str, Any]:
        assert output.logprobs is not None
        assert output.token_id is not None
        likeliest = [self._entry(i, p) for i, p in output.logprobs.likeliest.items()]
        return {**self._entry(output.token_id, output.logprobs.chosen), "top_logprobs": likeliest}

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        data = self.processor.tokenizer.token_bytes(token_id, skip_special=False)
        return {
            "token": data.decode("utf-8", "replace"),
            "logprob": max(logprob, MIN_LOGPROB),
            "bytes": list(data),
        }


Event = dict[str, Any]


class AnswerCollector:
    """Collects the answers of one HTTP request, and records their metrics and log fields at the end."""

    def __init__(self, service: Service, request: Request, answers: Answers, texts: Sequence[AnswerText]) -> None:
        self._service, self._request, self._answers = service, request, answers
        self.texts = list(texts)
        self._pending: PendingAnswers | None = None

    def log_answers(self, conversations: Sequence[Sequence[Turn]], options: GenerateOptions) -> None:
        """Write the answers into the server's log when they have ended, if there is one.

        Each answer belongs to one of `conversations`, which have the same pictures.
        """
        if self._service.answer_log is not None:
            path, model = self._request.url.path, self._request.state.log["model"]
            self._pending = self._service.answer_log.begin(path, model, conversations, options)

    async def pieces(self) -> AsyncIterator[tuple[int, str]]:
        """Yield (index of the answer, new text) until all answers have ended. The text of a token may be empty.

        Raise the error of an answer that fails. The generator is canceled if the client disconnects.
        """
        try:
            async for index, output in self._answers:
                yield index, self.texts[index].add(output)
        finally:
            self._answers.close()
            self._record()
            if self._pending is not None and self._service.answer_log is not None:
                self._service.answer_log.end(self._pending, self.texts)

    async def collect(self) -> None:
        async for _ in self.pieces():
            pass

    def usage(self, num_prompts: int = 1) -> dict[str, Any]:
        """Return the token counts so far in the format of chat completions. Each prompt is counted once."""
        prompts = self.texts[:: max(1, len(self.texts) // num_prompts)]
        prompt = sum(len(answer.sample) for answer in prompts)
        completion = sum(len(answer.token_ids) for answer in self.texts)
        timings = [self._answers.timing(index) for index in range(len(self.texts))]
        num_accepted = sum(timing.num_accepted for timing in timings)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {
                "cached_tokens": timings[0].num_reused if timings else 0,
                "visual_tokens": sum(int(answer.sample.image_mask.sum()) for answer in prompts),
            },
            "completion_tokens_details": {
                "accepted_prediction_tokens": num_accepted,
                "rejected_prediction_tokens": sum(timing.num_drafted for timing in timings) - num_accepted,
            },
        }

    def _record(self) -> None:
        metrics = self._service.metrics
        fields: dict[str, Any] = {}
        for index, text in enumerate(self.texts):
            timing = self._answers.timing(index)
            if timing.started_s is not None:
                metrics.queue_s.observe(timing.started_s)
                fields.setdefault("queue_s", round(timing.started_s, 3))
            if timing.first_token_s is not None:
                metrics.first_token_s.observe(timing.first_token_s)
                fields.setdefault("first_token_s", round(timing.first_token_s, 3))
            if timing.whole_s is not None and text.finish_reason is not None:
                metrics.whole_s.observe(timing.whole_s)
                if timing.first_token_s is not None and len(text.token_ids) > 1:
                    metrics.token_s.observe((timing.whole_s - timing.first_token_s) / (len(text.token_ids) - 1))
        if self.texts:
            fields |= {
                "prompt_tokens": len(self.texts[0].sample),
                "visual_tokens": int(self.texts[0].sample.image_mask.sum()),
                "completion_tokens": sum(len(text.token_ids) for text in self.texts),
                "finish": ",".join(text.finish_reason or "cancelled" for text in self.texts),
            }
        self._request.state.log = {**getattr(self._request.state, "log", {}), **fields}


class EventStream(Response):
    """A response of server-sent events.

    If an error occurs in the middle, it is sent as the last event, because the status has been sent already.
    """

    def __init__(
        self,
        events: AsyncIterator[Event | str],
        *,
        frame: Callable[[Event | str], str],
        frame_error: Callable[[Event], str],
        resources: contextlib.AsyncExitStack,
    ) -> None:
        super().__init__(
            media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )
        del self.headers["content-length"]
        self._events, self._frame, self._frame_error, self._resources = events, frame, frame_error, resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write(text: str) -> None:
            await send({"type": "http.response.body", "body": text.encode("utf-8", "replace"), "more_body": True})

        async with self._resources, contextlib.aclosing(self._events) as events:  # type: ignore[type-var]
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            try:
                async for event in events:
                    await write(self._frame(event))
            except ClientGone:
                raise
            except Exception as error:
                scope["state"]["error"] = error
                await write(self._frame_error(to_api_error(error).body()))
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def frame_data(event: Event | str) -> str:
    """Format an event of chat completions, which has data only."""
    return f"data: {event if isinstance(event, str) else to_json(event)}\n\n"


def frame_named(event: Event | str) -> str:
    """Format an event of the Responses API, which has its type as name."""
    assert isinstance(event, dict)
    return f"event: {event['type']}\ndata: {to_json(event)}\n\n"


def to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
