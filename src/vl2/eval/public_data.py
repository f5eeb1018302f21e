"""Read the public files of benchmarks row by row, from a folder or downloaded from the Hugging Face hub.

Files are Parquet, JSONL, JSON or TSV; images are bytes, base64, files or lists of these. Every row is a dict. Files are
found by name patterns, the common public names first.
"""

from __future__ import annotations

import ast
import base64
import binascii
import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

from vl2.data.json_stream import list_rows
from vl2.data.raw_files import find_file, jsonl_rows, parquet_rows
from vl2.errors import UserError

Row = dict[str, Any]
READABLE = ("parquet", "jsonl", "tsv", "json")
LONGEST_INDEX = 64  # characters; a longer cell of a TSV is an image


def read_rows(folder: Path, stems: Sequence[str], columns: Sequence[str] = ()) -> Iterator[Row]:
    """Yield the rows of the first stem that matches files; `data/test-*` matches data/test-00000-of-00002.parquet.

    Raise UserError for a missing file or column, or a row that is not an object.
    """
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
    """Return the stems of a split's files on the hub, followed by the stem of VLMEvalKit's TSV for the split."""
    stems = [f"{folder}{split}{end}" for folder in folders for end in ("-*", "")]
    return [*stems, *([tsv[split]] if tsv and split in tsv else [])]


def find_rows(folder: Path, stems: Sequence[str]) -> list[Path]:
    """Return the files of the first stem that matches any, sorted. Raise UserError if none does."""
    for stem in stems:
        for ending in READABLE:
            found = sorted(path for path in folder.glob(f"{stem}.{ending}") if path.is_file())
            if found:
                return found
    raise UserError(f"{folder} has no {' or '.join(stems)} as {', '.join(READABLE)}")


def released_rows(folder: Path, pattern: str, *keys: str) -> Iterator[Row]:
    """Yield the rows of a release's JSON file of questions, which is a list at the path of `keys`."""
    for where, row in checked_rows(list_rows(find_file(folder, pattern), *keys)):
        if not isinstance(row, dict):
            raise UserError(f"{where}: an object is needed, got {type(row).__name__}")
        yield row


def checked_rows(rows: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield the rows; raise the first error among them. A benchmark is never run on a part of its items."""
    for where, row in rows:
        if isinstance(row, UserError):
            raise UserError(f"{where}: {row}")
        yield where, row


def _read(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".parquet":
        yield from parquet_rows([path], columns)
    elif path.suffix == ".jsonl":
        yield from jsonl_rows(path)
    elif path.suffix == ".json":
        yield from list_rows(path)
    else:
        yield from _tsv_rows(path)


def _tsv_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a TSV. As in VLMEvalKit, an image cell may be the index of another row that has the image."""
    pictures: dict[str, str] | None = None
    for number, row in enumerate(_tsv_lines(path), start=2):
        named = row.get("image")
        if _is_index(named):
            # Read the file a second time only if it has such rows; most files have none.
            pictures = _shared_images(path) if pictures is None else pictures
            if named not in pictures:
                yield path.name, UserError(f"line {number} takes the image of row {named}, which has none of its own")
                return
            row["image"] = pictures[named]
        yield f"{path.name} line {number}", row


def _tsv_lines(path: Path) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # images are base64 in one field
    with path.open(encoding="utf-8-sig", newline="") as lines:
        yield from csv.DictReader(lines, delimiter="\t")


def _shared_images(path: Path) -> dict[str, str]:
    """Return the images that other rows refer to, by the index of the row that has them."""
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
    if (several := _parse_list(value)) is not None:
        return images_of(several, folder, what)
    if len(value) < 256 and (path := _find_image_file(folder, value)) is not None:
        return (path,)
    try:
        return (base64.b64decode(value, validate=True),)
    except (binascii.Error, ValueError):
        raise UserError(f"{what}: its image is neither base64 nor a file in {folder}: {value!r:.60}") from None


def _find_image_file(folder: Path, name: str) -> Path | None:
    for place in (folder, folder / "images"):
        path = place / name
        if ".." not in Path(name).parts and not Path(name).is_absolute() and path.is_file():
            return path
    return None


def texts(value: Any) -> list[str]:
    """Return a list of texts from a list, a string that represents a list, or a single value."""
    several = _parse_list(value) if isinstance(value, str) else value
    return [str(item) for item in several] if isinstance(several, list | tuple) else [str(value)]


def _parse_list(text: str) -> list[Any] | None:
    """Parse a list in JSON or Python notation; return None for any other text."""
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
    """Return the gold answers of a cell; none if all are blank, as in test splits with withheld answers."""
    found = [] if is_blank(value) else texts(value)
    return found if has_text(found) else []


def has_text(gold: Any) -> bool:
    """Return whether a gold answer, or any of several, is not blank."""
    return any(text.strip() for text in texts(gold))


def is_blank(value: Any) -> bool:
    """Return whether a cell is empty: None, NaN, a blank text or "nan"."""
    return value is None or value != value or (isinstance(value, str) and value.strip().lower() in ("", "nan"))


def options_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the options in the columns A, B, C and so on."""
    found = []
    for letter in "ABCDEFGHI":
        if letter not in row or is_blank(row[letter]):
            break
        found.append(str(row[letter]))
    return tuple(found)


HUB = "hub"


@dataclass(frozen=True)
class Dataset:
    """A dataset on the hub, and the files of it that a task needs."""

    name: str  # owner/name
    files: tuple[str, ...]  # glob patterns, in which {split} stands for the split


@cache
def fetch(dataset: Dataset, split: str) -> Path:
    """Return the folder of a dataset in the hub's cache, and download it if necessary.

    Only the data files of the split are downloaded, no code. Raise UserError if the dataset cannot be downloaded;
    another try resumes the download.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    patterns = [pattern.replace("{split}", split) for pattern in dataset.files]
    try:
        folder = Path(snapshot_download(dataset.name, repo_type="dataset", allow_patterns=patterns))
    except GatedRepoError:
        raise UserError(f"{dataset.name} is gated: accept its terms on the hub, then `hf auth login`") from None
    except RepositoryNotFoundError:
        raise UserError(f"there is no dataset {dataset.name} on the hub (private ones need a login)") from None
    except LocalEntryNotFoundError:
        raise UserError(
            f"{dataset.name} is not in the local cache and the hub cannot be reached: give local files with --data"
        ) from None
    except Exception as error:  # the transport library and its exceptions change between hub versions
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"downloading {dataset.name} failed: {reason}; try again: finished files are kept") from error
    if not any(path.is_file() for pattern in patterns for path in folder.glob(pattern)):
        raise UserError(f"{dataset.name} has no {' or '.join(patterns)}: give local files with --data")
    return folder
