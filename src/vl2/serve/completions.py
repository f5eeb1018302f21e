"""The endpoint `/v1/completions`, which continues raw prompts."""

from __future__ import annotations

import contextlib
import itertools
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vl2.process.conversation import ImageRef, Turn
from vl2.serve.api_errors import ERRORS_OR_STREAM
from vl2.serve.exchange import AnswerCollector, AnswerText, Event, EventStream, frame_data
from vl2.serve.ignored import IgnoredFieldsRoute, record_ignored_fields
from vl2.serve.schema.completion import CompletionRequest
from vl2.serve.service import Service

router = APIRouter(route_class=IgnoredFieldsRoute, tags=["completions"])


@router.post("/v1/completions", responses=ERRORS_OR_STREAM)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continue raw prompts (texts or token ids) without the chat template.

    Each `<image>` in a prompt stands for the next of `images`.
    """
    service: Service = request.app.state.service
    record_ignored_fields(body, request)
    adapter = service.adapter_of(body.model)
    request.state.log = {"model": body.model}
    prompts = body.prompts()
    num_choices = body.n or 1
    service.check_choices(num_choices * len(prompts))
    made = [
        body.options(max_tokens=service.max_tokens(body.max_tokens), stop=body.stop, choice=i)
        for i in range(num_choices)
    ]
    client: str = request.state.client
    async with contextlib.AsyncExitStack() as resources:
        admission = await resources.enter_async_context(service.admission(client))
        prepared = await service.prepare_prompts(prompts, body.images or (), admission)
        answers = await service.open(
            [prompt for prompt in prepared for _ in made],
            made * len(prepared),
            adapter=adapter,
            num_logprobs=body.logprobs,
            client=client,
        )
        resources.callback(answers.close)
        processor = service.backend.processor
        texts = [
            AnswerText(sample=prompt.sample, processor=processor, strips=False) for prompt in prepared for _ in made
        ]
        collector = AnswerCollector(service, request, answers, texts)
        decode = processor.tokenizer.decode
        asked = [prompt if isinstance(prompt, str) else decode(prompt, skip_special=False) for prompt in prompts]
        pictures = [ImageRef(source=source) for source in body.images or ()]
        collector.log_answers(
            [[Turn(role="document", pieces=(*pictures, text))] for text in asked for _ in made], made[0]
        )
        head: Event = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model,
        }
        has_logprobs = body.logprobs is not None
        if body.stream:
            has_usage = bool(body.stream_options and body.stream_options.include_usage)
            events = _chunks(collector, head, len(prompts), has_usage=has_usage, has_logprobs=has_logprobs)
            return EventStream(events, frame=frame_data, frame_error=frame_data, resources=resources.pop_all())
        await collector.collect()
        choices = [
            {
                "index": index,
                "text": text.text,
                "logprobs": _logprobs(text.logprobs) if has_logprobs else None,
                "finish_reason": text.finish_reason,
                **text.box_fields(),
            }
            for index, text in enumerate(texts)
        ]
        usage = collector.usage(len(prompts))
        return JSONResponse({**head, "choices": choices, "usage": usage})
    raise AssertionError("not reached")


async def _chunks(
    collector: AnswerCollector, head: Event, num_prompts: int, *, has_usage: bool, has_logprobs: bool
) -> AsyncIterator[Event | str]:
    frame = {**head, "usage": None} if has_usage else head
    num_sent = [0] * len(collector.texts)
    async with contextlib.aclosing(collector.pieces()) as pieces:  # type: ignore[type-var]
        async for index, piece in pieces:
            text = collector.texts[index]
            if not piece and text.finish_reason is None:
                continue
            shown = _logprobs(text.logprobs, start=num_sent[index]) if has_logprobs else None
            num_sent[index] = len(text.logprobs)
            choice = {"index": index, "text": piece, "logprobs": shown, "finish_reason": text.finish_reason}
            if text.finish_reason is not None:
                choice |= text.box_fields()
            yield {**frame, "choices": [choice]}
    if has_usage:
        yield {**frame, "choices": [], "usage": collector.usage(num_prompts)}
    yield "[DONE]"


def _logprobs(entries: list[dict[str, Any]], start: int = 0) -> dict[str, Any]:
    """Convert the entries from `start` on to the format of completions, which has parallel lists."""
    offsets = list(itertools.accumulate((len(entry["token"]) for entry in entries), initial=0))[start:-1]
    entries = entries[start:]
    return {
        "tokens": [entry["token"] for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": [{top["token"]: top["logprob"] for top in entry["top_logprobs"]} for entry in entries],
        "text_offset": offsets,
    }
