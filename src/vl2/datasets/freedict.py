"""FreeDict's English-Chinese dictionary, as pages of entries.

    freedict-en-zh.parquet   headword, pos, senses: list of {zh: list of text, definition}

Made by machine from Wiktionary: part of the translations of verbs and function words is wrong: only nouns are taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from vl2.data.raw_files import Json, Row, find_files, parquet_rows
from vl2.data.record import Record
from vl2.datasets.conversion import Conversion, Converted, each
from vl2.datasets.text_table import document
from vl2.errors import UserError

ENTRIES_PER_PAGE = 24


def read(conversion: Conversion) -> Converted:
    files = find_files(conversion.folder, f"{conversion.split}.parquet", "freedict-en-zh.parquet")
    return each(_pages(parquet_rows(files, ("headword", "senses"))), lambda page: _make(conversion, *page))


def _pages(rows: Iterator[Row]) -> Iterator[Row]:
    """Gather nouns into pages; a file that cannot be read is passed on."""
    number = 0
    while rows_of_page := list(islice(rows, ENTRIES_PER_PAGE)):
        failed = [(where, row) for where, row in rows_of_page if isinstance(row, UserError)]
        yield from failed
        entries = [row for _, row in rows_of_page if isinstance(row, dict) and row.get("pos") in ("n", "pn")]
        if entries:
            yield rows_of_page[0][0], (number, entries)
            number += 1


def _make(conversion: Conversion, number: int, entries: list[Json]) -> Iterator[Record]:
    yield document(conversion, number, "\n".join(_line(entry) for entry in entries))


def _line(entry: Json) -> str:
    senses = []
    for sense in entry["senses"]:
        words = "，".join(sense["zh"])
        senses.append(f"{words} ({sense['definition']})" if sense.get("definition") else words)
    return f"{entry['headword']}: {'; '.join(senses)}"
