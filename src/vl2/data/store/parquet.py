"""Parquet: one record per row in nested columns, with images as bytes, compressed with zstd.

Row groups are small, because random access to one record reads its whole row group.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import IO, TYPE_CHECKING, Any

from vl2.data.record import Record
from vl2.data.store.entry import Found, Place, Problem, parse_values
from vl2.data.store.locations import DataFile, needs_extra
from vl2.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

GROUP_ROWS = 64
GROUP_BYTES = 4_000_000  # of images
BATCH_ROWS = 16
MAX_NAMED_ROWS = 1_000_000  # a damaged footer may claim any number of rows


def schema() -> pa.Schema:
    """Return the Arrow schema, whose columns are the keys of a record."""
    with needs_extra("Parquet"):
        import pyarrow as pa

    part = pa.struct({"type": pa.string(), "text": pa.string(), "image": pa.int64()})
    message = pa.struct({"role": pa.string(), "content": pa.list_(part), "evidence": pa.list_(pa.int64())})
    image = pa.struct({"bytes": pa.binary(), "path": pa.string(), "width": pa.int64(), "height": pa.int64()})
    labeled = pa.struct(
        {"image": pa.int64(), "label": pa.string(), "boxes_px": pa.list_(pa.list_(pa.float64()))},
    )
    texts = {name: pa.string() for name in ("id", "source", "category", "language", "licence")}
    nested = {"messages": pa.list_(message), "images": pa.list_(image), "objects": pa.list_(labeled)}
    return pa.schema({**texts, **nested, "rejected": pa.string()})


def read_parquet(file: DataFile) -> Iterator[Found]:
    """Yield the record or problem of every row. A row group that cannot be decoded gives one problem per row."""
    with needs_extra("Parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    try:
        with file.open() as raw:
            table = pq.ParquetFile(raw)
            start = 0
            for group in range(table.metadata.num_row_groups):
                rows = table.metadata.row_group(group).num_rows
                yield from _read_group(file, table, group, start, rows)
                start += rows
    except (UserError, OSError, ValueError, pa.ArrowException) as error:
        yield Problem(place=Place(file=file.name), id=None, kind="unreadable", why=f"not Parquet: {_first_line(error)}")


def _read_group(file: DataFile, table: Any, group: int, start: int, rows: int) -> Iterator[Found]:
    import pyarrow as pa

    done = 0
    try:
        for batch in table.iter_batches(batch_size=BATCH_ROWS, row_groups=[group]):
            for found in _read_batch(file, batch, start + done):
                yield found
                done += 1
    except (OSError, ValueError, pa.ArrowException) as error:
        why = f"row group {group} is damaged: {_first_line(error)}"
        lost = range(start + done, start + rows)
        if len(lost) > MAX_NAMED_ROWS:
            why, lost = f"{why} ({len(lost)} rows from here on)", lost[:1]
        for row in lost:
            yield Problem(place=Place(file=file.name, row=row), id=None, kind="unreadable", why=why)


def _read_batch(file: DataFile, batch: Any, start: int) -> Iterator[Found]:
    import pyarrow as pa

    try:
        rows = batch.to_pylist()
    except (ValueError, pa.ArrowException):  # some row is damaged: convert each alone, at a third of the speed
        for index in range(batch.num_rows):
            yield _read_row(file, batch, index, start + index)
        return
    for row, values in enumerate(rows, start):
        yield parse_values(values, Place(file=file.name, row=row), file.read_image)


def _read_row(file: DataFile, rows: Any, index: int, row: int) -> Found:
    """Convert one row of a batch or table, so that text that is not UTF-8 affects its own row only."""
    import pyarrow as pa

    place = Place(file=file.name, row=row)
    try:
        (values,) = rows.slice(index, 1).to_pylist()
    except (ValueError, pa.ArrowException) as error:
        return Problem(place=place, id=None, kind="unreadable", why=_first_line(error))
    return parse_values(values, place, file.read_image)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


class ParquetRecords:
    """Random access to the records of a Parquet file. The row group read last is cached."""

    def __init__(self, file: DataFile) -> None:
        with needs_extra("Parquet"):
            import pyarrow as pa
            import pyarrow.parquet as pq
        self._file = file
        try:
            with file.open() as raw:
                self._metadata = pq.ParquetFile(raw).metadata
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(f"{file.name} is not Parquet: {_first_line(error)}") from None
        groups = range(self._metadata.num_row_groups)
        self._starts: list[int] = [0, *accumulate(self._metadata.row_group(group).num_rows for group in groups)]
        self._kept: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return self._starts[-1]

    def find(self, index: int) -> Found:
        import pyarrow as pa

        group = bisect_right(self._starts, index) - 1
        try:
            table = self._read_cached_group(group)
        except (UserError, OSError, ValueError, pa.ArrowException) as error:
            place = Place(file=self._file.name, row=index)
            return Problem(place=place, id=None, kind="unreadable", why=_first_line(error))
        return _read_row(self._file, table, index - self._starts[group], index)

    def _read_cached_group(self, group: int) -> Any:
        import pyarrow.parquet as pq

        kept, table = self._kept
        if kept != group:
            with self._file.open() as raw:
                table = pq.ParquetFile(raw, metadata=self._metadata).read_row_group(group, use_threads=False)
            self._kept = (group, table)  # one atomic assignment, because threads share this object
        return table

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": (-1, None)}


def write_parquet(records: Iterable[Record], out: IO[bytes]) -> None:
    """Write records in row groups of at most GROUP_ROWS rows and about GROUP_BYTES bytes of images."""
    columns = schema()
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [field.name for field in columns if field.type == pa.string()]
    with pq.ParquetWriter(out, columns, compression="zstd", use_dictionary=texts) as writer:
        for rows in _groups(records):
            writer.write_table(pa.Table.from_pylist(rows, schema=columns))


def _groups(records: Iterable[Record]) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    size = 0
    for record in records:
        rows.append(record.to_dict(encode_bytes=False))
        size += sum(len(image.data or b"") for image in record.images)
        if len(rows) == GROUP_ROWS or size >= GROUP_BYTES:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows
