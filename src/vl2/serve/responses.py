"""The endpoint `/v1/responses`. It is stateless: each request must contain the whole conversation."""

from __future__ import annotations

import contextlib
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Iterator

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vl2.serve.api_errors import ERRORS_OR_STREAM
from vl2.serve.exchange import AnswerCollector, Event, EventStream, frame_named
from vl2.serve.ignored import IgnoredFieldsRoute, record_ignored_fields
from vl2.serve.responses_output import OutputItems
from vl2.serve.schema.base import constraint_of
from vl2.serve.schema.responses import ResponsesRequest
from vl2.serve.schema.tools import choice_of
from vl2.serve.service import Service
from vl2.serve.tools import prepare_form

router = APIRouter(route_class=IgnoredFieldsRoute, tags=["responses"])


@router.post("/v1/responses", responses=ERRORS_OR_STREAM)
async def create_response(body: ResponsesRequest, request: Request) -> Response:
    """Answer a conversation in the format of OpenAI's Responses API.

    The output text has `boxes` in addition, and with a model of the DeepSeek-OCR family `markdown` and `blocks`.
    """
    service: Service = request.app.state.service
    record_ignored_fields(body, request)
    adapter = service.adapter_of(body.model)
    request.state.log = {"model": body.model}
    form = body.text.format if body.text else None
    use = body.tool_use()
    constraint = constraint_of(form, well_formed_boxes=bool(body.well_formed_boxes))
    max_tokens = service.max_tokens(body.max_output_tokens)
    client: str = request.state.client
    async with contextlib.AsyncExitStack() as resources:
        admission = await resources.enter_async_context(service.admission(client))
        turns = body.turns()
        answer_form = await prepare_form(service, request, admission, turns, use, constraint)
        options = body.options(max_tokens=max_tokens, constraint=answer_form.constraint)
        turns = answer_form.describe_in(turns)
        prompt = await service.prepare_chat(turns, admission)
        answers = await service.open([prompt], [options], adapter=adapter, num_logprobs=None, client=client)
        resources.callback(answers.close)
        text = answer_form.answer_text(prompt.sample, service.backend.processor)
        collector = AnswerCollector(service, request, answers, [text])
        collector.log_answers([turns], options)
        head = _head(body, options.max_new_tokens)
        if body.stream:
            numbers = itertools.count()
            return EventStream(
                _events(collector, head, numbers),
                frame=frame_named,
                frame_error=lambda error: frame_named(
                    {**error["error"], "type": "error", "sequence_number": next(numbers)}
                ),
                resources=resources.pop_all(),
            )
        await collector.collect()
        output = OutputItems(text)
        output.finish()
        return JSONResponse(_whole(collector, head, output.items))
    raise AssertionError("not reached")


def _head(body: ResponsesRequest, max_tokens: int) -> Event:
    form = body.text.format if body.text else None
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": max_tokens,
        "metadata": body.metadata or {},
        "model": body.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": body.temperature or 0.0,
        "text": {"format": form.model_dump(by_alias=True) if form else {"type": "text"}},
        "tool_choice": choice_of(body.tool_choice),
        "tools": [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
                "strict": True,
            }
            for given in body.tools or ()
            if (tool := given.tool()) is not None
        ],
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }


def _whole(collector: AnswerCollector, head: Event, items: list[Event]) -> Event:
    (text,) = collector.texts
    is_complete = text.finish_reason != "length"
    usage = collector.usage()
    return {
        **head,
        "status": "completed" if is_complete else "incomplete",
        "incomplete_details": None if is_complete else {"reason": "max_output_tokens"},
        "output": items,
        "usage": {
            "input_tokens": usage["prompt_tokens"],
            # OpenAI's client requires cache_write_tokens.
            "input_tokens_details": {"cache_write_tokens": 0, **usage["prompt_tokens_details"]},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        },
    }


async def _events(collector: AnswerCollector, head: Event, numbers: Iterator[int]) -> AsyncIterator[Event | str]:
    def event(kind: str, fields: Event) -> Event:
        return {"type": f"response.{kind}", "sequence_number": next(numbers), **fields}

    (text,) = collector.texts
    output = OutputItems(text)
    yield event("created", {"response": head})
    yield event("in_progress", {"response": head})
    async with contextlib.aclosing(collector.pieces()) as pieces:  # type: ignore[type-var]
        async for _, piece in pieces:
            for kind, fields in output.add(piece):
                yield event(kind, fields)
    for kind, fields in output.finish():
        yield event(kind, fields)
    whole = _whole(collector, head, output.items)
    yield event(whole["status"], {"response": whole})
