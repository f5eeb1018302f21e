"""Serve the files of the web page with a content security policy that allows no other scripts or styles."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from vl2.serve.api_errors import ApiError

STATIC = Path(__file__).parent / "static"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",  # licenses of third-party files
}
# Scripts and styles come from this server only. Images may also be blobs and data URLs, for pasted images.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; font-src 'self'; "
    "connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # A browser must use a newer server's files at once, so it checks each file; an unchanged one costs a 304.
    "Cache-Control": "no-cache",
}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, kw_only=True)
class PageFile:
    """A file of the page."""

    body: bytes
    media_type: str
    tag: str  # ETag, a hash of the content


@cache
def page_files() -> dict[str, PageFile]:
    """Return the page's files by their paths within its folder. Only files in this table are served."""
    return {
        path.relative_to(STATIC).as_posix(): PageFile(
            body=path.read_bytes(),
            media_type=MEDIA_TYPES[path.suffix],
            tag=f'"{blake2b(path.read_bytes(), digest_size=8).hexdigest()}"',
        )
        for path in STATIC.rglob("*")
        if path.suffix in MEDIA_TYPES
    }


@router.get("/")
async def index(request: Request) -> Response:
    """Serve the web page."""
    return _answer("index.html", request)


@router.get("/web/{name:path}")
async def file(name: str, request: Request) -> Response:
    """Serve a file of the web page."""
    return _answer(name, request)


def _answer(name: str, request: Request) -> Response:
    found = page_files().get(name)
    if found is None:
        raise ApiError(404, "the page has no such file", code="not_found")
    headers = {**HEADERS, "ETag": found.tag}
    if request.headers.get("if-none-match") == found.tag:
        return Response(status_code=304, headers=headers)
    return Response(found.body, media_type=found.media_type, headers=headers)
