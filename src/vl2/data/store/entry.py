"""The results of reading a store: a located record or a located problem, and the parsing of JSON values into them."""

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
    "record",  # the values are not a valid record
    "image",  # an image is missing or cannot be opened
    "size",  # an image's width or height differs from the record's
    "duplicate",  # an earlier record has the same id
    "category",  # the category does not fit the content
    "text",  # a text has an unpaired surrogate
    "encode",  # the processor cannot encode the record
    "long",  # a warning: more tokens than the sequence length
]
WARNINGS: tuple[Kind, ...] = ("long",)


@dataclass(frozen=True, kw_only=True)
class Place:
    """The location of a record in a file.

    It prints as `file:number`, counted from 1 as in editors, or as `file:key` for a tar.
    """

    file: str
    row: int | None = None  # from 0; the line number in JSONL; None for the whole file
    key: str | None = None

    def __str__(self) -> str:
        within = self.key if self.key is not None else None if self.row is None else str(self.row + 1)
        return self.file if within is None else f"{self.file}:{within}"


@dataclass(frozen=True, kw_only=True)
class Located:
    """A record with the bytes of its images, and its location."""

    record: Record
    place: Place


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem with a record or a file."""

    place: Place
    id: str | None  # the record's id, if it could be read
    kind: Kind
    why: str

    @property
    def is_warning(self) -> bool:
        return self.kind in WARNINGS

    def __str__(self) -> str:
        """Return one printable line: location, id, kind and reason."""
        name = "" if self.id is None else f" [{self.id}]"
        line = " ".join(f"{self.place}{name} {self.kind}: {self.why}".split())
        return "".join(c if c.isprintable() else "?" for c in line)

    def to_dict(self) -> dict[str, str | int | None]:
        place = {"file": self.place.file, "row": self.place.row, "key": self.place.key}
        return {**place, "id": self.id, "kind": self.kind, "why": self.why}


Found = Located | Problem


ReadImage = Callable[[str], bytes]  # returns the bytes of an image path; raises UserError if it cannot be read


def parse_json(line: bytes, place: Place, read_image: ReadImage) -> Found:
    """Parse one record from UTF-8 JSON, and read its images."""
    try:
        values = json.loads(line.removeprefix(codecs.BOM_UTF8).decode("utf-8"))
    except UnicodeDecodeError as error:
        return Problem(place=place, id=None, kind="unreadable", why=f"not UTF-8 at byte {error.start}")
    except json.JSONDecodeError as error:
        return Problem(place=place, id=None, kind="unreadable", why=f"not JSON: {error.msg} at character {error.pos}")
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, or excessive nesting
        return Problem(place=place, id=None, kind="unreadable", why=f"JSON that cannot be parsed: {error}")
    return parse_values(values, place, read_image)


def parse_values(values: Any, place: Place, read_image: ReadImage) -> Found:
    """Make a record of JSON values, and read its images."""
    given = values.get("id") if isinstance(values, dict) else None
    name = given if isinstance(given, str) else None
    try:
        record = Record.from_dict(values)
    except (UserError, ValueError, TypeError, OverflowError) as error:  # e.g. 1e400 where an integer is expected
        return Problem(place=place, id=name, kind="record", why=str(error))
    try:
        return Located(record=load_images(record, read_image), place=place)
    except UserError as error:
        return Problem(place=place, id=name, kind="image", why=str(error))


def load_images(record: Record, read_image: ReadImage) -> Record:
    """Return the record with every image path replaced by bytes. Raise UserError if an image cannot be read."""

    def loaded(index: int, image: StoredImage) -> StoredImage:
        if image.path is None:
            return image
        try:
            return replace(image, data=read_image(image.path), path=None)
        except UserError as error:
            raise UserError(f"image {index}: {error}") from None

    return replace(record, images=tuple(loaded(i, image) for i, image in enumerate(record.images)))


def json_line(values: object) -> str:
    """Return values as a line of JSON that UTF-8 can encode; unpaired surrogates are escaped."""
    line = json.dumps(values, ensure_ascii=False)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        line = json.dumps(values)
    return f"{line}\n"


def check_text(record: Record) -> None:
    """Raise UserError if a text field has an unpaired surrogate, which JSON can express but UTF-8 cannot."""
    texts = {name: getattr(record, name) for name in ("id", "source", "language", "licence")}
    texts |= {f"message {i}": "".join(p.text or "" for p in m.parts) for i, m in enumerate(record.messages)}
    texts |= {f"the label of object {i}": labeled.label for i, labeled in enumerate(record.objects)}
    texts["the rejected answer"] = record.rejected
    for where, text in texts.items():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(f"{where} has an unpaired surrogate (U+{ord(text[error.start]):04X})") from None
