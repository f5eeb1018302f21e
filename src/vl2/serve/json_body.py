"""Parse request bodies as strict JSON within limits. Every error is a 4xx response with one sentence.

Python's parser holds the GIL while it parses, so parsing a large body in a thread would still block the event loop.
Large bodies are large because of images in data URLs. So data URLs are cut out before parsing and put back afterwards,
and the size of the rest is limited.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import secrets
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from vl2.serve.api_errors import ApiError, context_error

MAX_VALUES = 200_000  # counted by brackets and commas; a list of empty lists takes 30 times the memory of its text
MAX_OBJECTS = 10_000  # it takes a second to check a hundred thousand messages
MAX_DIGITS = 30
SMALL_BODY = 64 << 10  # bytes up to which a body is parsed in the event loop, which is faster than a thread
MAX_PARALLEL = 2  # large bodies parsed at the same time, to bound the memory of copies
MIN_CUT = 4096  # length from which a data URL is cut out
MAX_CUTS = 4096
CHUNK_BYTES = 1 << 20  # bytes processed at a time, so that other threads get the GIL in between

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_DATA = b'"data:'
_PRINTABLE = bytes(byte for byte in range(0x20, 0x7F) if byte != ord('"'))


class BodyParser:
    """Parses large bodies in threads, a few at the same time."""

    def __init__(self, *, max_depth: int, max_json_bytes: int, max_context: int) -> None:
        """Make a parser. `max_json_bytes` limits a body without its data URLs; it must allow any text that fits."""
        self._max_depth, self._max_json_bytes, self._max_context = max_depth, max_json_bytes, max_context
        self._threads = ThreadPoolExecutor(MAX_PARALLEL, thread_name_prefix="vl2-parse")

    async def parse(self, body: bytes) -> Any:
        """Parse a body. Raise ApiError as `parse_json` does, or if the body is too large."""
        if len(body) <= SMALL_BODY:
            return parse_json(body, self._max_depth)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._parse_large, body)

    def _parse_large(self, body: bytes) -> Any:
        placeholder = secrets.token_hex(16)  # random, so that no client can have written it
        rest, cuts = _cut_data_urls(body, placeholder)
        if len(rest) > self._max_json_bytes:
            raise context_error(
                self._max_context,
                f"the request has {len(rest)} bytes besides its data URLs; the limit is {self._max_json_bytes}, more "
                "than any text that fits",
            )
        whole = [parse_json(rest, self._max_depth)]
        if cuts:
            _restore_data_urls(whole, "data:" + placeholder, [(body, start, end) for start, end in cuts])
        return whole[0]


def parse_json(body: bytes, max_depth: int) -> Any:
    """Parse a body. Raise ApiError unless it is standard JSON in UTF-8, nested no deeper than `max_depth`."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _error(f"the body is not UTF-8: byte {error.start} is invalid") from None
    if sum(map(text.count, "[{,")) > MAX_VALUES:
        raise _error(f"the body holds more than {MAX_VALUES} values")
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_int=_parse_int, parse_float=_parse_float)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _error(f"the body is not JSON: {error.msg} ({where})") from None
    except RecursionError:
        raise _error(f"the body is nested more than {max_depth} deep") from None
    _check_values(value, max_depth, may_have_surrogates=_SURROGATE.search(text) is not None)
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


