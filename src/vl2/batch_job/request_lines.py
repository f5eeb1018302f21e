"""Read a JSONL file of requests, in the format of OpenAI's batch API or in a short format.

OpenAI: `{"custom_id": ..., "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...], ...}}`.
Short: `{"id": ..., "question": ..., "images": [...]}`, with `messages` or `locate` instead of the question.
Both may set generation options. Image paths are relative to the file's folder. An invalid line becomes an item with an
error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from vl2.batch_job.item import BatchItem, BatchRequest
from vl2.errors import UserError
from vl2.infer.constraint import Constraint, JsonSchema
from vl2.infer.constraint_boxes import WellFormedBoxes
from vl2.infer.prompts import locate_prompt
from vl2.infer.sampling import GenerateOptions
from vl2.process.conversation import Turn, one_question
from vl2.process.image import ImageSource
from vl2.process.messages import to_turns

CHAT_URL = "/v1/chat/completions"
SHORT_KEYS = ("id", "question", "messages", "locate", "image", "images", "system")
# Keys of OpenAI's format that are accepted and have no effect here.
WITHOUT_EFFECT = ("model", "user", "metadata", "store", "stream", "n", "safety_identifier")
OPTION_NAMES = {field.name for field in fields(GenerateOptions)} - {"constraint"}
RENAMED = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens"}
EXTRA_OPTIONS = ("response_format", "constrained")


def request_items(path: Path, options: GenerateOptions) -> list[BatchItem]:
    """Return one item per non-empty line. Raise UserError if the file cannot be read or has no requests."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8") from None
    items = [_item(line, number, path.parent, options) for number, line in enumerate(lines, start=1) if line.strip()]
    if not items:
        raise UserError(f"{path} holds no requests")
    return items


def _item(line: str, number: int, folder: Path, options: GenerateOptions) -> BatchItem:
    try:
        request = json.loads(line)
        problem = None if isinstance(request, dict) else f"a {type(request).__name__}, not an object"
    except (ValueError, RecursionError) as error:
        request, problem = {}, f"not JSON: {error}"
    if problem is not None:
        return BatchItem(id=f"line {number}", read=_failing(f"line {number} is {problem}"))
    if "custom_id" in request or "body" in request:
        name = request.get("custom_id", f"line {number}")
        return BatchItem(
            id=name if isinstance(name, str) else f"line {number}",
            read=lambda: _read_openai(request, folder, options),
            form="openai",
        )
    name, query = request.get("id", f"line {number}"), request.get("locate")
    return BatchItem(
        id=str(name),
        read=lambda: _read_short(request, folder, options),
        query=query if isinstance(query, str) else None,
    )


def _failing(message: str) -> Callable[[], BatchRequest]:
    def fail() -> BatchRequest:
        raise UserError(message)

    return fail


def _read_openai(request: Mapping[str, Any], folder: Path, options: GenerateOptions) -> BatchRequest:
    body = request.get("body")
    if not isinstance(request.get("custom_id"), str) or not isinstance(body, Mapping):
        raise UserError("a request needs custom_id, a string, and body, an object")
    if request.get("url", CHAT_URL) != CHAT_URL or request.get("method", "POST") != "POST":
        raise UserError(f"a request must be a POST to {CHAT_URL}, got {request.get('method')} {request.get('url')}")
    if body.get("stream") or body.get("n") not in (None, 1):
        raise UserError("a batch has one answer per request, not streamed: n must be 1 and stream false")
    return BatchRequest(
        turns=_read_turns(body.get("messages"), folder),
        options=_options(body, ("messages", *WITHOUT_EFFECT), options),
    )


def _read_short(request: Mapping[str, Any], folder: Path, options: GenerateOptions) -> BatchRequest:
    given = [key for key in ("question", "messages", "locate") if request.get(key) is not None]
    if len(given) != 1:
        raise UserError(f"a request needs one of question, messages or locate, got {', '.join(given) or 'none'}")
    made = _options(request, SHORT_KEYS, options)
    if given == ["messages"]:
        return BatchRequest(turns=_read_turns(request["messages"], folder), options=made)
    images = request.get("images") or ([request["image"]] if request.get("image") else [])
    text = request[given[0]]
    if not isinstance(text, str) or not isinstance(images, list) or not all(isinstance(i, str) for i in images):
        raise UserError(f"{given[0]} must be a string and images a list of paths or URLs")
    question = locate_prompt(text) if given == ["locate"] else text
    turns = one_question(question, [_path(image, folder) for image in images], request.get("system") or None)
    return BatchRequest(turns=turns, options=made)


def _options(request: Mapping[str, Any], others: tuple[str, ...], options: GenerateOptions) -> GenerateOptions:
    """Return `options` with those of the request. `others` are the request's keys that are not options."""
    values = {RENAMED.get(k, k): v for k, v in request.items() if k not in others and v is not None}
    own_constraint = _constraint(values.pop("response_format", None), values.pop("constrained", False))
    unknown = sorted(values.keys() - OPTION_NAMES)
    if unknown:
        known = ", ".join(sorted({*OPTION_NAMES, *RENAMED, *EXTRA_OPTIONS}))
        raise UserError(f"unknown option {unknown[0]}: the options are {known}")
    try:
        return replace(options, constraint=own_constraint or options.constraint, **values)
    except TypeError:
        raise UserError(f"an option has the wrong type: {values}"[:200]) from None


def _constraint(response_format: object, constrained: object) -> Constraint | None:
    if response_format is None:
        return WellFormedBoxes() if constrained is True else None
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if isinstance(response_format, Mapping) and kind == "json_schema":
        named = response_format.get("json_schema")
        return JsonSchema(named.get("schema") if isinstance(named, Mapping) else None)  # type: ignore[arg-type]
    if kind == "json_object":
        return JsonSchema({"type": "object"})
    if kind == "text":
        return None
    raise UserError("response_format must have the type text, json_object or json_schema")


def _read_turns(messages: object, folder: Path) -> list[Turn]:
    return [turn.map_images(lambda source: _path(source, folder)) for turn in to_turns(messages)]


def _path(source: ImageSource, folder: Path) -> ImageSource:
    """Resolve an image path against the folder. Return a URL or an image unchanged."""
    if not isinstance(source, str):
        return source
    is_path = not source[:8].lower().startswith(("data:", "http://", "https://"))
    return str(folder / source.removeprefix("file://")) if is_path else source
