"""Read records in order or by number, and write them, at any location and in any format.

Writing is atomic and deterministic: a file appears complete or not at all, nothing is overwritten, and the same
records give the same bytes.
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
    """An open file of records with random access."""

    def __len__(self) -> int: ...

    def find(self, index: int) -> Found: ...


OPENERS: dict[Format, Callable[[DataFile], RecordFile]] = {
    "jsonl": JsonlRecords,
    "tar": TarRecords,
    "parquet": ParquetRecords,
}


def read_records(*locations: str) -> Iterator[Found]:
    """Yield every record of the locations with its images as bytes, or a Problem if it cannot be read.

    Damaged data does not stop the iteration. Raise UserError before the first record if a location has no records.
    """
    files = [file for location in locations for file in find_files(location)]
    return (found for file in files for found in READERS[file.format](file))


def open_random(*locations: str) -> Records:
    """Open the locations for random access to their records. Raise UserError if a file cannot be opened."""
    files = [file for location in locations for file in find_files(location)]
    sizes = [(posixpath.basename(file.path), file.size()) for file in files]
    checksum = hashlib.sha256(json.dumps(sizes).encode()).hexdigest()[:16]
    return Records([OPENERS[file.format](file) for file in files], checksum)


class Records(Sequence[Record]):
    """A sequence of the records of several files. A record and its images are read on access."""

    def __init__(self, files: Sequence[RecordFile], checksum: str = "") -> None:
        self._files = files
        self.checksum = checksum  # of the names and sizes of the files, not of their folder, which may move
        self._starts = [0, *accumulate(len(file) for file in files)]

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        """Return a record with its images as bytes. Raise a UserError with its location if it cannot be read."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        found = self.find(index)
        if isinstance(found, Problem):
            raise UserError(str(found))
        return found.record

    def find(self, index: int) -> Found:
        """Return the record and its location, or the problem with it.

        Negative numbers count from the end. Raise IndexError if the number is out of range.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"no record {index}, there are {len(self)}")
        index %= len(self)
        file = bisect_right(self._starts, index) - 1
        return self._files[file].find(index - self._starts[file])


def write_records(
    records: Iterable[Record], location: str, *, shard_records: int | None = None, image_folder: str = "."
) -> list[str]:
    """Write records in the format of the location's ending, and return the names of the files.

    With `shard_records`, "a.tar" becomes a-00000.tar, a-00001.tar and so on, with that many records each. Image paths
    are relative to `image_folder`; the image files are read and stored with the records. Files have the ending .part
    until all are written. Raise UserError if a file already exists or cannot be written.
    """
    check_writable(location, shard_records=shard_records)
    folder = data_file(f"{image_folder.rstrip('/')}/records")
    ready = (_check_and_load(record, folder) for record in records)
    written: list[DataFile] = []
    folders: list[DataFile] = []  # image folders created here, to remove after an error
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
    """Raise UserError if the location cannot be written because of its ending, its shards or existing files.

    Callers use this to fail before long work instead of after it.
    """
    format_of(location)
    if shard_records is not None and shard_records < 1:
        raise UserError(f"shard_records must be at least 1, got {shard_records}")
    stem, dot, ending = location.rpartition(".")
    file = data_file(location)
    others = [] if shard_records is None else file.fs.glob(f"{file.path.rpartition('.')[0]}-[0-9]*{dot}{ending}")
    taken = location if file.exists() else f"{stem}-*{dot}{ending}" if others else None
    if taken is not None:
        raise UserError(f"{taken} already exists: choose another name")


def _check_and_load(record: Record, folder: DataFile) -> Record:
    try:
        check_text(record)
        return load_images(record, folder.read_image)
    except UserError as error:
        raise UserError(f"record {record.id!r}: {error}") from None


def _shards(
    records: Iterator[Record], location: str, shard_records: int | None
) -> Iterator[tuple[DataFile, int, Iterator[Record]]]:
    """Yield each file, the number of its first record, and its records, which the caller must exhaust first."""
    if shard_records is None:
        yield data_file(location), 0, records
        return
    stem, dot, ending = location.rpartition(".")
    for shard, head in enumerate(chain([next(records, None)], records)):
        own = [] if head is None else [head]  # without any records, one empty shard is written
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
