"""SROIE: scanned receipts of shops that are held out from training. Two tasks: all text lines, and four key fields.

    train-*.parquet    id, image, lines: [{text, ...}], company, date, address, total

Scoring ignores case, because the dataset's texts are all upper case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from vl2.datasets.question_answers import TRANSCRIBE
from vl2.datasets.receipt_sets import FIELDS
from vl2.eval.held_out import is_held_out
from vl2.eval.protocols import ask, score_exact
from vl2.eval.public_data import Row, images_of, read_rows
from vl2.eval.score.text_rules import plain
from vl2.eval.task import DataSource, Item, LeftOut, Protocol, Score, Task, mean_score

KEPT_FOR_TRAINING = LeftOut(why="of shops that are kept for training", comes_with_whole=True)
BLANK = LeftOut(why="without a gold answer in the data")
_LAYOUT = "reads Parquet with id, image, lines, company, date, address and total"


def rows_with_images(task: Task, source: DataSource) -> Iterator[Row]:
    folder = source.folder(task)
    stems = (f"{source.split}*",) if source.split else ("train*", "*")
    for row in read_rows(folder, stems, ("id", "image", "lines", *FIELDS)):
        yield {**row, "images": images_of(row["image"], folder, str(row["id"]))}


def _is_asked(row: Row, source: DataSource) -> bool:
    return source.whole or is_held_out("sroie", _shop(row))


def read_lines(task: Task, source: DataSource) -> Iterator[Item | LeftOut]:
    for row in rows_with_images(task, source):
        if not _is_asked(row, source):
            yield KEPT_FOR_TRAINING
            continue
        lines = [line["text"] for line in row["lines"]]
        yield Item(id=str(row["id"]), question=TRANSCRIBE[2], images=row["images"], gold=lines, cluster=_shop(row))


def read_fields(task: Task, source: DataSource) -> Iterator[Item | LeftOut]:
    for row in rows_with_images(task, source):
        for name, question in FIELDS.items():
            if not row[name]:
                yield BLANK
            elif not _is_asked(row, source):
                yield KEPT_FOR_TRAINING
            else:
                yield Item(
                    id=f"{row['id']}-{name}",
                    question=question,
                    images=row["images"],
                    gold=[row[name]],
                    part=name,
                    cluster=_shop(row),
                )


def _shop(row: Row) -> str:
    return str(row["company"] or row["id"])


def score_lines(item: Item, answer: str) -> Score:
    """Score by F1 over whole lines, ignoring case and order."""
    said = Counter(plain(line) for line in answer.splitlines() if line.strip())
    gold = Counter(plain(line) for line in item.gold)
    shared = (said & gold).total()
    score = 2 * shared / (said.total() + gold.total()) if shared else 0.0
    return Score(value=score, read=f"{shared} of {gold.total()} lines")


LINES = Task(
    name="sroie_lines",
    title="All text lines of a scanned receipt (shops held out from training)",
    layout=_LAYOUT,
    folders=("sroie",),
    read=read_lines,
    protocols={
        "vl2": Protocol(ask=ask, score=score_lines, says="F1 over whole lines, without case.", max_new_tokens=1536),
    },
    metric=mean_score,
    has_whole=True,
)
FIELDS_TASK = Task(
    name="sroie_fields",
    title="Company, date, address and total of a scanned receipt (shops held out from training)",
    layout=_LAYOUT,
    folders=("sroie",),
    read=read_fields,
    protocols={"vl2": Protocol(ask=ask, score=score_exact, says="Exact match without case.", max_new_tokens=96)},
    metric=mean_score,
    has_whole=True,
)
