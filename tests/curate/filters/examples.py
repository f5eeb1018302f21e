"""Made pictures, pages and records that the tests of filters and jobs share."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vl2.data.record import Message, Part, Record, StoredImage

_WORDS = (
    "alpha",
    "beta",
    "gamma",
    "delta",
    "total",
    "amount",
    "invoice",
    "number",
    "paid",
    "tax",
    "net",
    "price",
    "street",
)


def encoded(image: Image.Image, kind: str = "PNG", quality: int = 90) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, quality=quality)
    return file.getvalue()


def scene(seed: int) -> Image.Image:
    """Draw shapes of random colours."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (240, 180), tuple(map(int, random.integers(0, 255, 3))))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = int(random.integers(0, 240)), int(random.integers(0, 180))
        box = (x, y, x + int(random.integers(15, 120)), y + int(random.integers(15, 120)))
        color = tuple(map(int, random.integers(0, 255, 3)))
        (draw.ellipse if random.random() < 0.5 else draw.rectangle)(box, fill=color)
    return image


def page(seed: int) -> Image.Image:
    """Write random words in lines: the layout of all pages is one."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (600, 800), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=18)
    for y in range(40, 760, 26):
        draw.text((40, y), " ".join(random.choice(_WORDS, random.integers(6, 10))), fill="black", font=font)
    return image


def record(
    record_id: str,
    *pictures: Image.Image | StoredImage,
    question: str = "What is this?",
    answer: str = "A picture.",
    language: str = "en",
    category: str | None = None,
) -> Record:
    """Make a record of one turn; pictures become PNG bytes."""
    images = tuple(
        each if isinstance(each, StoredImage) else StoredImage(data=encoded(each), width=each.width, height=each.height)
        for each in pictures
    )
    parts = (*(Part(image=number) for number in range(len(images))), Part(text=question))
    return Record(
        id=record_id,
        source="made",
        category=category or ("vqa" if images else "text"),
        language=language,
        licence="CC0-1.0",
        messages=(Message(role="user", parts=parts), Message(role="assistant", parts=(Part(text=answer),))),
        images=images,
    )
