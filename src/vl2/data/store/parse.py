"""Plain values to a record with its images, or to the problem that they have."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from vl2.data.record import Record, StoredImage
from vl2.data.store.place import Found, Located, Place, Problem
from vl2.errors import UserError

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
