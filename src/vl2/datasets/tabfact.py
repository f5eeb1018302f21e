"""TabFact: statements that tables of Wikipedia entail or refute.

    collected_data/r1_training_all.json (and r2)    {"1-24143253-5.html.csv": [[statement], [0 or 1], title]}
    data/all_csv/1-24143253-5.html.csv              cells between `#`, the header first
    data/train_id.json, val_id.json, test_id.json   the names of each split

The tables are text: drawn with `draw`, or written into the first question.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from vl2.data.raw_files import Row, find_file, find_files, read_json, read_list
from vl2.data.record import Record
from vl2.datasets.conversion import Conversion, Converted, Table, each
from vl2.datasets.wikitables import ask_table
from vl2.errors import UserError


def read(conversion: Conversion) -> Converted:
    ids = find_file(conversion.folder, f"data/{conversion.split}_id.json")
    wanted = {name for _, name in read_list(ids) if isinstance(name, str)}
    rows: list[Row] = []
    for path in find_files(conversion.folder, "collected_data/r*_training_all.json"):
        content = read_json(path)
        if not isinstance(content, dict):
            raise UserError(f"{path.name} must hold an object of statements by table")
        part = path.name.split("_")[0]
        rows += [(f"{path.name} {name}", (part, name, row)) for name, row in content.items() if name in wanted]

    def make(row: tuple[str, str, tuple[list[str], list[int], str]]) -> Iterator[Record]:
        part, name, (statements, labels, title) = row
        table = _read_table(conversion.folder, name)
        turns = [
            (f"{statement.strip()}\nIs this true of the table? Answer yes or no.", "Yes" if label else "No")
            for statement, label in zip(statements, labels, strict=True)
        ]
        yield ask_table(conversion, f"{part}-{name.split('.')[0]}", table, turns, title=title)

    return each(rows, make)


def _read_table(folder: Path, name: str) -> Table:
    if not re.fullmatch(r"[\w-]+\.html\.csv", name):
        raise UserError(f"a table must be named NAME.html.csv, got {name!r}")
    with (folder / "data" / "all_csv" / name).open(encoding="utf-8", newline="") as lines:
        return list(csv.reader(lines, delimiter="#", quoting=csv.QUOTE_NONE))
