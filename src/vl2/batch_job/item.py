"""The items of a batch job, the JSON lines that answer them, and the output file.

A line is in the plain format or in that of OpenAI's batch API. The output file has one line for each finished item, in
the order of the items, so it also records how far the job is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
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
class BatchRequest:
    """The request of one item: a conversation and the options for its answer."""

    turns: Sequence[Turn]
    options: GenerateOptions

    @property
    def images(self) -> list[ImageSource]:
        return [source for turn in self.turns for source in turn.images]


@dataclass(frozen=True, kw_only=True)
class BatchItem:
    """An item of a job. `read` loads its request when it is about to be answered.

    If `read` raises UserError, the item's output line reports that error.
    """

    id: str  # unique within the job
    read: Callable[[], BatchRequest]
    about: Mapping[str, Any] = field(default_factory=dict)  # extra fields of the output line: file, page
    form: Literal["plain", "openai"] = "plain"  # format of the output line
    query: str | None = None  # the object to locate, if the item asks for one


def check_unique(items: Sequence[BatchItem]) -> None:
    """Raise UserError if two items have the same id, because ids tell which items are done."""
    check_unique_ids(item.id for item in items)


def check_unique_ids(ids: Iterable[str]) -> None:
    """Raise UserError if an id occurs twice."""
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise UserError(f"two items are called {name!r}: names must be unique")
        seen.add(name)


FINISH_REASONS = {"stop": "stop", "length": "length", "repetition": "length", "cancelled": "stop"}  # OpenAI's words


def answer_line(item: BatchItem, reply: Reply, model: str) -> dict[str, Any]:
    """Return the output line of an answered item."""
    fields = reply.to_dict()
    if item.form == "plain":
        size = {"image_size": list(reply.image_sizes[-1])} if reply.image_sizes else {}
        shown = {key: fields[key] for key in ("text", "boxes", "finish_reason", "usage")}
        return {"id": item.id, **item.about, **size, **shown, **reply.page_fields()}
    usage = reply.usage
    body = {
        "id": f"chatcmpl-{_digest(item)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": reply.text,
                    "boxes": fields["boxes"],
                    **reply.page_fields(),
                },
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
    """Return the output line of a failed item."""
    message = " ".join(str(error).split())
    if item.form == "plain":
        return {"id": item.id, **item.about, "error": message}
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
    return _openai_line(item, 400, body)


def is_error(line: Mapping[str, Any]) -> bool:
    """Tell whether an output line is that of a failed item."""
    response = line.get("response")
    return response["status_code"] != 200 if isinstance(response, Mapping) else "error" in line


def _openai_line(item: BatchItem, status: int, body: dict[str, Any]) -> dict[str, Any]:
    response = {"status_code": status, "request_id": f"req_{_digest(item)}", "body": body}
    return {"id": f"batch_req_{_digest(item)}", "custom_id": item.id, "response": response, "error": None}


def _digest(item: BatchItem) -> str:
    return blake2b(item.id.encode("utf-8", "replace"), digest_size=12).hexdigest()


class LineFile(ResumableLog):
    """The output file of a job: one line per finished item, with the item's id as key."""

    def __init__(self, path: Path) -> None:
        """Open or create the file. Raise UserError if another run has it open, or if no job wrote it."""
        foreign = "is not the output of a job: line {number} has no id"
        super().__init__(path, item_id, foreign=foreign)


def item_id(line: Mapping[str, Any]) -> str:
    """Return the id of the item that an output line belongs to."""
    name = line["custom_id"] if "custom_id" in line else line["id"]
    if not isinstance(name, str):
        raise TypeError(name)
    return name
