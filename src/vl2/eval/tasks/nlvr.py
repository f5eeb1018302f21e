"""NLVR: whether a sentence is true of a drawn scene, on the groups that are held out from training.

    *.parquet    id, group, sentence_id, image, sentence, label

The six images of a sentence show the same scene in different orders, so the bootstrap draws groups, not images.
"""

from __future__ import annotations

from collections.abc import Iterator

from vl2.datasets.drawn_sets import statement
from vl2.eval.held_out import is_held_out
from vl2.eval.protocols import ask, score_yes_no
from vl2.eval.public_data import images_of, read_rows
from vl2.eval.task import DataSource, Item, LeftOut, Protocol, Task, mean_score

KEPT_FOR_TRAINING = LeftOut(why="of groups that are kept for training", comes_with_whole=True)


def read(task: Task, source: DataSource) -> Iterator[Item | LeftOut]:
    folder = source.folder(task)
    columns = ("id", "group", "image", "sentence", "label")
    stems = (f"{source.split}*",) if source.split else ("dev*", "*")
    for row in read_rows(folder, stems, columns):
        if not source.whole and not is_held_out("nlvr", str(row["group"])):
            yield KEPT_FOR_TRAINING
            continue
        question, answer = statement(row["sentence"], bool(row["label"]))
        yield Item(
            id=str(row["id"]),
            question=question,
            images=images_of(row["image"], folder, str(row["id"])),
            gold=answer.lower(),
            cluster=str(row["group"]),
        )


TASK = Task(
    name="nlvr",
    title="Is a sentence true of a drawn scene (groups held out from training)",
    layout="reads Parquet with id, group, image, sentence and label",
    folders=("nlvr",),
    read=read,
    protocols={
        "vl2": Protocol(
            ask=ask, score=score_yes_no, says="The first word must be the correct yes or no.", max_new_tokens=8
        )
    },
    metric=mean_score,
    has_whole=True,
)
