"""A record under construction: images, boxes, turns, and notes on random choices such as fonts and styles.

Sizes are (width, height) in pixels, and boxes are (x0, y0, x1, y1) in pixels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from vl2.data.record import BoxPx, Labeled, Message, Part, Record, StoredImage


@dataclass(kw_only=True)
class Draft:
    """A record that a source fills in step by step. `record` converts it to a `Record`."""

    language: str
    category: str | None = None  # None for the category of the source
    images: list[StoredImage] = field(default_factory=list)
    objects: list[Labeled] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    traits: dict[str, str] = field(default_factory=dict)  # random choices, counted by `diversity`; not in the record

    def picture(self, image: Image.Image, *, jpeg_quality: int | None = None) -> int:
        """Add an image and return its index. It is stored as PNG, or as JPEG if `jpeg_quality` is given."""
        self.images.append(store(image, jpeg_quality=jpeg_quality))
        return len(self.images) - 1

    def box(self, label: str, boxes_px: Sequence[BoxPx], image: int = 0) -> str:
        """Add an object with its boxes and return the placeholder for it, such as "{box:0}", for use in a text."""
        return f"{{box:{self.show(label, boxes_px, image)}}}"

    def show(self, label: str, boxes_px: Sequence[BoxPx], image: int = 0) -> int:
        """Add an object with its boxes and return its index, which `ask` takes as evidence."""
        self.objects.append(Labeled(image=image, label=label, boxes_px=tuple(boxes_px)))
        return len(self.objects) - 1

    def ask(self, question: str, answer: str, evidence: Sequence[int] = ()) -> None:
        """Add a question and its answer. Images that no earlier turn has shown are put before the question.

        `evidence` has the indices of the objects that support the answer, besides those whose boxes are in the answer.
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
    """Encode an image as PNG, or as JPEG if `jpeg_quality` is given."""
    buffer = io.BytesIO()
    if jpeg_quality is None:
        image.convert("RGB").save(buffer, "PNG")
    else:
        image.convert("RGB").save(buffer, "JPEG", quality=jpeg_quality)
    return StoredImage(data=buffer.getvalue(), width=image.width, height=image.height)
