"""Rows of a benchmark's public files: Parquet, JSONL, JSON and TSV; images as bytes, base64, files or lists of these.

Every row is a dict. What a benchmark's file must be called is said by patterns, the usual public names first.
"""

from __future__ import annotations

import base64
import binascii
import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vl2.data.convert.layout import find_file, jsonl_rows, parquet_rows, read_list
from vl2.errors import UserError

Row = dict[str, Any]
READABLE = ("parquet", "jsonl", "tsv", "json")


def read_rows(folder: Path, stems: Sequence[str], columns: Sequence[str] = ()) -> Iterator[Row]:
    """Yield the rows of the first stem that has files: `data/test-*` finds test-00000-of-00002.parquet, and so on."""
    for path in find_rows(folder, stems):
        for where, row in _read(path, columns):
            if isinstance(row, UserError):
                raise UserError(f"{path.name}: {row}")
            if not isinstance(row, dict):
                raise UserError(f"{where}: an object is needed, got {type(row).__name__}")
            missing = [name for name in columns if name not in row]
            if missing:
                raise UserError(f"{where} has no {missing[0]}, it has {', '.join(map(str, row))}")
            yield row


def stems_of(split: str, *, tsv: Mapping[str, str] | None = None, folders: Sequence[str] = ("", "data/")) -> list[str]:
    """Return the stems under which the hub's files of a split lie, then the one of VLMEvalKit's file for that split."""
    stems = [f"{folder}{split}{end}" for folder in folders for end in ("-*", "")]
    return [*stems, *([tsv[split]] if tsv and split in tsv else [])]


def find_rows(folder: Path, stems: Sequence[str]) -> list[Path]:
    """Return the files of a part of a benchmark, sorted."""
    for stem in stems:
        for ending in READABLE:
            found = sorted(path for path in folder.glob(f"{stem}.{ending}") if path.is_file())
            if found:
                return found
    raise UserError(f"{folder} has no {' or '.join(stems)} as {', '.join(READABLE)}")


def released_rows(folder: Path, pattern: str, *keys: str) -> Iterator[Row]:
    """Yield the rows of a release's one JSON file of questions, a list under `keys`."""
    for where, row in read_list(find_file(folder, pattern), *keys):
        if not isinstance(row, dict):
            raise UserError(f"{where}: an object is needed, got {type(row).__name__}")
        yield row


def _read(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".parquet":
        yield from parquet_rows([path], columns)
    elif path.suffix == ".jsonl":
        yield from jsonl_rows(path)
    elif path.suffix == ".json":
        yield from read_list(path)
    else:
        csv.field_size_limit(sys.maxsize)  # images are base64 in one field
        with path.open(encoding="utf-8-sig", newline="") as lines:
            for number, row in enumerate(csv.DictReader(lines, delimiter="\t"), start=2):
                yield f"{path.name} line {number}", row


def images_of(value: Any, folder: Path, what: str) -> tuple[Any, ...]:
    """Return the images of a cell: bytes, a struct of bytes and path, base64, a file's name, or a list of these."""
    if isinstance(value, list | tuple):
        return tuple(image for item in value for image in images_of(item, folder, what))
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return (value,)
    if not isinstance(value, str) or not value:
        raise UserError(f"{what} has no image")
    if value.startswith("[") and value.endswith("]"):
        return images_of(json.loads(value.replace("'", '"')), folder, what)
    if len(value) < 256 and (path := _within(folder, value)) is not None:
        return (path,)
    try:
        return (base64.b64decode(value, validate=True),)
    except (binascii.Error, ValueError):
        raise UserError(f"{what}: its image is neither base64 nor a file in {folder}: {value!r:.60}") from None


def _within(folder: Path, name: str) -> Path | None:
    for place in (folder, folder / "images"):
        path = place / name
        if ".." not in Path(name).parts and not Path(name).is_absolute() and path.is_file():
            return path
    return None


def texts(value: Any) -> list[str]:
    """Return a list of texts from a list, a text that is written as a list, or one text."""
    if isinstance(value, list | tuple):
        return [str(item) for item in value]
    if isinstance(value, str) and value[:1] == "[" and value[-1:] == "]":
        for written in (value, value.replace("'", '"')):
            try:
                found = json.loads(written)
            except ValueError:
                continue
            if isinstance(found, list):
                return [str(item) for item in found]
    return [str(value)]


def is_blank(value: Any) -> bool:
    """Tell whether a cell holds nothing: None, a NaN, or the text that a spreadsheet writes for it."""
    return value is None or value != value or (isinstance(value, str) and value.strip().lower() in ("", "nan"))


def options_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the options that stand in columns A, B, C and so on."""
    found = []
    for letter in "ABCDEFGHI":
        if letter not in row or is_blank(row[letter]):
            break
        found.append(str(row[letter]))
    return tuple(found)
