"""Rows of a benchmark's public files: Parquet, JSONL, JSON and TSV; images as bytes, base64, files or lists of these.

Every row is a dict. What a benchmark's file must be called is said by patterns, the usual public names first.
"""

from __future__ import annotations

import ast
import base64
import binascii
import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from vl2.data.raw_files import find_file, jsonl_rows, parquet_rows, read_list
from vl2.errors import UserError

Row = dict[str, Any]
READABLE = ("parquet", "jsonl", "tsv", "json")
LONGEST_INDEX = 64  # characters; in a TSV a picture is longer


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
        yield from _tsv_rows(path)


def _tsv_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a TSV. A picture may be the index of another row, before or after it, as in VLMEvalKit's."""
    pictures: dict[str, str] | None = None
    for number, row in enumerate(_tsv_lines(path), start=2):
        named = row.get("image")
        if _is_index(named):
            # Only now, as most files have no such rows and are read once.
            pictures = _named_pictures(path) if pictures is None else pictures
            if named not in pictures:
                yield path.name, UserError(f"line {number} takes the image of row {named}, which has none of its own")
                return
            row["image"] = pictures[named]
        yield f"{path.name} line {number}", row


def _tsv_lines(path: Path) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # images are base64 in one field
    with path.open(encoding="utf-8-sig", newline="") as lines:
        yield from csv.DictReader(lines, delimiter="\t")


def _named_pictures(path: Path) -> dict[str, str]:
    """Return the pictures that other rows take, by the index of their own row."""
    named = {row["image"] for row in _tsv_lines(path) if _is_index(row.get("image"))}
    own = (row for row in _tsv_lines(path) if row.get("index") in named and row.get("image"))
    return {row["index"]: row["image"] for row in own if not _is_index(row["image"])}


def _is_index(cell: Any) -> TypeGuard[str]:
    return isinstance(cell, str) and len(cell) <= LONGEST_INDEX and cell.isdigit()


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
    if (several := _written_list(value)) is not None:
        return images_of(several, folder, what)
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
    several = _written_list(value) if isinstance(value, str) else value
    return [str(item) for item in several] if isinstance(several, list | tuple) else [str(value)]


def _written_list(text: str) -> list[Any] | None:
    """Return the list that a text is written as, in JSON or as Python prints it; None for any other text."""
    if text[:1] != "[" or text[-1:] != "]":
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(text)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):  # the last two: too many brackets
            continue
        if isinstance(found, list):
            return found
    return None


def golds_of(value: Any) -> list[str]:
    """Return the gold answers of a cell; none where all are blank, as in a test split whose server keeps them."""
    found = [] if is_blank(value) else texts(value)
    return found if has_text(found) else []


def has_text(gold: Any) -> bool:
    """Tell whether a gold answer, or any of several, holds more than blanks."""
    return any(text.strip() for text in texts(gold))


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