def _check_values(value: Any, max_depth: int, *, may_have_surrogates: bool) -> None:
    """Check the depth, the number of objects and the characters of all values.

    This uses no recursion, because nesting may exceed Python's stack.
    """
    level, depth, num_objects = [value], 0, 0
    while level:
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                num_objects += 1
                below += item.values()
                below += item.keys() if may_have_surrogates else ()
            elif isinstance(item, list):
                below += item
            elif may_have_surrogates and isinstance(item, str) and not _is_encodable(item):
                raise _error("the body holds half of a surrogate pair, which is no character")
        depth += 1
        if below and depth > max_depth:
            raise _error(f"the body is nested more than {max_depth} deep")
        if num_objects > MAX_OBJECTS:
            raise _error(f"the body holds more than {MAX_OBJECTS} objects")
        level = below


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _cut_data_urls(body: bytes, placeholder: str) -> tuple[bytes, list[tuple[int, int]]]:
    """Replace each long data URL in a body by a placeholder. Return the body and the (start, end) of each URL.

    A quote before `data:` without a backslash before it opens a string, unless the body is not JSON. Only text without
    escapes is cut out, so the result is valid JSON if and only if the body is.
    """
    kept: list[bytes] = []
    cuts: list[tuple[int, int]] = []
    end = 0
    at = -1
    for _ in range(MAX_CUTS):
        at = body.find(_DATA, at + 1)
        if at < 0:
            break
        start = at + len(_DATA)
        close = body.find(b'"', start)
        is_opening = body[max(at - 1, 0) : at] != b"\\"
        if is_opening and close - start >= MIN_CUT and _is_plain(body, start, close):
            kept += (body[end:start], f"{placeholder}{len(cuts)}".encode())
            cuts.append((start, close))
            end = close
        at = max(at, close - 1)
    kept.append(body[end:])
    return b"".join(kept), cuts


def _is_plain(body: bytes, start: int, end: int) -> bool:
    """Tell whether a part of a string is printable ASCII without escapes except `\\/`, which some encoders write."""
    if body.count(b"\\", start, end) != body.count(b"\\/", start, end):
        return False
    return not any(
        body[at : min(at + CHUNK_BYTES, end)].translate(None, _PRINTABLE) for at in range(start, end, CHUNK_BYTES)
    )


def _restore_data_urls(values: list[Any], placeholder: str, cuts: Sequence[tuple[bytes, int, int]]) -> None:
    """Replace the placeholders in nested values by their data URLs, in place."""
    level: list[Any] = [values]
    num_left = len(cuts)
    while level:
        below: list[Any] = []
        for item in level:
            places = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
            for place, inner in list(places):
                if isinstance(inner, str) and inner.startswith(placeholder):
                    item[place] = _text_of(*cuts[int(inner[len(placeholder) :])])
                    num_left -= 1
                elif isinstance(inner, (dict, list)):
                    below.append(inner)
        level = below
    if num_left:
        raise _error("the body holds a data URL as the name of a field, or in a field that is given twice")


def _text_of(body: bytes, start: int, end: int) -> str:
    start -= len("data:")
    if body.find(b"\\", start, end) < 0:
        return str(memoryview(body)[start:end], "ascii")
    chunks = []
    while start < end:
        stop = min(start + CHUNK_BYTES, end)
        stop += body[stop - 1] == ord("\\")  # keep the two characters of an escape together
        chunks.append(body[start:stop].replace(b"\\/", b"/").decode("ascii"))
        start = stop
    return "".join(chunks)


class JsonRequest(Request):
    """A request whose `json` method parses strictly, with `app.state.body_parser`."""

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            kind = self.headers.get("content-type", "").split(";")[0].strip().lower()
            # This also protects against pages of other sites, which can send forms and text but no JSON without CORS.
            if kind != "application/json" and not kind.endswith("+json"):
                raise ApiError(415, "the body must be application/json", code="unsupported_media_type")
            parser: BodyParser = self.app.state.body_parser
            self._json = await parser.parse(await self._take_body())
            self._body = b"{}"  # FastAPI only checks that there is a body, so its bytes need not be kept
        return self._json

    async def _take_body(self) -> bytes:
        """Return the body. `RequestGuard` delivers it in one message, so no copy is made here."""
        body: bytes = (await self.receive()).get("body", b"")
        return body


class JsonRoute(APIRoute):
    """A route that passes a `JsonRequest` to its endpoint."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            strict = JsonRequest(request.scope, request.receive)
            if request.method in ("POST", "PUT", "PATCH"):
                await strict.json()  # parse before FastAPI, which would accept a body of another type as text
            return await handler(strict)

        return handle
