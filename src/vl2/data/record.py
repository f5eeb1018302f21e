"""The record: one training example of any kind, with messages, images, labeled boxes and its origin.

Boxes are in pixels of their image. A text refers to the boxes of an object as `{box:k}`, where k is an index into
`objects`. Encoding replaces this by `<|ref|>label<|/ref|><|det|>[[x0, y0, x1, y1], ...]<|/det|>` on the 0..999 scale.
In a record without objects `{box:k}` is plain text.

Specification: docs/record.md, docs/record.schema.json. Sizes are (width, height), boxes (x0, y0, x1, y1) in pixels.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from vl2.errors import UserError
from vl2.process.conversation import ImageRef, Piece, Role, Turn
from vl2.process.grounding import TAG, box_to_999, format_boxes
from vl2.process.image import ImageSource

BoxPx = tuple[float, float, float, float]
Json = dict[str, Any]

# The skill that a record teaches. Mixtures give each category a share, and metrics are reported by category.
CATEGORIES = (
    "caption",  # descriptions of images, and conversations about them
    "interleaved",  # documents in which text and images alternate
    "ocr",  # reading text, formulas and receipts in images
    "vqa",  # general questions about images
    "document",  # questions about documents, often in several turns
    "table_chart",  # questions about tables and charts
    "web_to_code",
    "plot_to_code",
    "visual_prompt",  # questions about what an arrow, box, circle or scribble marks
    "grounding",  # locating an object, or saying that it is absent
    "grounded_conversation",  # answers that contain boxes
    "in_context_grounding",  # finding the object that is marked in another image
    "gui",  # elements of user interfaces
    "reasoning",  # mathematics and logic with worked steps
    "academic",  # textbook and college questions
    "text",  # no image at all
)

PLACEHOLDER = re.compile(r"\{box:(\d+)\}")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a message: text, or an image by its index in the record."""

    text: str | None = None
    image: int | None = None

    def __post_init__(self) -> None:
        if (self.text is None) == (self.image is None):
            raise UserError("a part of a message must be either a text or an image")


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message of a conversation, or the only message of a document."""

    role: Role
    parts: tuple[Part, ...]
    evidence: tuple[int, ...] = ()  # objects that support an answer, besides those whose boxes it contains

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise UserError(f"role must be one of {', '.join(get_args(Role))}, got {self.role!r}")
        if not self.parts:
            raise UserError(f"the {self.role} message must not be empty")
        if self.role not in ("user", "document") and any(part.image is not None for part in self.parts):
            raise UserError(f"only user messages and documents may hold images, a {self.role} message has one")
        if self.evidence and self.role != "assistant":
            raise UserError(f"only assistant messages may have evidence, a {self.role} message has some")


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """An image file: its bytes, or a path relative to the file that holds the record."""

    data: bytes | None = None
    path: str | None = None
    width: int
    height: int

    def __post_init__(self) -> None:
        if (self.data is None) == (self.path is None):
            raise UserError("an image must have either bytes or a path")
        if self.width < 1 or self.height < 1:
            raise UserError(f"image sides must be at least 1 px, got {self.width} x {self.height}")


@dataclass(frozen=True, kw_only=True)
class Labeled:
    """An object of a record: the boxes of one label in one image."""

    image: int
    label: str
    boxes_px: tuple[BoxPx, ...]

    def __post_init__(self) -> None:
        if not self.label.strip():
            raise UserError("an object must have a label")
        if TAG.search(self.label):
            raise UserError(f"a label must not contain grounding tags, got {self.label!r:.80}")
        for x0, y0, x1, y1 in self.boxes_px:
            if not (x0 <= x1 and y0 <= y1):
                raise UserError(f"a box is (x0, y0, x1, y1) with x0 <= x1 and y0 <= y1, got {(x0, y0, x1, y1)}")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One training example. The constructor raises a one-line UserError if it is not valid."""

    id: str
    source: str
    category: str
    language: str  # BCP 47, such as en or zh
    licence: str  # the SPDX id if there is one
    messages: tuple[Message, ...]
    images: tuple[StoredImage, ...] = ()
    objects: tuple[Labeled, ...] = ()
    rejected: str = ""  # a worse answer than the last message, for preference optimization; "" for none

    def __post_init__(self) -> None:
        for name in ("id", "source", "language", "licence"):
            if not getattr(self, name).strip():
                raise UserError(f"{name} must not be empty")
        if self.category not in CATEGORIES:
            raise UserError(f"category must be one of {', '.join(CATEGORIES)}, got {self.category!r}")
        if not self.messages:
            raise UserError("a record must have messages")
        if any(message.role == "document" for message in self.messages):
            self._check_document()
        elif self.messages[-1].role != "assistant":
            raise UserError("the last message must be from the assistant, otherwise there is nothing to learn")
        self._check_rejected()
        self._check_images()
        self._check_objects()

    def _check_rejected(self) -> None:
        if not self.rejected:
            return
        if self.messages[-1].role != "assistant":
            raise UserError("a document has no answer, so it cannot have a rejected one")
        if not self.rejected.strip():
            raise UserError("the rejected answer must not be blank")
        if self.rejected.strip() == "".join(part.text or "" for part in self.messages[-1].parts).strip():
            raise UserError("the rejected answer must differ from the last message, which is the chosen one")

    def _check_document(self) -> None:
        if len(self.messages) > 1:
            raise UserError(f"a document must be the only message, got {len(self.messages)} messages")
        if not any(text.strip() for text in self._texts()):
            raise UserError("a document must contain text, otherwise there is nothing to learn")

    def _check_images(self) -> None:
        used = [part.image for message in self.messages for part in message.parts if part.image is not None]
        if used != list(range(len(self.images))):
            stored = list(range(len(self.images)))
            raise UserError(f"messages must use the images {stored} once each and in order, got {used}")

    def _check_objects(self) -> None:
        for number, labeled in enumerate(self.objects):
            if not 0 <= labeled.image < len(self.images):
                raise UserError(f"object {number} is in image {labeled.image}, there are {len(self.images)}")
            width, height = self.images[labeled.image].width, self.images[labeled.image].height
            for box in labeled.boxes_px:
                if box[0] < 0 or box[1] < 0 or box[2] > width or box[3] > height:
                    raise UserError(f"object {number}: box {box} leaves its image of {width} x {height} px")
        for index in (index for message in self.messages for index in message.evidence):
            if not 0 <= index < len(self.objects):
                raise UserError(f"evidence {index} names no object, there are {len(self.objects)}")
        if self.objects:
            for text in self._texts():
                for found in PLACEHOLDER.findall(text):
                    if int(found) >= len(self.objects):
                        raise UserError(f"{{box:{found}}} names no object, there are {len(self.objects)}")
                    if not self.objects[int(found)].boxes_px:
                        raise UserError(f"{{box:{found}}} names an object without boxes")

    def _texts(self) -> list[str]:
        texts = [part.text for message in self.messages for part in message.parts if part.text is not None]
        return [*texts, self.rejected] if self.rejected else texts

    def with_rejected(self) -> Record:
        """Return the record with the rejected answer in the place of the chosen one.

        Raise UserError if it has none.
        """
        if not self.rejected:
            raise UserError(f"record {self.id} has no rejected answer: preferences are learned from pairs")
        answer = Message(role="assistant", parts=(Part(text=self.rejected),))
        return replace(self, messages=(*self.messages[:-1], answer), rejected="")

    def to_turns(self, images: Sequence[ImageSource] | None = None) -> list[Turn]:
        """Return the conversation for `Processor.encode`, with boxes written on the 0..999 scale.

        `images` replaces the record's images one for one; the default is the bytes that the record holds. Raise
        UserError if the record holds paths and no images are given.
        """
        if images is None:
            images = [image.data for image in self.images if image.data is not None]
            if len(images) != len(self.images):
                raise UserError(f"record {self.id} names image files: a store must give the bytes of images")
        if len(images) != len(self.images):
            raise UserError(f"record {self.id} has {len(self.images)} images, {len(images)} were given")

        def piece(part: Part) -> Piece:
            return ImageRef(source=images[part.image]) if part.image is not None else self.with_boxes(part.text or "")

        return [Turn(role=m.role, pieces=tuple(map(piece, m.parts))) for m in self.messages]

    def with_boxes(self, text: str) -> str:
        """Replace every `{box:k}` in a text by the tags and coordinates of object k."""
        if not self.objects:
            return text

        def written(match: re.Match[str]) -> str:
            labeled = self.objects[int(match[1])]
            image = self.images[labeled.image]
            boxes = [box_to_999(box, (image.width, image.height)) for box in labeled.boxes_px]
            return format_boxes(labeled.label, boxes)

        return PLACEHOLDER.sub(written, text)

    def to_dict(self, *, encode_bytes: bool = True) -> Json:
        """Return JSON values. Image bytes become base64 text, or stay bytes with `encode_bytes=False`."""
        return {
            "id": self.id,
            "source": self.source,
            "category": self.category,
            "language": self.language,
            "licence": self.licence,
            "messages": [
                {
                    "role": message.role,
                    "content": [
                        {"type": "text", "text": p.text} if p.text is not None else {"type": "image", "image": p.image}
                        for p in message.parts
                    ],
                    **({"evidence": list(message.evidence)} if message.evidence else {}),
                }
                for message in self.messages
            ],
            "images": [_image_to_dict(image, encode_bytes) for image in self.images],
            "objects": [
                {"image": o.image, "label": o.label, "boxes_px": [list(box) for box in o.boxes_px]}
                for o in self.objects
            ],
            **({"rejected": self.rejected} if self.rejected else {}),
        }

    @classmethod
    def from_dict(cls, values: Any) -> Record:
        """Make a record of JSON values; image bytes may be base64 text or bytes.

        Raise a UserError that names the invalid field.
        """
        table = _mapping(values, "a record")
        unknown = table.keys() - set(cls.__dataclass_fields__)
        if unknown:
            raise UserError(f"unknown key {sorted(unknown)[0]!r}: a record has {', '.join(cls.__dataclass_fields__)}")
        return cls(
            **{name: _text(table, name) for name in ("id", "source", "category", "language", "licence")},
            messages=tuple(_message(m, i) for i, m in enumerate(_list(table, "messages"))),
            images=tuple(_image(m, i) for i, m in enumerate(_list(table, "images", optional=True))),
            objects=tuple(_object(m, i) for i, m in enumerate(_list(table, "objects", optional=True))),
            rejected=_text(table, "rejected") if table.get("rejected") is not None else "",
        )


