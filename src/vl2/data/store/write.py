"""Writing records: whole files or none, nothing overwritten, the same bytes for the same records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice

from vl2.data.record import Record
from vl2.data.store.files import PART, DataFile, data_file, format_of
from vl2.data.store.jsonl import images_folder, write_jsonl
from vl2.data.store.parquet import write_parquet
from vl2.data.store.parse import check_text, load_images
from vl2.data.store.tar import INDEX_ENDING, write_index, write_tar
from vl2.errors import UserError


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
