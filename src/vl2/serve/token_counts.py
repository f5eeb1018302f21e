"""Endpoints that count tokens: `/tokenize` and `/detokenize` as in vLLM, and `/v1/images/tiles`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field, model_validator
from starlette.requests import Request

from vl2.errors import UserError
from vl2.process.conversation import Turn
from vl2.process.tile_report import TileReport
from vl2.serve.api_errors import ERRORS, ApiError
from vl2.serve.ignored import IgnoredFieldsRoute, record_ignored_fields
from vl2.serve.schema.base import Lenient, Name, Strict
from vl2.serve.schema.chat import ChatMessage, read_history
from vl2.serve.schema.completion import TokenId
from vl2.serve.schema.tools import ToolChoice, Tools, tool_use
from vl2.serve.schema.turns import MAX_MESSAGES, Source, Text, order_turns
from vl2.serve.service import Service

router = APIRouter(route_class=IgnoredFieldsRoute)


class TokenizeRequest(Lenient):
    """Either a raw prompt, as for completions, or messages, as for chat completions."""

    model: Name | None = None
    prompt: Text | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    # An addition to vLLM's fields: each `<image>` in the prompt stands for the next of these.
    images: list[Source] | None = None
    add_special_tokens: Annotated[
        bool | None, Field(description="false omits bos from a raw prompt; a conversation always begins with bos")
    ] = None
    return_token_strs: bool | None = None
    tools: Tools = None
    tool_choice: ToolChoice = None

    @model_validator(mode="after")
    def _check_what(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("either prompt or messages must be given")
        return self

    def turns(self) -> list[Turn]:
        """Return the conversation in the template's order, with the description of its functions."""
        turns = order_turns(read_history(self.messages or ()))
        use = tool_use(self.tools, self.tool_choice, is_parallel=True)
        return turns if use is None else use.describe_in(turns)


class DetokenizeRequest(Lenient):
    model: Name | None = None
    tokens: list[TokenId]


@router.post("/tokenize", responses=ERRORS, tags=["tokens"])
async def tokenize(body: TokenizeRequest, request: Request) -> dict[str, Any]:
    """Count and list the tokens of a prompt or of messages. An image has one `<image>` token per visual token.

    Images are loaded, because their size determines how many tokens they have.
    """
    service: Service = request.app.state.service
    record_ignored_fields(body, request)
    if body.model is not None:
        service.adapter_of(body.model)
    async with service.admission(request.state.client) as admission:
        if body.prompt is not None:
            (prompt,) = await service.prepare_prompts([body.prompt], body.images or (), admission)
        else:
            prompt = await service.prepare_chat(body.turns(), admission)
    ids: list[int] = prompt.sample.input_ids.tolist()
    if body.prompt is not None and body.add_special_tokens is False:
        ids = ids[1:]
    tokenizer = service.backend.processor.tokenizer
    strings: list[str] | None = None
    if body.return_token_strs:
        strings = [tokenizer.token_bytes(i, skip_special=False).decode("utf-8", "replace") for i in ids]
    return {"count": len(ids), "max_model_len": service.backend.max_context, "tokens": ids, "token_strs": strings}


@router.post("/detokenize", responses=ERRORS, tags=["tokens"])
async def detokenize(body: DetokenizeRequest, request: Request) -> dict[str, str]:
    """Return the text of token ids, special tokens included."""
    service: Service = request.app.state.service
    record_ignored_fields(body, request)
    if body.model is not None:
        service.adapter_of(body.model)
    tokenizer = service.backend.processor.tokenizer
    unknown = next((token_id for token_id in body.tokens if token_id not in tokenizer), None)
    if unknown is not None:
        raise UserError(f"there is no token {unknown}; the ids are below {tokenizer.num_ids}")
    return {"prompt": tokenizer.decode(body.tokens, skip_special=False)}


MAX_SIZES = 1000  # of all messages together

Side = Annotated[int, Field(ge=1, le=1_000_000, description="in pixels, of the upright image")]


class ImageSize(Strict):
    width: Side
    height: Side


class TilesRequest(Strict):
    """The image sizes of a whole conversation, because the tiling of an image may depend on the others."""

    messages: Annotated[
        list[Annotated[list[ImageSize], Field(max_length=1000)]],
        Field(min_length=1, max_length=1000, description="the sizes of the images of each message"),
    ]


@router.post("/v1/images/tiles", responses=ERRORS, tags=["images"])
async def image_tiles(body: TilesRequest, request: Request) -> dict[str, Any]:
    """Report the canvas, grid, tiles and visual tokens of each image in order, and the totals."""
    service: Service = request.app.state.service
    sizes = [[(size.width, size.height) for size in message] for message in body.messages]
    if (num_images := sum(map(len, sizes))) > MAX_SIZES:
        raise ApiError(400, f"at most {MAX_SIZES} images can be planned at once, got {num_images}", param="messages")
    planned = await service.in_thread(lambda: TileReport.plan(sizes, service.backend.processor))
    reports = [report.to_dict() for report in planned]
    return {
        "object": "list",
        "data": reports,
        "visual_tokens": sum(report["visual_tokens"] for report in reports),
        "tiles_encoded": sum(report["tiles_encoded"] for report in reports),
        "context_length": service.backend.max_context,
    }
