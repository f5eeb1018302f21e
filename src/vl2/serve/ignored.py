"""Request fields without effect: the response names them in a header, or a strict server refuses the request.

Clients often send fields that other servers and models understand. Most do no harm, and a client whose requests are
refused cannot be used at all. The header tells which fields were ignored.
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

_UNSAFE = re.compile(r"[^!-+\--~]")  # a comma (the separator of names), or not printable ASCII


@dataclass(frozen=True)
class IgnoredUnless:
    """Annotation of a field that changes the answer on other servers and is ignored here.

    A value for which `is_harmless` is true would not change the answer on other servers either, so it is not reported.
    """

    is_harmless: Callable[[Any, Any], bool]  # called with the body and the value


def ignored_fields(body: BaseModel, place: str = "") -> Iterator[str]:
    """Yield the path of every ignored field in a body, without list indices: unknown fields and annotated ones."""
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
    """Return a model's annotated fields, and its fields that may contain models.

    The result is cached, because a body may have 100,000 parts.
    """
    marked = []
    nested = []
    for name, info in model.model_fields.items():
        marks = [mark for mark in info.metadata if isinstance(mark, IgnoredUnless)]
        marked += [(name, mark) for mark in marks]
        if info.annotation not in (str, int, float, bool, Any) and not marks:
            nested.append(name)
    return marked, nested


def record_ignored_fields(body: BaseModel, request: Request) -> None:
    """Record the names of ignored fields for the header. Raise ApiError if the server is strict."""
    found = dict.fromkeys(itertools.islice(ignored_fields(body), 1000 * MAX_NAMED))
    # A field's name may be empty. It is written as "", because a header must not end with a space.
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


def record_ignored(request: Request, name: str) -> None:
    """Record a field that turned out to have no effect. Raise ApiError if the server is strict."""
    if request.app.state.service.settings.strict:
        raise ApiError(400, f"{name}: without effect here", code="unknown_parameter", param=name)
    before = getattr(request.state, "ignored", "")
    request.state.ignored = f"{before}, {name}" if before else name


class IgnoredFieldsRoute(JsonRoute):
    """A route that adds the header with ignored fields to its responses, including streams."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            response = await handler(request)
            if names := getattr(request.state, "ignored", ""):
                response.headers[HEADER] = names
            return response

        return handle