def _image_to_dict(image: StoredImage, encode_bytes: bool) -> Json:
    size = {"width": image.width, "height": image.height}
    if image.data is None:
        return {"path": image.path, **size}
    return {"bytes": base64.b64encode(image.data).decode() if encode_bytes else image.data, **size}


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{what} must be an object, got {type(value).__name__}")
    return value


def _text(table: Mapping[str, Any], name: str) -> str:
    value = table.get(name)
    if not isinstance(value, str):
        raise UserError(f"{name} must be a text, got {'nothing' if value is None else type(value).__name__}")
    return value


def _list(table: Mapping[str, Any], name: str, *, optional: bool = False) -> Sequence[Any]:
    value = table.get(name)
    if value is None and optional:
        return ()
    if not isinstance(value, list | tuple):
        raise UserError(f"{name} must be a list, got {'nothing' if value is None else type(value).__name__}")
    return value


def _integer(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{what} must be a whole number, got {value!r}")
    return value


def _message(value: Any, index: int) -> Message:
    table = _mapping(value, f"message {index}")
    content = table.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list | tuple):
        raise UserError(f"message {index}: content must be a text or a list of parts, got {type(content).__name__}")
    parts = []
    for part in content:
        piece = _mapping(part, f"message {index}: a part")
        if piece.get("type") == "text" and isinstance(piece.get("text"), str):
            parts.append(Part(text=piece["text"]))
        elif piece.get("type") == "image":
            parts.append(Part(image=_integer(piece.get("image"), f"message {index}: the image of a part")))
        else:
            raise UserError(f"message {index}: a part must be a text or an image with an index, got {piece!r:.80}")
    evidence = [_integer(k, f"message {index}: evidence") for k in _list(table, "evidence", optional=True)]
    # The record checks the role.
    return Message(role=table.get("role"), parts=tuple(parts), evidence=tuple(evidence))  # type: ignore[arg-type]


