"""What every converter stands on: one run of it with its choices, and rows that may fail.

A converter is a function `Conversion -> Iterator[Record | RowProblem]`. A bad row becomes a `RowProblem` and the rest
goes on; only a folder that is not in the layout at all raises UserError.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vl2.data.raw_files import Row
from vl2.data.record import Record
from vl2.data.store.entry import check_text
from vl2.errors import UserError

Table = Sequence[Sequence[str]]  # rows of cells, the header first

T = TypeVar("T")

MAX_NAMED = 8  # things in a list within an error


@dataclass(frozen=True, kw_only=True)
class RowProblem:
    """A row that could not be converted, and why, in one line."""

    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


Converted = Iterator[Record | RowProblem]


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """One run of a converter: what it reads, and the choices that its records depend on."""

    folder: Path
    split: str
    source: str
    category: str
    licence: str
    language: str = "en"
    seed: int = 0
    negatives: float = 0.0  # queries for what is absent, per query for what is there
    draw: Callable[[Table], bytes] | None = None  # draws a table as an image file
    names: Mapping[str, str] = field(default_factory=dict)  # label -> its name in `language`, where that is not English

    def random(self, *key: object) -> random.Random:
        """Return a generator that depends on the seed and the key alone: order and sharding change nothing."""
        return random.Random("/".join(map(str, (self.seed, self.source, *key))))

    def name(self, label: str) -> str | None:
        """Return the label in the job's language, or None where it has no name there."""
        return label if self.language == "en" else self.names.get(label)


def each(rows: Iterable[Row], make: Callable[[Any], Iterable[Record | RowProblem]]) -> Converted:
    """Convert row by row, all of a row or nothing of it."""
    for where, row in rows:
        for made in parsed(where, row, lambda row: [_writable(item) for item in make(row)]):
            if isinstance(made, RowProblem):
                yield made
            else:
                yield from made


def _writable(made: Record | RowProblem) -> Record | RowProblem:
    if isinstance(made, Record):
        check_text(made)
    return made


def parsed(where: str, row: object, parse: Callable[[Any], T]) -> Iterator[T | RowProblem]:
    """Yield what a row is read as, or what is wrong with it."""
    try:
        if isinstance(row, UserError):
            raise row
        found = parse(row)
    except UserError as error:
        yield RowProblem(where=where, why=_one_line(str(error)))
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, OSError, csv.Error) as error:
        # What indexing into JSON of another shape gives, or opening a file that is not there.
        yield RowProblem(where=where, why=_one_line(f"not in the layout: {type(error).__name__}: {error}")[:200])
    else:
        yield found


def _one_line(text: str) -> str:
    return " ".join(text.split())


def numbered(rows: Iterable[Row]) -> Iterator[Row]:
    """Pair every row with its number, for sets whose rows have no ids; the errors among them count too."""
    for number, (where, row) in enumerate(rows):
        yield where, row if isinstance(row, UserError) else (number, row)


def of_split(rows: Iterable[Row], key: str, split: str) -> Iterator[Row]:
    """Yield the rows whose field `key` names the split, and the errors among the others.

    UserError, after the last row, if all are of other splits.
    """
    met: set[str] = set()
    for where, row in rows:
        if not isinstance(row, dict):
            yield where, row
        elif not isinstance(row.get(key), str):
            yield where, UserError(f"{key} must name a split, got {row.get(key)!r:.80}")
        else:
            met.add(row[key])
            if row[key] == split:
                yield where, row
    if met and split not in met:
        raise UserError(f"no row is of the split {split!r}: there are {', '.join(sorted(met)[:MAX_NAMED])}")
