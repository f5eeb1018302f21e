"""Small good records for the tests of reading, checking, counting and showing."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from vl2.data.record import Record


def picture(width: int, height: int, color: tuple[int, int, int] = (200, 120, 40), kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), color).save(out, kind)
    return out.getvalue()


def grounded(name: str, number: int = 0) -> Record:
    """A record with one image, one object with two boxes, two turns, text of several scripts."""
    width, height = 40 + number % 7, 30 + number % 5
    kind = ("PNG", "JPEG", "WEBP")[number % 3]
    return Record.from_dict(
        {
            "id": name,
            "source": "made",
            "category": "grounding",
            "language": "en",
            "licence": "CC0-1.0",
            "messages": [
                {"role": "system", "content": "Be exact."},
                {
                    "role": "user",
                    "content": [{"type": "image", "image": 0}, {"type": "text", "text": "Where is 红 🍎 <image>?"}],
                },
                {"role": "assistant", "content": "{box:0}"},
                {"role": "user", "content": "How many?\n"},
                {"role": "assistant", "content": "Two."},
            ],
            "images": [{"bytes": picture(width, height, (number % 256, 9, 9), kind), "width": width, "height": height}],
            "objects": [{"image": 0, "label": "apple", "boxes_px": [[1, 2.5, 9, 10], [0, 0, width, height]]}],
        }
    )


def text_only(name: str) -> Record:
    parts: list[dict[str, Any]] = [{"role": "user", "content": "写一句话。"}, {"role": "assistant", "content": "好。"}]
    values = {"id": name, "source": "wiki", "category": "text", "language": "zh", "licence": "CC0-1.0"}
    return Record.from_dict({**values, "messages": parts})


def two_images(name: str) -> Record:
    user = [
        {"type": "image", "image": 0},
        {"type": "text", "text": "and"},
        {"type": "image", "image": 1},
        {"type": "text", "text": "?"},
    ]
    values = {"id": name, "source": "made", "category": "interleaved", "language": "en", "licence": "CC0-1.0"}
    images = [
        {"bytes": picture(20, 50), "width": 20, "height": 50},
        {"bytes": b"BM not shown", "width": 3, "height": 4},
    ]
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": "Yes."}]
    return Record.from_dict({**values, "messages": messages, "images": images})


def page(name: str) -> Record:
    """A document: text and an image in turn, nobody asking."""
    parts = [
        {"type": "text", "text": "  Fold it. 折。\n\n"},
        {"type": "image", "image": 0},
        {"type": "text", "text": "\n\nDone."},
    ]
    values = {"id": name, "source": "made", "category": "interleaved", "language": "en", "licence": "CC0-1.0"}
    images = [{"bytes": picture(40, 30), "width": 40, "height": 30}]
    return Record.from_dict({**values, "messages": [{"role": "document", "content": parts}], "images": images})


def good_records(count: int) -> list[Record]:
    return [text_only(f"r{i}") if i % 4 == 3 else grounded(f"r{i}", i) for i in range(count)]
