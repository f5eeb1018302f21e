"""Fields of a request that have no effect: named in a header of the answer, or refused by a strict server.

Clients send fields of other servers and of other models all the time. Most do no harm, and a refusal would keep the
client from working at all; but nobody should have to guess what was heeded.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Coroutine
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from vl2.serve.errors import ApiError
from vl2.serve.json_body import JsonRoute
from vl2.serve.schema.base import ignored_fields

HEADER = "x-vl2-ignored-fields"
MAX_NAMED = 32
MAX_NAME_CHARS = 80

_UNSAFE = re.compile(r"[^!-+\--~]")  # what is no printable ASCII, and the comma that divides names


def note_ignored(body: BaseModel, request: Request) -> None:
    """Keep the names of ignored fields for the header. ApiError where the server is strict."""
    found = dict.fromkeys(itertools.islice(ignored_fields(body), 1000 * MAX_NAMED))
    # A field may have no name at all; nothing at the end would leave a blank there, which no header may end with.
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
