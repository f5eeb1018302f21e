"""A table of all extractions: a row for each document, a column for each value, as CSV or Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vl2.errors import UserError
from vl2.files import write_whole
from vl2.optional_imports import install_extra

TABLES = (".csv", ".parquet")


def rows(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each output line. Objects become columns such as "buyer.name"; lists are JSON texts."""
    return [{"id": line["id"], "error": line.get("error"), **_flat(line.get("value") or {})} for line in lines]


def write_table(lines: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write the table. Raise UserError if the suffix is neither .csv nor .parquet, or if it cannot be written."""
    made = rows(lines)
    columns = list(dict.fromkeys(name for row in made for name in row))
    if path.suffix.lower() == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(made)
        write_whole(path, text.getvalue())
        return
    check_table(path)
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({name: _column([row.get(name) for row in made]) for name in columns})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    write_whole(path, sink.getvalue())


def check_table(path: Path) -> None:
    """Raise UserError, before any work, if a table of this name could not be written."""
    if path.suffix.lower() not in TABLES:
        raise UserError(f"a table must be a .csv or .parquet file, got {path}")
    if path.suffix.lower() == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise UserError(f"Parquet files need pyarrow: {install_extra('data')}") from None


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inside in value.items():
        if isinstance(inside, Mapping):
            flat |= _flat(inside, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(inside, ensure_ascii=False) if isinstance(inside, list) else inside
    return flat


def _column(values: list[Any]) -> list[Any]:
    """Return values of one type, which a column of Parquet needs: texts where they differ in type."""
    types = {float if type(value) is int else type(value) for value in values if value is not None}
    if len(types) <= 1:
        return values
    return [None if value is None else value if isinstance(value, str) else json.dumps(value) for value in values]