def _image(value: Any, index: int) -> StoredImage:
    table = _mapping(value, f"image {index}")
    data, path = table.get("bytes"), table.get("path")
    if isinstance(data, str):
        try:
            data = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            raise UserError(f"image {index}: bytes are not valid base64") from None
    if data is not None and not isinstance(data, bytes):
        raise UserError(f"image {index}: bytes must be base64 text, got {type(data).__name__}")
    if path is not None and not isinstance(path, str):
        raise UserError(f"image {index}: path must be a text, got {type(path).__name__}")
    width, height = (_integer(table.get(side), f"image {index}: {side}") for side in ("width", "height"))
    return StoredImage(data=data, path=path, width=width, height=height)


def _object(value: Any, index: int) -> Labeled:
    table = _mapping(value, f"object {index}")
    boxes = []
    for box in _list(table, "boxes_px"):
        if not isinstance(box, list | tuple) or len(box) != 4 or not all(_is_number(v) for v in box):
            raise UserError(f"object {index}: a box must be four finite numbers, got {box!r:.80}")
        boxes.append((float(box[0]), float(box[1]), float(box[2]), float(box[3])))
    image = _integer(table.get("image"), f"object {index}: image")
    return Labeled(image=image, label=_text(table, "label"), boxes_px=tuple(boxes))


def _is_number(value: Any) -> bool:
    # The bound is far beyond any image size and excludes integers that a float cannot represent.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
