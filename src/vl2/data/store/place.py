"""What reading gives: a record and where it lies, or a problem and where that lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vl2.data.record import Record

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
