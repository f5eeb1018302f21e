"""Detection on photos: all boxes of one label, on upstream's test split of blood cells and playing cards.

bccd.parquet, cards.parquet    id, image, width, height, objects: [{name, x0, y0, x1, y1}], upstream_split
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from vl2.datasets.box_sets import PHOTO_LABELS
from vl2.eval.protocols import ask
from vl2.eval.public_data import find_rows, images_of, read_rows
from vl2.eval.score.boxes import box_f1, match_boxes, our_boxes
from vl2.eval.task import DataSource, Item, LeftOut, Protocol, Score, Task, mean_score
from vl2.infer.prompts import locate_prompt

SPLIT = "test"
OTHER_SPLIT = LeftOut(why="of upstream's other splits", is_of_other_split=True, comes_with_whole=True)
COLUMNS = ("id", "image", "width", "height", "objects", "upstream_split")


def read(task: Task, source: DataSource) -> Iterator[Item | LeftOut]:
    folder = source.folder(task)
    for path in find_rows(folder, ("*",)):
        for row in read_rows(folder, (path.stem,), COLUMNS):
            is_asked = row["upstream_split"] == (source.split or SPLIT) or source.whole
            boxes: dict[str, list[list[float]]] = defaultdict(list)
            for found in row["objects"]:
                boxes[PHOTO_LABELS[found["name"]]].append([float(found[side]) for side in ("x0", "y0", "x1", "y1")])
            for label, gold in sorted(boxes.items()):
                if not is_asked:
                    yield OTHER_SPLIT
                    continue
                yield Item(
                    id=f"{row['id']}-{label}",
                    question=locate_prompt(label),
                    images=images_of(row["image"], folder, str(row["id"])),
                    gold=gold,
                    part=label,
                    cluster=str(row["id"]),
                    notes={"size": [row["width"], row["height"]]},
                )


def score(item: Item, answer: str) -> Score:
    found = our_boxes(answer, tuple(item.notes["size"]))
    hits = match_boxes(found, item.gold)
    return Score(value=box_f1(found, item.gold), read=f"{hits} of {len(item.gold)} found, {len(found)} said")


TASK = Task(
    name="detect_photos",
    title="Every box of a label on photos of blood cells and playing cards",
    layout="reads bccd.parquet and cards.parquet",
    folders=("photos",),
    read=read,
    protocols={"vl2": Protocol(ask=ask, score=score, max_new_tokens=768,
                               says="F1 of boxes matched one to one at IoU 0.5, mean over queries.")},
    metric=mean_score,
    has_whole=True,
)  # fmt: skip
