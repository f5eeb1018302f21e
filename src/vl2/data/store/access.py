"""Records at any location: read one after the other or any one by its number, and written.

Files are written whole or not at all, nothing is overwritten, and the same records give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain, islice
from typing import Protocol, overload

from vl2.data.record import Record
from vl2.data.store.entry import Found, Problem, check_text, load_images
from vl2.data.store.jsonl import JsonlRecords, images_folder, read_jsonl, write_jsonl
from vl2.data.store.locations import PART, DataFile, Format, data_file, find_files, format_of
from vl2.data.store.parquet import ParquetRecords, read_parquet, write_parquet
from vl2.data.store.tar import INDEX_ENDING, TarRecords, read_tar, write_index, write_tar
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


def write_records(
    records: Iterable[Record], location: str, *, shard_records: int | None = None, image_folder: str = "."
) -> list[str]:
    """Write records in the format of the location's ending and return the names of the files.

    With `shard_records`, "a.tar" becomes a-00000.tar, a-00001.tar and so on with that many records each. Paths of
    images are relative to `image_folder`; their files are read and stored. Until all is written every file ends in
    .part. UserError for what is there already or cannot be written.
    """
    check_writable(location, shard_records=shard_records)
    folder = data_file(f"{image_folder.rstrip('/')}/records")
    ready = (_ready(record, folder) for record in records)
    written: list[DataFile] = []
    folders: list[DataFile] = []  # of images, made here
    try:
        for file, first, shard in _shards(ready, location, shard_records):
            written.append(file)
            if file.format == "jsonl" and not images_folder(file).exists():
                folders.append(images_folder(file))
            _write(file, first, shard)
        for file in written:
            file.beside(PART).rename(file)
    except BaseException:
        for file in written:
            file.beside(PART).remove()
            if file.format == "tar" and not file.exists():
                file.beside(INDEX_ENDING).remove()
        for folder in folders:
            folder.remove()
        raise
    return [file.name for file in written]


def check_writable(location: str, *, shard_records: int | None = None) -> None:
    """Refuse before the work what would fail after it."""
    format_of(location)
    if shard_records is not None and shard_records < 1:
        raise UserError(f"shard_records must be at least 1, got {shard_records}")
    stem, dot, ending = location.rpartition(".")
    file = data_file(location)
    others = [] if shard_records is None else file.fs.glob(f"{file.path.rpartition('.')[0]}-[0-9]*{dot}{ending}")
    taken = location if file.exists() else f"{stem}-*{dot}{ending}" if others else None
    if taken is not None:
        raise UserError(f"{taken} is there already: choose another name")


def _ready(record: Record, folder: DataFile) -> Record:
    try:
        check_text(record)
        return load_images(record, folder.read_image)
    except UserError as error:
        raise UserError(f"record {record.id!r}: {error}") from None


def _shards(
    records: Iterator[Record], location: str, shard_records: int | None
) -> Iterator[tuple[DataFile, int, Iterator[Record]]]:
    """Yield each file, the number of its first record, and its records, which must be used up before the next."""
    if shard_records is None:
        yield data_file(location), 0, records
        return
    stem, dot, ending = location.rpartition(".")
    for shard, head in enumerate(chain([next(records, None)], records)):
        own = [] if head is None else [head]  # without any record there is one empty shard
        rest = islice(records, shard_records - 1)
        yield data_file(f"{stem}-{shard:05d}{dot}{ending}"), shard * shard_records, chain(own, rest)


def _write(file: DataFile, first: int, records: Iterator[Record]) -> None:
    part = file.beside(PART)
    with part.create() as out:
        if file.format == "jsonl":
            write_jsonl(records, out, file)
        elif file.format == "tar":
            write_tar(records, out, first)
        else:
            write_parquet(records, out)
    if file.format == "tar":
        write_index(file, part)
