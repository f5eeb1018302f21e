"""The settings of one conversion, and the conversion of rows that may fail. Every converter uses this.

A converter is a function `Conversion -> Iterator[Record | RowProblem]`. A bad row becomes a `RowProblem` and the
conversion continues; a folder that is not in the expected layout raises UserError.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vl2.data.json_stream import Row
from vl2.data.record import Record
from vl2.data.store.entry import check_text
from vl2.errors import UserError

Table = Sequence[Sequence[str]]  # rows of cells, the header first

T = TypeVar("T")

MAX_NAMED = 8  # most items listed in an error message


@dataclass(frozen=True, kw_only=True)
class RowProblem:
    """A row that could not be converted, and the reason in one line."""

    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


Converted = Iterator[Record | RowProblem]


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """The settings of one run of a converter: the files that it reads, and all that its records depend on."""

    folder: Path
    split: str
    source: str
    category: str
    licence: str
    language: str = "en"
    seed: int = 0
    negatives: float = 0.0  # queries for absent labels, per query for a present one
    draw: Callable[[Table], bytes] | None = None  # draws a table as an image file
    names: Mapping[str, str] = field(default_factory=dict)  # label -> its name in `language`, if that is not English

    def random(self, *key: object) -> random.Random:
        """Return a generator seeded by the seed and the key alone, so that row order and sharding do not matter."""
        return random.Random("/".join(map(str, (self.seed, self.source, *key))))

    def name(self, label: str) -> str | None:
        """Return a label in the language of the conversion, or None if it has no name in that language."""
        return label if self.language == "en" else self.names.get(label)


def convert_rows(rows: Iterable[Row], make: Callable[[Any], Iterable[Record | RowProblem]]) -> Converted:
    """Convert rows with `make`. If any record of a row fails, the whole row becomes a RowProblem."""
    for where, row in rows:
        for made in parse_row(where, row, lambda row: [_check_record_text(item) for item in make(row)]):
            if isinstance(made, RowProblem):
                yield made
            else:
                yield from made


def _check_record_text(made: Record | RowProblem) -> Record | RowProblem:
    if isinstance(made, Record):
        check_text(made)
    return made


def parse_row(where: str, row: object, parse: Callable[[Any], T]) -> Iterator[T | RowProblem]:
    """Yield `parse(row)`, or a RowProblem if the row is a UserError or does not have the expected layout."""
    try:
        if isinstance(row, UserError):
            raise row
        found = parse(row)
    except UserError as error:
        yield RowProblem(where=where, why=_one_line(str(error)))
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, OSError, csv.Error) as error:
        # Indexing into JSON of another shape raises these, and so does opening a missing file.
        yield RowProblem(where=where, why=_one_line(f"not in the layout: {type(error).__name__}: {error}")[:200])
    else:
        yield found


def _one_line(text: str) -> str:
    return " ".join(text.split())


def numbered(rows: Iterable[Row]) -> Iterator[Row]:
    """Pair every row with its number, for datasets whose rows have no ids. Rows that are errors count too."""
    for number, (where, row) in enumerate(rows):
        yield where, row if isinstance(row, UserError) else (number, row)


def rows_of_split(rows: Iterable[Row], key: str, split: str) -> Iterator[Row]:
    """Yield the rows whose field `key` names the split, and all rows that are errors.

    Raise UserError after the last row if no row is of the split.
    """
    seen: set[str] = set()
    for where, row in rows:
        if not isinstance(row, dict):
            yield where, row
        elif not isinstance(row.get(key), str):
            yield where, UserError(f"{key} must name a split, got {row.get(key)!r:.80}")
        else:
            seen.add(row[key])
            if row[key] == split:
                yield where, row
    if seen and split not in seen:
        raise UserError(f"no row is of the split {split!r}: there are {', '.join(sorted(seen)[:MAX_NAMED])}")
