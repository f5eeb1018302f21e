"""Converters of datasets about tables as text, which can be drawn as images: WikiTableQuestions and TabFact."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from vl2.data.json_stream import Row, list_rows, object_rows
from vl2.data.raw_files import Json, find_file, find_files, image_bytes, parquet_rows, read_text
from vl2.data.record import Record
from vl2.datasets.conversion import Conversion, Converted, RowProblem, Table, convert_rows, parse_row
from vl2.datasets.question_answers import Turn, converse, short_question
from vl2.errors import UserError

MAX_TEXT = 6000  # characters of a table as text; that is up to 4,000 tokens, because cells are short and many

_ESCAPES = {"n": "\n", "p": "|", "\\": "\\"}


@dataclass(frozen=True, kw_only=True)
class _Question:
    id: str
    table: str  # the table's name
    turn: Turn


def read_wikitables(conversion: Conversion) -> Converted:
    r"""Read WikiTableQuestions: questions about tables of Wikipedia.

    1. Files: data/training.tsv (id, utterance, context, targetValue) and csv/204-csv/590.csv, where a backslash
       escapes a quote. In the TSV, `|` separates answers; `\p` is a bar, `\n` a line break and `\\` a backslash.
    2. Parquet: questions-*.parquet (id, table_id, question, answers) and tables-*.parquet (table_id, csv as in
       RFC 4180).

    The tables are text. With `draw`, a table becomes one image with all its questions as turns, so that no image is
    stored twice. Without it, the table is written into each question.
    """
    if any(conversion.folder.glob("questions*.parquet")):
        return _read_parquet(conversion)
    name = {"train": "training", "test": "pristine-unseen-tables"}.get(conversion.split, conversion.split)
    path = find_file(conversion.folder, f"data/{name}.tsv")
    lines = read_text(path).split("\n")
    rows: list[Row] = [(f"{path.name} line {i}", line) for i, line in enumerate(lines[1:], start=2) if line]

    def parse(line: str) -> _Question:
        cells = line.split("\t")
        if len(cells) != 4:
            raise UserError(f"a line must have 4 cells, got {len(cells)}")
        id, question, context, target = cells
        answers = [unescape(answer) for answer in target.split("|")]
        return _Question(id=id, table=context, turn=_turn(unescape(question), answers))

    return _question_records(conversion, rows, parse, lambda name: _read_wikitable(conversion.folder, name))


def _read_parquet(conversion: Conversion) -> Converted:
    tables = {}
    for where, row in parquet_rows(find_files(conversion.folder, "tables*.parquet"), ("table_id", "csv")):
        if isinstance(row, UserError):
            raise UserError(f"{where}: {row}")
        tables[row["table_id"]] = row["csv"]
    columns = ("id", "table_id", "question", "answers")
    questions = parquet_rows(find_files(conversion.folder, "questions*.parquet"), columns)

    def parse(row: Json) -> _Question:
        return _Question(id=row["id"], table=row["table_id"], turn=_turn(row["question"], row["answers"]))

    return _question_records(
        conversion, questions, parse, lambda name: list(csv.reader(io.StringIO(tables[name], newline="")))
    )


def _turn(question: str, answers: list[str]) -> Turn:
    return short_question(question), ", ".join(answers)


def _question_records(
    conversion: Conversion, rows: Iterable[Row], parse: Callable[[Any], _Question], find_table: Callable[[str], Table]
) -> Converted:
    """Make one record per question, or per table if tables are drawn."""

    def make(row: Any) -> Iterator[Record]:
        asked = parse(row)
        yield ask_table(conversion, asked.id, find_table(asked.table), [asked.turn])

    def make_together(asked: list[_Question]) -> Iterator[Record]:
        yield ask_table(conversion, asked[0].id, find_table(asked[0].table), [question.turn for question in asked])

    if conversion.draw is None:
        yield from convert_rows(rows, make)
        return
    groups: dict[str, tuple[str, list[_Question]]] = {}
    for where, row in rows:
        for found in parse_row(where, row, parse):
            if isinstance(found, RowProblem):
                yield found
            else:
                groups.setdefault(found.table, (where, []))[1].append(found)
    yield from convert_rows(groups.values(), make_together)


def ask_table(conversion: Conversion, id: str, table: Table, turns: Sequence[Turn], *, title: str = "") -> Record:
    """Return a record of questions about a table, which is drawn or, without `draw`, precedes the first question.

    Raise UserError if the table as text is longer than MAX_TEXT.
    """
    if conversion.draw is not None:
        return converse(conversion, id, turns, [image_bytes(conversion.draw(table), id)])
    written = "\n\n".join(filter(None, (title.strip(), markdown(table))))
    if len(written) > MAX_TEXT:
        raise UserError(f"the table is too long as text: {len(written)} characters, at most {MAX_TEXT} are allowed")
    (question, answer), *others = turns
    return converse(conversion, id, [(f"{written}\n\n{question}", answer), *others], category="text")


def markdown(table: Table) -> str:
    """Return a table as Markdown. Line breaks within a cell become spaces."""
    if not table:
        raise UserError("the table is empty")
    lines = [f"| {' | '.join(map(_cell, row))} |" for row in table]
    return "\n".join([lines[0], "|" + " --- |" * len(table[0]), *lines[1:]])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def unescape(text: str) -> str:
    return re.sub(r"\\([np\\])", lambda match: _ESCAPES[match[1]], text)


def _read_wikitable(folder: Path, name: str) -> Table:
    if not re.fullmatch(r"csv/[\w-]+/[\w-]+\.csv", name):
        raise UserError(f"a table must be named csv/FOLDER/FILE.csv, got {name!r}")
    try:
        with (folder / name).open(encoding="utf-8", newline="") as lines:
            return list(csv.reader(lines, escapechar="\\", doublequote=False))
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"{name} cannot be read: {type(error).__name__}") from None


def read_tabfact(conversion: Conversion) -> Converted:
    """Read TabFact: statements that tables of Wikipedia entail or refute.

        collected_data/r1_training_all.json (and r2)    {"1-24143253-5.html.csv": [[statement], [0 or 1], title]}
        data/all_csv/1-24143253-5.html.csv              cells separated by `#`, the header first
        data/train_id.json, val_id.json, test_id.json   the table names of each split

    The tables are text. They are drawn with `draw`, or written into the first question.
    """
    ids = find_file(conversion.folder, f"data/{conversion.split}_id.json")
    wanted = {name for _, name in list_rows(ids) if isinstance(name, str)}
    files = find_files(conversion.folder, "collected_data/r*_training_all.json")
    rows = chain.from_iterable(_tabfact_rows(path, wanted) for path in files)

    def make(row: tuple[str, str, tuple[list[str], list[int], str]]) -> Iterator[Record]:
        part, name, (statements, labels, title) = row
        table = _read_csv(conversion.folder, name)
        turns = [
            (f"{statement.strip()}\nIs this true of the table? Answer yes or no.", "Yes" if label else "No")
            for statement, label in zip(statements, labels, strict=True)
        ]
        yield ask_table(conversion, f"{part}-{name.split('.')[0]}", table, turns, title=title)

    return convert_rows(rows, make)


def _tabfact_rows(path: Path, wanted: set[str]) -> Iterator[Row]:
    part = path.name.split("_")[0]
    for where, row in object_rows(path):
        if isinstance(row, UserError):
            yield where, row
        elif row[0] in wanted:
            yield where, (part, *row)


def _read_csv(folder: Path, name: str) -> Table:
    if not re.fullmatch(r"[\w-]+\.html\.csv", name):
        raise UserError(f"a table must be named NAME.html.csv, got {name!r}")
    with (folder / "data" / "all_csv" / name).open(encoding="utf-8", newline="") as lines:
        return list(csv.reader(lines, delimiter="#", quoting=csv.QUOTE_NONE))
