"""`/tokenize` and `/detokenize`: the token ids of what would be read, and their text, as vLLM's endpoints give them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request

from vl2.errors import UserError
from vl2.serve.ignored import NotingRoute, note_ignored
from vl2.serve.openapi import ERRORS
from vl2.serve.schema.tokens import DetokenizeRequest, TokenizeRequest
from vl2.serve.service import Service

router = APIRouter(route_class=NotingRoute, tags=["tokens"])


@router.post("/tokenize", responses=ERRORS)
async def tokenize(body: TokenizeRequest, request: Request) -> dict[str, Any]:
    """Count and list the tokens of a prompt or of messages: a picture has its `<image>` token once for each of its own.

    Pictures are opened for it, since their size decides how many tokens they have.
    """
    service: Service = request.app.state.service
    note_ignored(body, request)
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
    told: list[str] | None = None
    if body.return_token_strs:
        told = [tokenizer.token_bytes(i, skip_special=False).decode("utf-8", "replace") for i in ids]
    return {"count": len(ids), "max_model_len": service.backend.max_context, "tokens": ids, "token_strs": told}


@router.post("/detokenize", responses=ERRORS)
async def detokenize(body: DetokenizeRequest, request: Request) -> dict[str, str]:
    """Return the text of token ids, special tokens included."""
    service: Service = request.app.state.service
    note_ignored(body, request)
    if body.model is not None:
        service.adapter_of(body.model)
    tokenizer = service.backend.processor.tokenizer
    unknown = next((token_id for token_id in body.tokens if token_id not in tokenizer), None)
    if unknown is not None:
        raise UserError(f"there is no token {unknown}; the ids are below {tokenizer.num_ids}")
    return {"prompt": tokenizer.decode(body.tokens, skip_special=False)}
