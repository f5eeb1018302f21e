"""Reading records from any location: one after the other, or any one by its number."""

from __future__ import annotations

import hashlib
import json
import posixpath
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Protocol, overload

from vl2.data.record import Record
from vl2.data.store.files import DataFile, Format, find_files
from vl2.data.store.jsonl import JsonlRecords, read_jsonl
from vl2.data.store.parquet import ParquetRecords, read_parquet
from vl2.data.store.place import Found, Problem
from vl2.data.store.tar import TarRecords, read_tar
from vl2.errors import UserError

READERS: dict[Format, Callable[[DataFile], Iterator[Found]]] = {
    "jsonl": read_jsonl,
    "tar": read_tar,
    "parquet": read_parquet,
}


class RecordFile(Protocol):
    """One open file: how many records it holds, and any of them."""

    def __len__(self) -> int: ...

    def find(self, index: int) -> Found: ...


OPENERS: dict[Format, Callable[[DataFile], RecordFile]] = {
    "jsonl": JsonlRecords,
    "tar": TarRecords,
    "parquet": ParquetRecords,
}


def read_records(*locations: str) -> Iterator[Found]:
    """Yield every record of the locations with its images as bytes, and a Problem for each that cannot be read.

    Nothing damaged stops it. UserError, before the first record, for a location where there is nothing.
    """
    files = [file for location in locations for file in find_files(location)]
    return (found for file in files for found in READERS[file.format](file))


def open_random(*locations: str) -> Records:
    """Open the files of the locations for reading any record. UserError for a file that cannot be opened at all."""
    files = [file for location in locations for file in find_files(location)]
    sizes = [(posixpath.basename(file.path), file.size()) for file in files]
    checksum = hashlib.sha256(json.dumps(sizes).encode()).hexdigest()[:16]
    return Records([OPENERS[file.format](file) for file in files], checksum)


class Records(Sequence[Record]):
    """The records of several files under one number. Each is read, images too, when it is asked for."""

    def __init__(self, files: Sequence[RecordFile], checksum: str = "") -> None:
        self._files = files
        self.checksum = checksum  # of the names and sizes of the files; not of their folder, which may move
        self._starts = [0, *accumulate(len(file) for file in files)]

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        """Return a record with its images as bytes. UserError names the place of one that cannot be read."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        found = self.find(index)
        if isinstance(found, Problem):
            raise UserError(str(found))
        return found.record

    def find(self, index: int) -> Found:
        """Return the record and its place, or its problem. IndexError outside the range; negative counts backwards."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"no record {index}, there are {len(self)}")
        index %= len(self)
        file = bisect_right(self._starts, index) - 1
        return self._files[file].find(index - self._starts[file])
