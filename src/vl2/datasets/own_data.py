"""Whatever a person has to train on, as one stream of records: which of four kinds it is, and how it is read.

records   a store of records, see docs/record.md
llava     LLaVA's JSON or JSONL of conversations, see `conversation_sets.py`
table     CSV, TSV or JSONL of questions and answers, see `own_table.py`
folder    one of these three in a folder, with its images
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from vl2.data.record import Record
from vl2.data.store import Found, Located, Place, Problem, read_records
from vl2.data.store.files import ENDINGS, data_file
from vl2.data.store.parse import load_images
from vl2.data.store.tar import INDEX_ENDING
from vl2.datasets.conversation_sets import read_llava
from vl2.datasets.conversion import Conversion, RowProblem
from vl2.datasets.own_table import table_records, table_rows
from vl2.errors import UserError
from vl2.paths import local_path

Kind = Literal["records", "llava", "table"]

TABLES = (".csv", ".tsv")
LISTS = (".jsonl", ".json")
_SHOWN = 5


def read_own(location: str) -> Iterator[Found]:
    """Yield every record with the bytes of its images, and a problem for each row that cannot be one.

    UserError, before the first, where there is nothing that can be read.
    """
    kind, path = find_own(location)
    if kind == "records":
        return read_records(location if path is None else str(path))
    assert path is not None
    conversion = Conversion(folder=path.parent, split=path.stem, source=path.stem, category="vqa", licence="unknown")
    if kind == "table":
        return _with_images(conversion, table_records(conversion, table_rows(path)))
    return _with_images(conversion, ((_where(item), _made(item)) for item in read_llava(conversion, path)))


def find_own(location: str) -> tuple[Kind, Path | None]:
    """Return what kind of data lies at a location, and the file. None for a store that is more than one local file."""
    path = local_path(location)
    if path.is_file():
        return kind_of(path), path
    if not path.is_dir():
        if "://" in location or any(sign in location for sign in "*?["):
            return "records", None
        raise UserError(f"no file or folder {location}")
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in (*TABLES, *LISTS))
    own = [file for file in found if not file.name.endswith(INDEX_ENDING) and kind_of(file) != "records"]
    if not own:
        if any(file.suffix.lower() in ENDINGS for file in path.rglob("*")):
            return "records", path
        raise UserError(
            f"{location} holds no records and no table (.csv, .tsv, .jsonl, .json) of questions and answers"
        )
    if len(own) > 1:
        names = ", ".join(file.name for file in own[:_SHOWN])
        raise UserError(f"{location} holds several tables: name the one to use ({names})")
    return kind_of(own[0]), own[0]


def kind_of(path: Path) -> Kind:
    """Return the kind of one file, by its ending and, for JSONL, its first line. UserError for another ending."""
    ending = path.suffix.lower()
    if ending in TABLES:
        return "table"
    if ending == ".json":
        return "llava"
    if ending == ".jsonl":
        return _kind_of_lines(path)
    if ending in ENDINGS:
        return "records"
    raise UserError(f"data is in {', '.join((*TABLES, *LISTS, '.parquet', '.tar'))}, got {path.name}")


def _kind_of_lines(path: Path) -> Kind:
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as lines:
            first = json.loads(next((line for line in lines if line.strip()), "null"))
    except (OSError, ValueError, RecursionError):
        return "records"  # whose reader says what is wrong with each line
    if isinstance(first, dict) and "messages" not in first:
        return "llava" if "conversations" in first else "table"
    return "records"


def _with_images(conversion: Conversion, made: Iterable[tuple[str, Record | UserError]]) -> Iterator[Found]:
    folder = data_file(f"{conversion.folder}/records")
    for where, item in made:
        place = Place(file=where)
        if isinstance(item, UserError):
            yield Problem(place=place, id=None, kind="record", why=str(item))
            continue
        try:
            yield Located(record=load_images(item, folder.read_image), place=place)
        except UserError as error:
            yield Problem(place=place, id=item.id, kind="image", why=str(error))


def _where(item: Record | RowProblem) -> str:
    return item.id if isinstance(item, Record) else item.where


def _made(item: Record | RowProblem) -> Record | UserError:
    return item if isinstance(item, Record) else UserError(item.why)
