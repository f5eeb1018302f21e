"""Fields of a request that have no effect: named in a header of the answer, or refused by a strict server.

Clients send fields of other servers and of other models all the time. Most do no harm, and a refusal would keep the
client from working at all; but nobody should have to guess which fields were used.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from vl2.serve.api_errors import ApiError
from vl2.serve.json_body import JsonRoute

HEADER = "x-vl2-ignored-fields"
MAX_NAMED = 32
MAX_NAME_CHARS = 80

_UNSAFE = re.compile(r"[^!-+\--~]")  # anything but printable ASCII, and the comma, which separates names


@dataclass(frozen=True)
class IgnoredUnless:
    """Marks a field that would change the answer elsewhere and has no effect here, unless it asks for nothing."""

    is_harmless: Callable[[Any, Any], bool]  # of the body and the value


def ignored_fields(body: BaseModel, place: str = "") -> Iterator[str]:
    """Yield the path of every field that was sent, asks for something, and has no effect; without list indices."""
    for name, value in (body.model_extra or {}).items():
        if value is not None:
            yield place + name
    marked, nested = _fields_of(type(body))
    for name, mark in marked:
        if not mark.is_harmless(body, getattr(body, name)):
            yield place + name
    for name in nested:
        value = getattr(body, name)
        if isinstance(value, BaseModel):
            yield from ignored_fields(value, f"{place}{name}.")
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, BaseModel):
                    yield from ignored_fields(item, f"{place}{name}[].")


@cache
def _fields_of(model: type[BaseModel]) -> tuple[list[tuple[str, IgnoredUnless]], list[str]]:
    """Return the marked fields of a model and those that may hold models. Cached: a body may have 100,000 parts."""
    marked = []
    nested = []
    for name, info in model.model_fields.items():
        marks = [mark for mark in info.metadata if isinstance(mark, IgnoredUnless)]
        marked += [(name, mark) for mark in marks]
        if info.annotation not in (str, int, float, bool, Any) and not marks:
            nested.append(name)
    return marked, nested


def note_ignored(body: BaseModel, request: Request) -> None:
    """Keep the names of ignored fields for the header. ApiError where the server is strict."""
    found = dict.fromkeys(itertools.islice(ignored_fields(body), 1000 * MAX_NAMED))
    # A field's name may be empty. It is written as "", because a header must not end with a blank.
    names = [_UNSAFE.sub("?", name)[:MAX_NAME_CHARS] or '""' for name in itertools.islice(found, MAX_NAMED)]
    if names and request.app.state.service.settings.strict:
        raise ApiError(
            400,
            f"{names[0]}: unknown field, or one without effect here; a server without --strict ignores it",
            code="unknown_parameter",
            param=names[0],
        )
    if len(found) > MAX_NAMED:
        names.append("...")
    request.state.ignored = ", ".join(names)


class NotingRoute(JsonRoute):
    """Adds the header to the answers of its endpoints, streams too."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            response = await handler(request)
            if names := getattr(request.state, "ignored", ""):
                response.headers[HEADER] = names
            return response

        return handle
