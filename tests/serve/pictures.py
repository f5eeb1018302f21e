"""Pictures as clients send them."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"


def data_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def example(name: str) -> str:
    return data_url((EXAMPLES / name).read_bytes())


def png(width: int, height: int, color: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), color).save(file, "PNG")
    return file.getvalue()


def user(text: str, *urls: str) -> dict[str, Any]:
    """Return a user message, the pictures before the text."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
