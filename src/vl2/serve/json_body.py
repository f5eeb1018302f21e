"""A request body to a value: strict JSON within bounds, every fault a 4xx of one sentence."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from vl2.serve.errors import ApiError

MAX_VALUES = 200_000  # brackets and commas: a list of nothing but empty lists takes thirty times the memory of its text
MAX_DIGITS = 30

_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(body: bytes, max_depth: int) -> Any:
    """Return the value of a body. ApiError unless it is UTF-8, JSON of the standard, and at most so deep."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _error(f"the body is not UTF-8: byte {error.start} is wrong") from None
    if sum(map(text.count, "[{,")) > MAX_VALUES:
        raise _error(f"the body holds more than {MAX_VALUES} values")
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_int=_parse_int, parse_float=_parse_float)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _error(f"the body is not JSON: {error.msg} ({where})") from None
    except RecursionError:
        raise _error(f"the body is nested more than {max_depth} deep") from None
    _check_values(value, max_depth, may_have_halves=_HALF_PAIR.search(text) is not None)
    return value


def _error(message: str) -> ApiError:
    return ApiError(400, message, code="invalid_json")


def _refuse_constant(name: str) -> NoReturn:
    raise _error(f"the body holds {name}, which is not JSON")


def _parse_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _error(f"the body holds a number of {len(digits)} digits")
    return int(digits)


def _parse_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _error(f"the body holds {digits[:MAX_DIGITS]}, which is too large a number")
    return value


def _check_values(value: Any, max_depth: int, *, may_have_halves: bool) -> None:
    """Walk through a value, not by recursion: it may be deeper than Python's stack."""
    level, depth = [value], 0
    while level:
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
                below += item.keys() if may_have_halves else ()
            elif isinstance(item, list):
                below += item
            elif may_have_halves and isinstance(item, str) and not _is_encodable(item):
                raise _error("the body holds half of a surrogate pair, which is no character")
        depth += 1
        if below and depth > max_depth:
            raise _error(f"the body is nested more than {max_depth} deep")
        level = below


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


class JsonRequest(Request):
    """A request whose `json` is strict. `app.state.settings` has the bounds."""

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            kind = self.headers.get("content-type", "").split(";")[0].strip().lower()
            # Also a guard: a page of another site can send a form or text unasked, but not JSON.
            if kind != "application/json" and not kind.endswith("+json"):
                raise ApiError(415, "the body must be application/json", code="unsupported_media_type")
            self._json = parse_json(await self.body(), self.app.state.settings.limits.max_depth)
        return self._json


class JsonRoute(APIRoute):
    """Hands every endpoint a `JsonRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            strict = JsonRequest(request.scope, request.receive)
            if request.method in ("POST", "PUT", "PATCH"):
                await strict.json()  # here, before FastAPI would take a body of another type as text
            return await handler(strict)

        return handle
