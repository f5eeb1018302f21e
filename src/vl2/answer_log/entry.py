"""What is kept of one answer: the conversation as text, the pictures by hash and place, the answer and its numbers.

No key, header or address of a client is kept. A picture's URL is kept without user, password, query and fragment, which
may hold keys; a data URL is not kept.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from PIL import Image

from vl2.files import is_url
from vl2.process.conversation import Turn

MAX_HASHED_BYTES = 256 << 20  # of a picture's file


@dataclass(frozen=True, kw_only=True)
class LoggedPicture:
    """One picture of a conversation."""

    source: str  # path, URL, "data", "stdin", or the name of a page
    sha256: str | None  # of the encoded bytes; of the pixels as PNG if there are none; None if neither is known
    content: bytes | None = field(default=None, repr=False)  # the bytes of which `sha256` is the hash, if wanted


@dataclass(frozen=True, kw_only=True)
class LogEntry:
    """One question with its answer."""

    source: str  # the command or the path of the API
    model: str
    turns: Sequence[Turn]
    answer: str
    finish_reason: str
    pictures: Sequence[LoggedPicture] = ()  # of all turns, in order
    conversation: str | None = None  # the same for all answers of a chat
    options: Mapping[str, Any] = field(default_factory=dict)  # those that differ from the defaults
    prompt_tokens: int = 0
    visual_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0  # from the question to the end of the answer

    def with_pictures(self, pictures: Sequence[LoggedPicture]) -> LogEntry:
        return replace(self, pictures=pictures)

    @property
    def question(self) -> str:
        """The text of the last turn of the user."""
        return next((turn.text.strip() for turn in reversed(self.turns) if turn.role != "assistant"), "")

    def messages(self) -> list[dict[str, Any]]:
        """Return the turns as JSON values. A picture is its index among the pictures."""
        count = 0
        messages = []
        for turn in self.turns:
            parts: list[dict[str, Any]] = []
            for piece in turn.pieces:
                if isinstance(piece, str):
                    parts.append({"type": "text", "text": piece})
                else:
                    parts.append({"type": "image", "image": count})
                    count += 1
            messages.append({"role": turn.role, "content": parts})
        return messages


def log_picture(source: object, name: str = "", *, keeps_bytes: bool = False) -> LoggedPicture:
    """Return what is kept of an image source: a path, URL, data URL, bytes or PIL image. Never raise.

    `name` says where an image without a path or URL came from. A URL is not fetched, so it has no hash.
    """
    content: bytes | None = None
    text = source if isinstance(source, str) else str(source) if isinstance(source, Path) else ""
    if isinstance(source, bytes):
        content = source
    elif isinstance(source, Image.Image):
        content = _png(source)
    elif text[:5].lower() == "data:":
        content, text = _decoded(text), "data"
    elif is_url(text) and not text.lower().startswith("file:"):
        text = _public(text)
    elif text:
        content = _read(text.removeprefix("file://"))
    if name and not is_url(name) and name != "-" and (known := _read(name)) is not None:
        content = known  # the file that a PIL image was opened from
    shown = "stdin" if name == "-" else _public(name) if is_url(name) else name
    return LoggedPicture(
        source=shown or text or "memory",
        sha256=None if content is None else sha256(content).hexdigest(),
        content=content if keeps_bytes else None,
    )


def _public(url: str) -> str:
    """Return a URL without what may be secret in it."""
    if url[:5].lower() == "data:":
        return "data"
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        where = f"{host}:{parts.port}" if parts.port else host
    except ValueError:
        return "a malformed URL"
    return urlunsplit((parts.scheme, where, parts.path, "", ""))


def _decoded(url: str) -> bytes | None:
    head, _, data = url.partition(",")
    try:
        return base64.b64decode(data, validate=False) if head.lower().endswith(";base64") else data.encode()
    except (binascii.Error, ValueError):
        return None


def _read(path: str) -> bytes | None:
    """Return the bytes of a plain file, None if it is none, is gone, or is too large."""
    try:
        file = Path(path)
        if not file.is_file() or file.stat().st_size > MAX_HASHED_BYTES:
            return None
        return file.read_bytes()
    except (OSError, ValueError):
        return None


def _png(image: Image.Image) -> bytes | None:
    written = io.BytesIO()
    try:
        image.save(written, "PNG", compress_level=1)
    except (OSError, ValueError):
        return None
    return written.getvalue()
