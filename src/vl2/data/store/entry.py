"""What reading gives, a record and where it lies or a problem and where that lies; and plain values to one of them."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from vl2.data.record import Record, StoredImage
from vl2.errors import UserError

Kind = Literal[
    "unreadable",  # a file, a row or a line is damaged
    "record",  # it is read, and is no record
    "image",  # an image is missing or cannot be opened
    "size",  # an image has another width or height than stated
    "duplicate",  # an earlier record has the same id
    "category",  # the category does not fit the content
    "text",  # a text holds half a character
    "encode",  # the processor refuses it
    "long",  # a warning: more tokens than the sequence length
]
WARNINGS: tuple[Kind, ...] = ("long",)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A file, and which record in it. Written `file:number`, counted from 1 as editors do, or `file:key` in a tar."""

    file: str
    row: int | None = None  # from 0; a line of JSONL; None is the file as a whole
    key: str | None = None

    def __str__(self) -> str:
        within = self.key if self.key is not None else None if self.row is None else str(self.row + 1)
        return self.file if within is None else f"{self.file}:{within}"


@dataclass(frozen=True, kw_only=True)
class Located:
    """A record with the bytes of its images, and where it is from."""

    record: Record
    place: Place


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing wrong with one record, or with a file."""

    place: Place
    id: str | None  # where it can be read
    kind: Kind
    why: str

    @property
    def is_warning(self) -> bool:
        return self.kind in WARNINGS

    def __str__(self) -> str:
        """One printable line: place, id, kind and reason."""
        name = "" if self.id is None else f" [{self.id}]"
        line = " ".join(f"{self.place}{name} {self.kind}: {self.why}".split())
        return "".join(c if c.isprintable() else "?" for c in line)

    def to_dict(self) -> dict[str, str | int | None]:
        place = {"file": self.place.file, "row": self.place.row, "key": self.place.key}
        return {**place, "id": self.id, "kind": self.kind, "why": self.why}


Found = Located | Problem


ReadImage = Callable[[str], bytes]  # the bytes behind an image's path; UserError if there are none


def parse_json(line: bytes, place: Place, read_image: ReadImage) -> Found:
    """Read one record of JSON in UTF-8."""
    try:
        values = json.loads(line.removeprefix(codecs.BOM_UTF8).decode("utf-8"))
    except UnicodeDecodeError as error:
        return Problem(place=place, id=None, kind="unreadable", why=f"not UTF-8 at byte {error.start}")
    except json.JSONDecodeError as error:
        return Problem(place=place, id=None, kind="unreadable", why=f"not JSON: {error.msg} at character {error.pos}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, nesting without end
        return Problem(place=place, id=None, kind="unreadable", why=f"not JSON that can be read: {error}")
    return parse_values(values, place, read_image)


def parse_values(values: Any, place: Place, read_image: ReadImage) -> Found:
    """Make the record and read its images."""
    given = values.get("id") if isinstance(values, dict) else None
    name = given if isinstance(given, str) else None
    try:
        record = Record.from_dict(values)
    except (UserError, ValueError, TypeError, OverflowError) as error:  # 1e400 as a whole number, and the like
        return Problem(place=place, id=name, kind="record", why=str(error))
    try:
        return Located(record=load_images(record, read_image), place=place)
    except UserError as error:
        return Problem(place=place, id=name, kind="image", why=str(error))


def load_images(record: Record, read_image: ReadImage) -> Record:
    """Return the record with bytes where it had paths. UserError names the image that cannot be read."""

    def loaded(index: int, image: StoredImage) -> StoredImage:
        if image.path is None:
            return image
        try:
            return replace(image, data=read_image(image.path), path=None)
        except UserError as error:
            raise UserError(f"image {index}: {error}") from None

    return replace(record, images=tuple(loaded(i, image) for i, image in enumerate(record.images)))


def json_line(values: object) -> str:
    """Return plain values as a line of JSON that any file can hold: half a character is escaped, as JSON can."""
    line = json.dumps(values, ensure_ascii=False)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        line = json.dumps(values)
    return f"{line}\n"


def check_text(record: Record) -> None:
    """Refuse half a surrogate pair: JSON can write it, UTF-8 and so every file cannot. UserError names the field."""
    texts = {name: getattr(record, name) for name in ("id", "source", "language", "licence")}
    texts |= {f"message {i}": "".join(p.text or "" for p in m.parts) for i, m in enumerate(record.messages)}
    texts |= {f"the label of object {i}": labelled.label for i, labelled in enumerate(record.objects)}
    for where, text in texts.items():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(f"{where} holds half a character (U+{ord(text[error.start]):04X})") from None
