"""What the API's description says of answers that are errors."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """OpenAI's form of an error."""

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
