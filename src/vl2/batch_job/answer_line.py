"""The line of one item: short, or as OpenAI's batches write it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from vl2.batch_job.item import BatchItem
from vl2.errors import UserError
from vl2.infer.reply import Reply

FINISH_REASONS = {"stop": "stop", "length": "length", "repetition": "length", "cancelled": "stop"}  # OpenAI's words


def answer_line(item: BatchItem, reply: Reply, model: str) -> dict[str, Any]:
    """Return what is written for an answer."""
    told = reply.to_dict()
    if item.form == "plain":
        size = {"image_size": list(reply.image_sizes[-1])} if reply.image_sizes else {}
        shown = {key: told[key] for key in ("text", "boxes", "finish_reason", "usage")}
        return {"id": item.id, **item.about, **size, **shown}
    usage = reply.usage
    body = {
        "id": f"chatcmpl-{_name(item)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": reply.text, "boxes": told["boxes"]},
                "finish_reason": FINISH_REASONS[reply.finish_reason],
            }
        ],
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
            "prompt_tokens_details": {"visual_tokens": usage.visual_tokens},
        },
    }
    return _openai_line(item, 200, body)


def error_line(item: BatchItem, error: UserError) -> dict[str, Any]:
    """Return what is written for an item that failed."""
    message = " ".join(str(error).split())
    if item.form == "plain":
        return {"id": item.id, **item.about, "error": message}
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
    return _openai_line(item, 400, body)


def is_error(line: Mapping[str, Any]) -> bool:
    """Tell whether a line says that its item failed."""
    response = line.get("response")
    return response["status_code"] != 200 if isinstance(response, Mapping) else "error" in line


def _openai_line(item: BatchItem, status: int, body: dict[str, Any]) -> dict[str, Any]:
    response = {"status_code": status, "request_id": f"req_{_name(item)}", "body": body}
    return {"id": f"batch_req_{_name(item)}", "custom_id": item.id, "response": response, "error": None}


def _name(item: BatchItem) -> str:
    return blake2b(item.id.encode("utf-8", "replace"), digest_size=12).hexdigest()
