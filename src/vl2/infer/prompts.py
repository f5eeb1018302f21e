"""Messages for one question, and the prompts that the released model was trained to answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vl2.errors import UserError

Message = Mapping[str, Any]
Messages = Sequence[Message]


def user_message(text: str, images: Sequence[Any]) -> Message:
    """Return an OpenAI-style message: the images, then the text."""
    parts = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def locate_prompt(query: str) -> str:
    """Ask for the boxes of what `query` describes."""
    if not query.strip():
        raise UserError("the query is empty: say what to locate")
    return f"<|ref|>{query.strip()}<|/ref|>."


def describe_prompt(*, grounded: bool) -> str:
    """Ask for a description; grounded, with a box behind everything named."""
    return ("<|grounding|>" if grounded else "") + "Can you describe this image in detail?"
