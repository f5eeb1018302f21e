"""A record while it is being made: pictures, boxes, turns, and notes on what was chosen (fonts, styles, ...).

Sizes are (width, height), boxes (x0, y0, x1, y1) in pixels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from vl2.data.record import BoxPx, Labeled, Message, Part, Record, StoredImage


@dataclass(kw_only=True)
class Draft:
    """What a source fills in; `record` closes it."""

    language: str
    category: str | None = None  # None: the category of its source
    images: list[StoredImage] = field(default_factory=list)
    objects: list[Labeled] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    traits: dict[str, str] = field(default_factory=dict)  # measured by `diversity`, not part of the record

    def picture(self, image: Image.Image, *, jpeg_quality: int | None = None) -> int:
        """Store an image (PNG, or JPEG of that quality) and return its index."""
        self.images.append(store(image, jpeg_quality=jpeg_quality))
        return len(self.images) - 1

    def box(self, label: str, boxes_px: Sequence[BoxPx], image: int = 0) -> str:
        """Add an object and return the placeholder that stands for it in a text."""
        return f"{{box:{self.show(label, boxes_px, image)}}}"

    def show(self, label: str, boxes_px: Sequence[BoxPx], image: int = 0) -> int:
        """Add an object and return its number, under which an answer may name it as evidence."""
        self.objects.append(Labeled(image=image, label=label, boxes_px=tuple(boxes_px)))
        return len(self.objects) - 1

    def ask(self, question: str, answer: str, evidence: Sequence[int] = ()) -> None:
        """Add a turn. Pictures that no turn has shown yet stand before the question.

        `evidence` are the objects on which the answer rests, beside those that it gives boxes of.
        """
        shown = sum(part.image is not None for message in self.messages for part in message.parts)
        pictures = tuple(Part(image=index) for index in range(shown, len(self.images)))
        self.messages.append(Message(role="user", parts=(*pictures, Part(text=question))))
        self.messages.append(Message(role="assistant", parts=(Part(text=answer),), evidence=tuple(evidence)))

    def record(self, *, id: str, source: str, category: str, licence: str) -> Record:
        return Record(
            id=id,
            source=source,
            category=self.category or category,
            language=self.language,
            licence=licence,
            messages=tuple(self.messages),
            images=tuple(self.images),
            objects=tuple(self.objects),
        )


def store(image: Image.Image, *, jpeg_quality: int | None = None) -> StoredImage:
    """Encode an image as PNG, or as JPEG of a quality."""
    buffer = io.BytesIO()
    if jpeg_quality is None:
        image.convert("RGB").save(buffer, "PNG")
    else:
        image.convert("RGB").save(buffer, "JPEG", quality=jpeg_quality)
    return StoredImage(data=buffer.getvalue(), width=image.width, height=image.height)
