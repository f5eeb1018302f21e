"""One unit of a job: what it is called, what is asked, the line that answers it, and the file of all lines.

A line is short, or as OpenAI's batches write it. The file is the output of a job and also its memory: a line for each
item, in order, never twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from vl2.errors import UserError
from vl2.infer.reply import Reply
from vl2.infer.sampling import GenerateOptions
from vl2.process.conversation import Turn
from vl2.process.image import ImageSource
from vl2.resumable_log import ResumableLog


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the model is asked, read when its turn comes."""

    turns: Sequence[Turn]
    options: GenerateOptions

    @property
    def images(self) -> list[ImageSource]:
        return [source for turn in self.turns for source in turn.images]


@dataclass(frozen=True, kw_only=True)
class BatchItem:
    """One line of the output. `read` may raise UserError, which becomes the item's error."""

    id: str  # unique within the job
    read: Callable[[], Asked]
    about: Mapping[str, Any] = field(default_factory=dict)  # goes into the line: file, page
    form: Literal["plain", "openai"] = "plain"
    query: str | None = None  # what is searched for, where one thing is


def check_unique(items: Sequence[BatchItem]) -> None:
    """Refuse two items of one name: of the second nobody could say whether it is done."""
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise UserError(f"two items are called {item.id!r}: names must be unique")
        seen.add(item.id)


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


class LineFile(ResumableLog):
    """Lines by the name of their item."""

    def __init__(self, path: Path) -> None:
        """Open or make the file. UserError if another run has it open, or it was not written by a job."""
        foreign = "is not the output of a job: line {number} has no id"
        super().__init__(path, item_id, foreign=foreign)


def item_id(line: Mapping[str, Any]) -> str:
    """Return the name of the item that a line answers."""
    name = line["custom_id"] if "custom_id" in line else line["id"]
    if not isinstance(name, str):
        raise TypeError(name)
    return name
