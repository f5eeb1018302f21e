"""Validate records for training: the checks that need the images, the tokens or the other records.

A bad record does not stop the run; its problems are reported and the next record is checked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from vl2.data.record import Record
from vl2.data.store.entry import Found, Kind, Located, Place, Problem, check_text
from vl2.data.stored_image import open_stored
from vl2.errors import UserError
from vl2.process.processor import Processor


@dataclass(frozen=True, kw_only=True)
class Checked:
    """One item that was read, and its problems."""

    located: Located | None  # None if no record could be read
    problems: tuple[Problem, ...] = ()

    @property
    def good(self) -> Record | None:
        """The record if it has no problems other than warnings, otherwise None."""
        is_good = all(problem.is_warning for problem in self.problems)
        return self.located.record if self.located is not None and is_good else None


@dataclass(kw_only=True)
class Summary:
    """The running counts of a validation."""

    good: int = 0
    bad: int = 0
    by_kind: Counter[Kind] = field(default_factory=Counter)

    def add(self, checked: Checked) -> None:
        self.good += checked.good is not None
        self.bad += checked.good is None
        self.by_kind.update(problem.kind for problem in checked.problems)

    def to_dict(self) -> dict[str, Any]:
        return {"good": self.good, "bad": self.bad, "by_kind": dict(sorted(self.by_kind.items()))}


def validate(
    found: Iterable[Found], *, processor: Processor | None = None, max_tokens: int | None = None
) -> Iterator[Checked]:
    """Yield every item with its problems. With a processor, every record is also encoded.

    A record with more than `max_tokens` tokens gets a warning. If several records have the same id, all but the first
    are bad.
    """
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"max_tokens must be at least 1, got {max_tokens}")
    seen: dict[str, Place] = {}
    for item in found:
        if isinstance(item, Problem):
            yield Checked(located=None, problems=(item,))
            continue
        faults = list(_faults(item.record, seen, processor, max_tokens))
        seen.setdefault(item.record.id, item.place)
        yield Checked(
            located=item,
            problems=tuple(Problem(place=item.place, id=item.record.id, kind=kind, why=why) for kind, why in faults),
        )


def _faults(
    record: Record, seen: dict[str, Place], processor: Processor | None, max_tokens: int | None
) -> Iterator[tuple[Kind, str]]:
    if record.id in seen:
        yield "duplicate", f"{seen[record.id]} has the same id"
    if record.category == "text" and record.images:
        yield "category", f"category text is for records without images, this one has {len(record.images)}"
    try:
        check_text(record)
    except UserError as error:
        yield "text", str(error)
    images: list[Image.Image] = []
    for index, stored in enumerate(record.images):
        try:
            image = open_stored(stored)
        except UserError as error:
            yield "image", f"image {index}: {error}"
            continue
        images.append(image)
        if image.size != (stored.width, stored.height):
            real = f"{image.width} x {image.height} px"
            yield "size", f"image {index} is {real} upright, the record says {stored.width} x {stored.height}"
    if processor is not None and len(images) == len(record.images):
        yield from _encoding_faults(record, images, processor, max_tokens)


def _encoding_faults(
    record: Record, images: list[Image.Image], processor: Processor, max_tokens: int | None
) -> Iterator[tuple[Kind, str]]:
    try:
        length = len(processor.encode(record.to_turns(images), train=True, name=record.id))
        if record.rejected:
            rejected = record.with_rejected()
            length = max(length, len(processor.encode(rejected.to_turns(images), train=True, name=record.id)))
    except UserError as error:
        yield "encode", str(error)
    except Exception as error:  # a bug that one record triggers must not end a run over millions
        yield "encode", f"{type(error).__name__}: {error}"
    else:
        if max_tokens is not None and length > max_tokens:
            yield "long", f"{length} tokens, the sequence length is {max_tokens}"
