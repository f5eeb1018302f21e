"""WikiTableQuestions: questions about tables of Wikipedia.

1. Files: data/training.tsv (id, utterance, context, targetValue) and csv/204-csv/590.csv, where a backslash escapes a
   quote. In the TSV, `|` separates answers and `\\p`, `\\n`, `\\\\` stand for a bar, a line break and a backslash.
2. Parquet: questions-*.parquet (id, table_id, question, answers) and tables-*.parquet (table_id, csv as RFC 4180).

The tables are text. With `draw` each becomes a picture; without it the table is written into the question.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from vl2.data.convert.conversation import Turn, converse, short_question
from vl2.data.convert.layout import (
    Converted,
    Job,
    Json,
    Row,
    Table,
    each,
    find_file,
    find_files,
    image_bytes,
    parquet_rows,
    read_text,
)
from vl2.data.record import Record
from vl2.errors import UserError

MAX_TEXT = 6000  # characters of a table written out: up to 4,000 tokens, as cells are short and many

_ESCAPES = {"n": "\n", "p": "|", "\\": "\\"}


def read(job: Job) -> Converted:
    if any(job.folder.glob("questions*.parquet")):
        return _read_parquet(job)
    name = {"train": "training", "test": "pristine-unseen-tables"}.get(job.split, job.split)
    path = find_file(job.folder, f"data/{name}.tsv")
    lines = read_text(path).split("\n")
    rows: list[Row] = [(f"{path.name} line {i}", line) for i, line in enumerate(lines[1:], start=2) if line]

    def make(line: str) -> Iterator[Record]:
        cells = line.split("\t")
        if len(cells) != 4:
            raise UserError(f"a line must have 4 cells, got {len(cells)}")
        id, question, context, target = cells
        answers = [unescape(answer) for answer in target.split("|")]
        yield _record(job, id, unescape(question), answers, _read_table(job.folder, context))

    return each(rows, make)


def _read_parquet(job: Job) -> Converted:
    tables = {}
    for where, row in parquet_rows(find_files(job.folder, "tables*.parquet"), ("table_id", "csv")):
        if isinstance(row, UserError):
            raise UserError(f"{where}: {row}")
        tables[row["table_id"]] = row["csv"]
    columns = ("id", "table_id", "question", "answers")
    questions = parquet_rows(find_files(job.folder, "questions*.parquet"), columns)

    def make(row: Json) -> Iterator[Record]:
        table = list(csv.reader(io.StringIO(tables[row["table_id"]], newline="")))
        yield _record(job, row["id"], row["question"], row["answers"], table)

    return each(questions, make)


def _record(job: Job, id: str, question: str, answers: list[str], table: Table) -> Record:
    return ask_table(job, id, table, [(short_question(question), ", ".join(answers))])


def ask_table(job: Job, id: str, table: Table, turns: Sequence[Turn], *, title: str = "") -> Record:
    """Ask about a table that is drawn, or written before the first question where the job has no `draw`."""
    if job.draw is not None:
        return converse(job, id, turns, [image_bytes(job.draw(table), id)])
    written = "\n\n".join(filter(None, (title.strip(), markdown(table))))
    if len(written) > MAX_TEXT:
        raise UserError(f"the table is too long to write out: {len(written)} characters, {MAX_TEXT} are allowed")
    (question, answer), *others = turns
    return converse(job, id, [(f"{written}\n\n{question}", answer), *others], category="text")


def markdown(table: Table) -> str:
    """Write a table with bars; line breaks within a cell become blanks."""
    if not table:
        raise UserError("the table is empty")
    lines = [f"| {' | '.join(map(_cell, row))} |" for row in table]
    return "\n".join([lines[0], "|" + " --- |" * len(table[0]), *lines[1:]])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def unescape(text: str) -> str:
    return re.sub(r"\\([np\\])", lambda match: _ESCAPES[match[1]], text)


def _read_table(folder: Path, name: str) -> Table:
    if not re.fullmatch(r"csv/[\w-]+/[\w-]+\.csv", name):
        raise UserError(f"a table must be named csv/FOLDER/FILE.csv, got {name!r}")
    try:
        with (folder / name).open(encoding="utf-8", newline="") as lines:
            return list(csv.reader(lines, escapechar="\\", doublequote=False))
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"{name} cannot be read: {type(error).__name__}") from None
