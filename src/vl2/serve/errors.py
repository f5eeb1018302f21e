"""Errors as OpenAI's clients expect them: {"error": {"message", "type", "param", "code"}} and a fitting status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vl2.errors import UserError
from vl2.infer.engine.engine import EngineFull, EngineStopped
from vl2.process.tokenizer import TextTooLong

MAX_MESSAGE_CHARS = 500
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(HTTPException):
    """An answer that is an error, whatever part of the server finds it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_s: int | None = None,
    ) -> None:
        headers = {"Retry-After": str(retry_s)} if retry_s is not None else None
        super().__init__(status_code=status, detail=one_line(message), headers=headers)
        self.code, self.param = code, param

    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status_code, "server_error" if self.status_code >= 500 else "invalid_request_error")
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}


def one_line(text: str) -> str:
    """Return printable text of bounded length that any encoder takes, whatever a client put into it."""
    clean = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    clean = clean.encode("utf-8", "replace").decode("utf-8")
    return clean if len(clean) <= MAX_MESSAGE_CHARS else clean[: MAX_MESSAGE_CHARS - 3] + "..."


def to_api_error(error: Exception) -> ApiError:
    """Return what a client is told. Of what is our own fault it learns nothing but that."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineFull):
        return ApiError(429, str(error), code="queue_full", retry_s=5)
    if isinstance(error, EngineStopped):
        return ApiError(503, str(error), code="stopping", retry_s=5)
    if isinstance(error, TextTooLong):
        return ApiError(400, str(error), code="context_length_exceeded")
    if isinstance(error, UserError):
        return ApiError(400, str(error), code="invalid_request")
    if isinstance(error, RequestValidationError):
        return _validation_error(error.errors())
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), code=None)
    return ApiError(500, "the server failed on this request; its log has the reason", code="internal_error")


def error_response(error: Exception) -> JSONResponse:
    found = to_api_error(error)
    return JSONResponse(found.body(), status_code=found.status_code, headers=found.headers)


async def handle_error(request: Request, error: Exception) -> Response:
    request.state.error = error
    return error_response(error)


def _validation_error(problems: Sequence[Any]) -> ApiError:
    """Say the first thing wrong, and where."""
    # Of a union every branch complains: the deepest complaint is about the branch that was meant.
    first: Mapping[str, Any] = max(problems, key=lambda problem: len(problem["loc"]))
    place = _place([part for part in first["loc"] if part != "body"])
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown field"
    if first["type"] == "missing" and not place:
        message = "the request needs a JSON body"
    return ApiError(400, f"{place}: {message}" if place else message, code="invalid_value", param=place or None)


def _place(parts: Sequence[str | int]) -> str:
    shown = ""
    for part in parts:
        if isinstance(part, int):
            shown += f"[{part}]"
        elif part.isidentifier() and part.islower():  # not the name of a branch of a union
            shown += f".{part}" if shown else part
    return one_line(shown)[:100]
