"""A user's own records as a benchmark: the last answer of a record is the gold answer.

Boxes are scored by F1 at IoU 0.5, other answers by exact match.
"""

from __future__ import annotations

from collections.abc import Iterator

from vl2.data.record import PLACEHOLDER, Record
from vl2.data.store import Problem, read_records
from vl2.errors import UserError
from vl2.eval.protocols import score_exact
from vl2.eval.score.boxes import box_f1, our_boxes
from vl2.eval.task import DataSource, Item, Protocol, Score, Task, mean_score
from vl2.process.conversation import Turn


def read(task: Task, source: DataSource) -> Iterator[Item]:
    if source.data is None:
        raise UserError(f"{task.name} reads records: say where with --data; {task.layout}")
    for found in read_records(str(source.data)):
        if isinstance(found, Problem):
            raise UserError(str(found))
        yield item_of_record(found.record)


def item_of_record(record: Record) -> Item:
    """Return the item that asks a record's conversation up to the last answer."""
    answer = "".join(part.text or "" for part in record.messages[-1].parts)
    named = [record.objects[int(k)] for k in PLACEHOLDER.findall(answer)] if record.objects else []
    boxes = [list(box) for labeled in named for box in labeled.boxes_px]
    images = tuple(image.data for image in record.images if image.data is not None)
    turns = record.to_turns(images)[:-1]
    asked = turns[-1].pieces[-1]
    last = record.images[named[0].image] if named else None
    return Item(
        id=record.id,
        question=asked if isinstance(asked, str) else "",
        images=images,
        gold=boxes or [record.with_boxes(answer)],
        part=record.category,
        notes={"turns": turns, **({"size": [last.width, last.height]} if last else {})},
    )


def ask(item: Item) -> list[Turn]:
    """Return the record's own turns, with images at their positions in the messages."""
    turns: list[Turn] = item.notes["turns"]
    return turns


def score(item: Item, answer: str) -> Score:
    if "size" not in item.notes:
        return score_exact(item, answer)
    found = our_boxes(answer, tuple(item.notes["size"]))
    return Score(value=box_f1(found, item.gold), read=f"{len(found)} boxes")


TASK = Task(
    name="records",
    title="Records of your own: the last answer is the gold one",
    layout="reads records as Parquet, WebDataset tar or JSONL (docs/record.md)",
    read=read,
    protocols={"vl2": Protocol(ask=ask, score=score, says="Exact match without case; boxes by F1 at IoU 0.5.")},
    metric=mean_score,
)
