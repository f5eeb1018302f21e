"""Errors in OpenAI's format, {"error": {"message", "type", "param", "code"}}, with the HTTP status.

Codes are OpenAI's if it has one for the case, because clients compare codes and look for words in some messages.
`ERRORS` describes the errors in the OpenAPI document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vl2.errors import UserError
from vl2.infer.engine.engine import EngineFull, EngineStopped
from vl2.infer.sequence import ContextExceeded
from vl2.process.tokenizer import TextTooLong

MAX_MESSAGE_CHARS = 500
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(HTTPException):
    """An error response. Any part of the server may raise it."""

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
    """Return the text as one printable line of bounded length, because it may contain text from a client."""
    clean = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    clean = clean.encode("utf-8", "replace").decode("utf-8")
    return clean if len(clean) <= MAX_MESSAGE_CHARS else clean[: MAX_MESSAGE_CHARS - 3] + "..."


def to_api_error(error: Exception) -> ApiError:
    """Convert an exception to an error response. The details of an internal error are not sent to the client."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineFull):
        return ApiError(429, str(error), code="rate_limit_exceeded", retry_s=5)
    if isinstance(error, EngineStopped):
        return ApiError(503, str(error), code="stopping", retry_s=5)
    if isinstance(error, ContextExceeded):
        has = f"your prompt has {error.num_tokens} tokens, {error.num_visual} of them visual"
        return context_error(error.max_context, f"{has}. Please send fewer or shorter messages, or fewer images")
    if isinstance(error, TextTooLong):
        return context_error(error.max_tokens, str(error))
    if isinstance(error, UserError):
        return ApiError(400, str(error), code=_user_error_code(str(error)))
    if isinstance(error, RequestValidationError):
        return _validation_error(error.errors())
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), code=None)
    return ApiError(500, "the server failed on this request; its log has the reason", code="internal_error")


def error_response(error: Exception) -> JSONResponse:
    found = to_api_error(error)
    return JSONResponse(found.body(), status_code=found.status_code, headers=found.headers)


async def handle_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and not isinstance(error, ApiError):
        error = _routing_error(request, error)
    request.state.error = error
    return error_response(error)


def _routing_error(request: Request, error: HTTPException) -> HTTPException:
    """Return an error that names the path or the method that is not served."""
    method, path = request.method, request.url.path[:200]
    if error.status_code == 404:
        return ApiError(
            404,
            f"Not Found: {method} {path} is not served here; /openapi.json lists what is",
            code="unknown_url",
        )
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        refused = ApiError(
            405,
            f"Method Not Allowed: {path} takes {allowed or 'another method'}, not {method}",
            code="method_not_supported",
        )
        refused.headers = {"Allow": allowed} if allowed else None
        return refused
    return error


def context_error(max_tokens: int, why: str) -> ApiError:
    """Return the error for a prompt that exceeds the context.

    The message begins like OpenAI's, because some clients look for these words and then shorten the conversation.
    """
    message = f"This model's maximum context length is {max_tokens} tokens. However, {why}"
    return ApiError(400, message, code="context_length_exceeded")


# (start of a message, words in it, OpenAI's code) for errors of images; the first match counts. Messages are compared,
# because the process that decodes an image returns nothing but the text of its error.
_PICTURE_CODES = (
    ("cannot fetch ", "", "invalid_image_url"),
    ("cannot read image ", "its base64 data is damaged", "invalid_base64_image"),
    ("cannot read image ", "not a picture in a known format", "invalid_image_format"),
    # Kinds of files that `describe_non_picture` recognizes.
    ("cannot read image ", "which is not read", "invalid_image_format"),
    ("cannot read image ", "it is a PDF file", "invalid_image_format"),
    ("cannot read image ", "it is a ZIP archive", "invalid_image_format"),
    ("cannot read image ", "it is a web page", "invalid_image_format"),
    ("cannot read image ", "it is a video", "invalid_image_format"),
    ("cannot read image ", "it is empty", "empty_image_file"),
    ("cannot read image ", "pixels than the limit", "image_too_large"),
    ("cannot read image ", "larger than the limit", "image_file_too_large"),
    ("cannot read image ", "URLs are ", "invalid_image_url"),
    ("cannot read image ", "it is no usable URL", "invalid_image_url"),
    ("cannot read image ", "", "invalid_image"),
)


def _user_error_code(message: str) -> str:
    fitting = (code for start, words, code in _PICTURE_CODES if message.startswith(start) and words in message)
    return next(fitting, "invalid_request")


# Pydantic's error type -> OpenAI's code. `_validation_code` has the rules for other types.
_CODES = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "string_too_short": "string_below_min_length",
    "string_too_long": "string_above_max_length",
    "too_short": "array_below_min_length",
    "too_long": "array_above_max_length",
}
_BOUNDS = {"greater_than": "below_min_value", "less_than": "above_max_value"}


def _validation_error(problems: Sequence[Any]) -> ApiError:
    """Return an error with the first problem and the field that it is in."""
    # Every branch of a union reports errors. The deepest error is most likely from the branch that the client meant.
    first: Mapping[str, Any] = max(problems, key=lambda problem: len(problem["loc"]))
    place = _field_path([part for part in first["loc"] if part != "body"])
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown field"
    if first["type"] == "missing" and not place:
        message = "the request needs a JSON body"
    return ApiError(400, f"{place}: {message}" if place else message, code=_validation_code(first), param=place or None)


def _validation_code(problem: Mapping[str, Any]) -> str:
    kind: str = problem["type"]
    if bound := next((end for start, end in _BOUNDS.items() if kind.startswith(start)), None):
        limit = next(iter(problem.get("ctx", {}).values()), None)
        return f"{'decimal' if isinstance(limit, float) else 'integer'}_{bound}"
    return _CODES.get(kind, "invalid_type" if kind.endswith("_type") else "invalid_value")


def _field_path(parts: Sequence[str | int]) -> str:
    shown = ""
    for part in parts:
        if isinstance(part, int):
            shown += f"[{part}]"
        elif part.isidentifier() and part.islower():  # skips the names of union branches
            shown += f".{part}" if shown else part
    return one_line(shown)[:100]


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """An error in OpenAI's format."""

    error: ErrorBody


_MEANINGS = {
    400: "the request is wrong; the message says how",
    401: "the API key is missing or wrong",
    403: "the host name is not served",
    404: "there is no such model",
    405: "the method is not served",
    408: "the body did not arrive in time",
    413: "the body is too large",
    415: "the body is not JSON",
    429: "too many requests wait; try again later",
    500: "the server failed",
    503: "the server is stopping",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Error, "description": meaning} for status, meaning in _MEANINGS.items()
}
# For an endpoint that answers with JSON, or with server-sent events if `stream` is true.
ERRORS_OR_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
    **ERRORS,
}
