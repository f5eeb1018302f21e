"""The endpoint `/v1/chat/completions`."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vl2.serve.api_errors import ERRORS_OR_STREAM
from vl2.serve.exchange import AnswerCollector, AnswerText, Event, EventStream, frame_data
from vl2.serve.ignored import IgnoredFieldsRoute, record_ignored_fields
from vl2.serve.schema.answers import ChatCompletion
from vl2.serve.schema.base import constraint_of
from vl2.serve.schema.chat import ChatRequest
from vl2.serve.service import Service
from vl2.serve.tools import new_call_id, prepare_form

router = APIRouter(route_class=IgnoredFieldsRoute, tags=["chat"])


@router.post(
    "/v1/chat/completions", responses={**ERRORS_OR_STREAM, 200: {**ERRORS_OR_STREAM[200], "model": ChatCompletion}}
)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation with images.

    In addition to OpenAI's fields, the message has `boxes`, and with a model of the DeepSeek-OCR family `markdown` and
    `blocks`. In a stream they are in the delta of the chunk with the finish reason.
    """
    service: Service = request.app.state.service
    record_ignored_fields(body, request)
    adapter = service.adapter_of(body.model)
    request.state.log = {"model": body.model}
    num_choices = body.n or 1
    service.check_choices(num_choices)
    use = body.tool_use()
    constraint = constraint_of(body.response_format, well_formed_boxes=bool(body.well_formed_boxes))
    max_tokens = service.max_tokens(body.max_completion_tokens, body.max_tokens)
    client: str = request.state.client
    async with contextlib.AsyncExitStack() as resources:
        admission = await resources.enter_async_context(service.admission(client))
        turns = body.turns()
        form = await prepare_form(service, request, admission, turns, use, constraint)
        options = [
            body.options(
                max_tokens=max_tokens,
                stop=body.stop,
                constraint=form.constraint,
                choice=i,
                prediction="" if body.prediction is None else body.prediction.text,
            )
            for i in range(num_choices)
        ]
        turns = form.describe_in(turns)
        prompt = await service.prepare_chat(turns, admission)
        answers = await service.open(
            [prompt] * num_choices,
            options,
            adapter=adapter,
            num_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            client=client,
        )
        resources.callback(answers.close)
        texts = [form.answer_text(prompt.sample, service.backend.processor) for _ in range(num_choices)]
        collector = AnswerCollector(service, request, answers, texts)
        collector.log_answers([turns] * num_choices, options[0])
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}
        if body.stream:
            has_usage = bool(body.stream_options and body.stream_options.include_usage)
            events = _chunks(collector, head, has_usage=has_usage, has_logprobs=bool(body.logprobs))
            return EventStream(events, frame=frame_data, frame_error=frame_data, resources=resources.pop_all())
        await collector.collect()
        return JSONResponse(_completion(collector, head, has_logprobs=bool(body.logprobs)))
    raise AssertionError("not reached")


def _completion(collector: AnswerCollector, head: Event, *, has_logprobs: bool) -> Event:
    choices = [
        {
            "index": index,
            "message": _message(text),
            "logprobs": {"content": text.logprobs, "refusal": None} if has_logprobs else None,
            "finish_reason": text.finish_reason,
        }
        for index, text in enumerate(collector.texts)
    ]
    usage = collector.usage()
    return {**head, "object": "chat.completion", "choices": choices, "usage": usage}


def _message(text: AnswerText) -> Event:
    calls = [
        {"id": new_call_id(), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in (text.calls.calls if text.calls else ())
    ]
    return {
        "role": "assistant",
        "content": None if calls and not text.text else text.text,
        "refusal": None,
        **({"tool_calls": calls} if calls else {}),
        **text.box_fields(),
    }


def _call_deltas(text: AnswerText) -> Iterator[Event]:
    """Yield the deltas of the calls that have grown: the first of a call has its name, the others its arguments."""
    for piece in text.calls.take() if text.calls else ():
        if piece.name is not None:
            function = {"name": piece.name, "arguments": ""}
            call = {"index": piece.index, "id": new_call_id(), "type": "function", "function": function}
            yield {"tool_calls": [call]}
        elif piece.arguments:
            yield {"tool_calls": [{"index": piece.index, "function": {"arguments": piece.arguments}}]}


async def _chunks(
    collector: AnswerCollector, head: Event, *, has_usage: bool, has_logprobs: bool
) -> AsyncIterator[Event | str]:
    frame = {**head, "object": "chat.completion.chunk"}
    if has_usage:
        frame["usage"] = None

    def chunk(index: int, delta: Event, logprobs: list[Any], finish_reason: str | None) -> Event:
        shown = {"content": logprobs, "refusal": None} if has_logprobs and logprobs else None
        choice = {"index": index, "delta": delta, "logprobs": shown, "finish_reason": finish_reason}
        return {**frame, "choices": [choice]}

    for index in range(len(collector.texts)):
        yield chunk(index, {"role": "assistant", "content": ""}, [], None)
    num_sent = [0] * len(collector.texts)
    async with contextlib.aclosing(collector.pieces()) as pieces:  # type: ignore[type-var]
        async for index, piece in pieces:
            text = collector.texts[index]
            logprobs = text.logprobs[num_sent[index] :]
            if piece or (has_logprobs and logprobs):
                num_sent[index] = len(text.logprobs)
                yield chunk(index, {"content": piece}, logprobs, None)
            for delta in _call_deltas(text):
                yield chunk(index, delta, [], None)
            if text.finish_reason is not None:
                yield chunk(index, text.box_fields(), [], text.finish_reason)
    if has_usage:
        usage = collector.usage()
        yield {**frame, "choices": [], "usage": usage}
    yield "[DONE]"
