"""WikiTableQuestions with drawn tables: questions of the development fold that is held out from training.

    questions-*.parquet    id, table_id, question, answers, dev_folds
    tables-*.parquet       table_id, csv

Only small tables are used, because larger ones would not be legible as an image. An answer must contain all items of a
list of gold answers, in any order.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from functools import lru_cache

from vl2.errors import UserError
from vl2.eval.drawn import font_folders, png
from vl2.eval.held_out import HELD_OUT_SEED, is_held_out_question
from vl2.eval.protocols import ask_short
from vl2.eval.public_data import read_rows, texts
from vl2.eval.score.text_rules import plain
from vl2.eval.task import DataSource, Item, LeftOut, Protocol, Score, Task, mean_score
from vl2.synth import fonts
from vl2.synth.source import rng_for
from vl2.synth.table_image import STYLES, draw_table
from vl2.synth.tables import Table

MAX_ROWS, MAX_COLUMNS, MAX_CELL = 10, 6, 28
FONT_PX = 16
KEPT_FOR_TRAINING = LeftOut(why="of folds that are kept for training", comes_with_whole=True)
TOO_LARGE = LeftOut(why="about tables too large to be drawn legibly")


def read(task: Task, source: DataSource) -> Iterator[Item | LeftOut]:
    folder = source.folder(task)
    tables = {row["table_id"]: row["csv"] for row in read_rows(folder, ("tables*",), ("table_id", "csv"))}
    columns = ("id", "table_id", "question", "answers", "dev_folds")
    for row in read_rows(folder, ("questions*",), columns):
        key = row["table_id"]
        table = small_table(tables.get(key, ""))
        if table is None:
            yield TOO_LARGE
            continue
        if not source.whole and not is_held_out_question(row["dev_folds"]):
            yield KEPT_FOR_TRAINING
            continue
        yield Item(
            id=str(row["id"]),
            question=row["question"],
            images=(draw(table, key, source),),
            gold=texts(row["answers"]),
            cluster=key,
        )


def small_table(text: str) -> Table | None:
    """Parse a table, or return None if it is too large to draw."""
    rows = [[" ".join(cell.split()) for cell in row] for row in csv.reader(io.StringIO(text, newline=""))]
    if len(rows) < 2 or len(rows) > MAX_ROWS + 1 or not 1 <= len(rows[0]) <= MAX_COLUMNS:
        return None
    if any(len(row) != len(rows[0]) or any(len(cell) > MAX_CELL for cell in row) for row in rows):
        return None
    return Table(title="", header=tuple(rows[0]), rows=tuple(tuple(row) for row in rows[1:]))


@lru_cache(maxsize=1024)  # a run reads the data several times: to choose the items, to hash and to ask them
def draw(table: Table, key: str, source: DataSource) -> bytes:
    rng = rng_for(HELD_OUT_SEED, f"wikitables/{key}", 0)
    # Some characters of Wikipedia are in no font. A face for Latin text then draws its replacement glyph for them.
    face = fonts.choose_face(rng, table.text, font_folders(source)) or fonts.choose_face(rng, "A", font_folders(source))
    if face is None:
        raise UserError("there is no font to draw tables with: give a folder of fonts with --fonts")
    return png(draw_table(table, fonts.load(face, FONT_PX), rng.choice(STYLES), rng)[0])


def score(item: Item, answer: str) -> Score:
    said = {plain(part) for part in answer.split(",")} | {plain(answer)}
    golds = {plain(gold) for gold in item.gold}
    whole = plain(", ".join(item.gold))
    is_right = plain(answer) == whole or (golds <= said and len(answer.split(",")) <= len(golds))
    return Score(value=float(is_right), read=plain(answer))


TASK = Task(
    name="wikitables",
    title="Questions about drawn tables of Wikipedia (development fold 1)",
    layout="reads questions-*.parquet and tables-*.parquet, and draws the tables",
    folders=("wikitables",),
    read=read,
    protocols={
        "vl2": Protocol(ask=ask_short, score=score, says="All answers, in any order, without case.", max_new_tokens=64)
    },
    metric=mean_score,
    has_whole=True,
)
