"""Parse request bodies: strict JSON within bounds; every fault is a 4xx with one sentence.

Python's parser holds the interpreter's lock while it parses, so a thread alone does not keep the event loop free. Large
bodies are large because of pictures in data URLs. These are cut out first and not parsed; the rest is bounded.
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

MAX_VALUES = 200_000  # brackets and commas: a list of empty lists takes thirty times the memory of its text
MAX_DIGITS = 30
SMALL_BODY = 64 << 10  # parsed at once: a thread would take longer to start
MAX_PARSED = 2  # large bodies at once, which bounds the memory of copies
MIN_CUT = 4096  # shorter data URLs are parsed like any text
MAX_CUTS = 4096
PIECE = 1 << 20  # bytes that are looked through before another thread may go on

_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
_DATA = b'"data:'
_PRINTABLE = bytes(byte for byte in range(0x20, 0x7F) if byte != ord('"'))


class BodyParser:
    """Parses bodies beside the event loop, a few at once."""

    def __init__(self, *, max_depth: int, max_json_bytes: int, max_context: int) -> None:
        """`max_json_bytes` bounds what is not data URLs. It must leave room for all text that fits the context."""
        self._max_depth, self._max_json_bytes, self._max_context = max_depth, max_json_bytes, max_context
        self._threads = ThreadPoolExecutor(MAX_PARSED, thread_name_prefix="vl2-parse")

    async def parse(self, body: bytes) -> Any:
        """Return what `parse_json` returns."""
        if len(body) <= SMALL_BODY:
            return parse_json(body, self._max_depth)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._parse_large, body)

    def _parse_large(self, body: bytes) -> Any:
        mark = secrets.token_hex(16)  # which no client can have written
        rest, cuts = _cut_data_urls(body, mark)
        if len(rest) > self._max_json_bytes:
            raise context_error(
                self._max_context,
                f"the request has {len(rest)} bytes beside its data URLs, the limit is {self._max_json_bytes}: more "
                "than any text that fits",
            )
        whole = [parse_json(rest, self._max_depth)]
        if cuts:
            _put_back(whole, "data:" + mark, [(body, start, end) for start, end in cuts])
        return whole[0]


def parse_json(body: bytes, max_depth: int) -> Any:
    """Return the value of a body. ApiError unless it is standard JSON in UTF-8, nested no deeper than `max_depth`."""
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
    """Check all values of a body without recursion: nesting may be deeper than Python's stack."""
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


def _cut_data_urls(body: bytes, mark: str) -> tuple[bytes, list[tuple[int, int]]]:
    """Return the body with a short name in place of each long data URL, and where those were.

    A quote before `data:` that no backslash precedes opens a string, or the body is not JSON.
    Only text without escapes is cut out, so the rest is valid JSON if and only if the whole body is.
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
            kept += (body[end:start], f"{mark}{len(cuts)}".encode())
            cuts.append((start, close))
            end = close
        at = max(at, close - 1)
    kept.append(body[end:])
    return b"".join(kept), cuts


def _is_plain(body: bytes, start: int, end: int) -> bool:
    """Whether a part of a string is printable ASCII, with no escape but that of a slash, which some encoders write."""
    if body.count(b"\\", start, end) != body.count(b"\\/", start, end):
        return False
    return not any(body[at : min(at + PIECE, end)].translate(None, _PRINTABLE) for at in range(start, end, PIECE))


def _put_back(values: list[Any], mark: str, cuts: Sequence[tuple[bytes, int, int]]) -> None:
    """Put the data URLs back in the places of their names. Changes the value in place."""
    level: list[Any] = [values]
    num_left = len(cuts)
    while level:
        below: list[Any] = []
        for item in level:
            places = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
            for place, inner in list(places):
                if isinstance(inner, str) and inner.startswith(mark):
                    item[place] = _text_of(*cuts[int(inner[len(mark) :])])
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
    pieces = []
    while start < end:
        stop = min(start + PIECE, end)
        stop += body[stop - 1] == ord("\\")  # its slash belongs to it
        pieces.append(body[start:stop].replace(b"\\/", b"/").decode("ascii"))
        start = stop
    return "".join(pieces)


class JsonRequest(Request):
    """A request whose `json` is strict. `app.state.body_parser` has the bounds."""

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            kind = self.headers.get("content-type", "").split(";")[0].strip().lower()
            # This also guards against other sites: a page can send a form or text without asking, but not JSON.
            if kind != "application/json" and not kind.endswith("+json"):
                raise ApiError(415, "the body must be application/json", code="unsupported_media_type")
            parser: BodyParser = self.app.state.body_parser
            self._json = await parser.parse(await self._take_body())
            self._body = b"{}"  # FastAPI only asks whether there is a body; the bytes are not kept beside the value
        return self._json

    async def _take_body(self) -> bytes:
        """Return the body. `RequestGuard` hands it out whole; collecting pieces would copy it again."""
        body: bytes = (await self.receive()).get("body", b"")
        return body


class JsonRoute(APIRoute):
    """Hands every endpoint a `JsonRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            strict = JsonRequest(request.scope, request.receive)
            if request.method in ("POST", "PUT", "PATCH"):
                await strict.json()  # here, because FastAPI would read a body of another type as text
            return await handler(strict)

        return handle
