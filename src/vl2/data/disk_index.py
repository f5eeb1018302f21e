"""Rows of a dataset by a key, in a temporary file: joins of annotation files that are larger than the memory.

SQLite keeps the rows, as JSON, in a private file that vanishes when the index is closed or the process ends, and caches
only a few megabytes of it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from vl2.data.json_stream import Row
from vl2.errors import UserError

Json = dict[str, Any]
CACHE_KIB = 16_384
_BATCH = 1_000  # rows inserted at a time
_LARGEST = 2**63 - 1  # of SQLite's integers


class DiskIndex:
    """The rows of each value of a field, in their order. Rows without the field are counted, not kept.

    Raise UserError if a row is an error: a join with half of a file would lose records silently.
    """

    def __init__(self, rows: Iterable[Row], key: str) -> None:
        self.without_key: list[str] = []  # their locations
        # "" is a temporary database on disk. Converters may be advanced by another thread than the one that made them.
        self._database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        for statement in (f"PRAGMA cache_size = -{CACHE_KIB}", "PRAGMA journal_mode = OFF", "PRAGMA synchronous = OFF"):
            self._database.execute(statement)
        # A column without a type keeps the number 1 and the text "1" apart.
        self._database.execute("CREATE TABLE rows (place INTEGER PRIMARY KEY, key, row TEXT)")
        try:
            items = self._items(rows, key)
            while batch := list(islice(items, _BATCH)):
                self._database.execute("BEGIN")
                self._database.executemany("INSERT INTO rows (key, row) VALUES (?, ?)", batch)
                self._database.execute("COMMIT")
            self._database.execute("CREATE INDEX by_key ON rows (key)")
        except sqlite3.Error as error:  # a full disk
            raise UserError(f"cannot write a temporary file for the rows by {key}: {error}") from None

    def _items(self, rows: Iterable[Row], key: str) -> Iterator[tuple[int | str, str]]:
        for where, row in rows:
            if isinstance(row, UserError):
                raise UserError(f"{where}: {row}")
            value = row.get(key) if isinstance(row, dict) else None
            if isinstance(value, int) and abs(value) <= _LARGEST:
                yield int(value), json.dumps(row)
            elif isinstance(value, str) and not _has_surrogate(value):
                yield value, json.dumps(row)
            else:
                self.without_key.append(where)

    def rows(self, key: int | str) -> list[Json]:
        """Return the rows of a key in order, none if there are none."""
        if not isinstance(key, int | str) or (isinstance(key, int) and abs(key) > _LARGEST):
            return []
        found = self._database.execute("SELECT row FROM rows WHERE key IS ? ORDER BY place", (key,))
        return [json.loads(row) for (row,) in found]

    def __getitem__(self, key: int | str) -> Json:
        """Return the last row of a key. Raise KeyError if there is none."""
        found = self.rows(key)
        if not found:
            raise KeyError(key)
        return found[-1]

    def close(self) -> None:
        self._database.close()


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
