"""RefCOCO, RefCOCO+ and RefCOCOg: find the one thing that a phrase describes; right at IoU 0.5.

    val-*.parquet, testA-*.parquet and so on (lmms-eval's)    question_id, image, answer: [phrases], bbox: [x, y, w, h]
    RefCOCO.tsv (VLMEvalKit's)    index, image, question, split, width, height, bbox_x1, bbox_y1, bbox_x2, bbox_y2

Every phrase of a row is a question. The report gives no prompt; the model's own is `<|ref|>phrase<|/ref|>.`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vl2.errors import UserError
from vl2.eval.asking import ask
from vl2.eval.marking import mark_first_box
from vl2.eval.rows import Row, images_of, read_rows, texts
from vl2.eval.score.grounding import lmms_eval_box, vlmevalkit_box
from vl2.eval.score.iou import HIT, Box, iou
from vl2.eval.task import Item, Mark, Task, Way, Where, mean_score
from vl2.infer.prompts import Messages, locate_prompt, user_message
from vl2.process.image import open_image

SETS = {
    "refcoco": ("RefCOCO", ("val", "testA", "testB")),
    "refcoco_plus": ("RefCOCO+", ("val", "testA", "testB")),
    "refcocog": ("RefCOCOg", ("val", "test")),
}


def read_named(title: str, split: str) -> Callable[[Task, Where], Iterator[Item]]:
    def read(task: Task, where: Where) -> Iterator[Item]:
        folder = where.folder(task)
        for number, row in enumerate(read_rows(folder, (f"{split}-*", f"data/{split}-*", split, "RefCOCO"))):
            if "bbox_x1" in row:
                if str(row.get("split", "")) == f"{title}_{split}":
                    yield _of_tsv(row, folder_images=images_of(row["image"], folder, str(row["index"])))
            else:
                yield from _of_parquet(row, number, images_of(row["image"], folder, str(row.get("question_id"))))

    return read


def _of_parquet(row: Row, number: int, images: tuple[object, ...]) -> Iterator[Item]:
    x, y, width, height = (float(v) for v in row["bbox"])
    size = list(open_image(images[0]).size)  # type: ignore[arg-type]
    for index, phrase in enumerate(texts(row["answer"])):
        yield Item(
            id=f"{row.get('question_id', number)}-{index}",
            question=phrase,
            images=images,
            gold=[[x, y, x + width, y + height]],
            cluster=str(row.get("question_id", number)),
            notes={"size": size},
        )


def _of_tsv(row: Row, folder_images: tuple[object, ...]) -> Item:
    try:
        box = [float(row[f"bbox_{side}"]) for side in ("x1", "y1", "x2", "y2")]
        size = [int(float(row["width"])), int(float(row["height"]))]
    except (KeyError, ValueError):
        raise UserError(f"row {row.get('index')} has no box or size") from None
    return Item(id=str(row["index"]), question=row["question"], images=folder_images, gold=[box], notes={"size": size})


def ask_ours(item: Item) -> Messages:
    return [user_message(locate_prompt(item.question), item.images)]


def ask_lmms(item: Item) -> Messages:
    asked = f'Locate every object that matches the description "{item.question}" in the image.'
    return [user_message(f"{asked} Report bbox coordinates in JSON format.", item.images)]


def mark_vlmevalkit(item: Item, answer: str) -> Mark:
    return _mark(vlmevalkit_box(answer, tuple(item.notes["size"])), item)


def mark_lmms(item: Item, answer: str) -> Mark:
    return _mark(lmms_eval_box(answer, tuple(item.notes["size"]), item.gold[0]), item)


def _mark(box: Box | None, item: Item) -> Mark:
    overlap = iou(box, item.gold[0]) if box is not None else 0.0
    return Mark(score=float(overlap >= HIT), read=f"IoU {overlap:.2f}" if box is not None else "no box")


def _task(name: str, split: str) -> Task:
    title, _ = SETS[name]
    return Task(
        name=f"{name}_{split}",
        title=f"{title} {split}: the one thing that a phrase describes",
        layout=f"reads {split}-*.parquet (question_id, image, answer, bbox) or RefCOCO.tsv",
        folders=(name, title),
        read=read_named(title, split),
        ways={
            "paper": Way(messages=ask_ours, mark=mark_first_box, max_new_tokens=128,
                         says="The first box of the answer, on the scale 0..999, must have IoU 0.5."),
            "vlmevalkit": Way(messages=ask, mark=mark_vlmevalkit,
                              says="VLMEvalKit: the first box of any form must have IoU 0.5."),
            "lmms-eval": Way(messages=ask_lmms, mark=mark_lmms,
                             says="lmms-eval's refcoco_grounding: the best of all boxes, in pixels or 0..1000."),
        },
        published_by="paper",
        published=f"{name}_{split}",
        metric=mean_score,
    )  # fmt: skip


TASKS = tuple(_task(name, split) for name, (_, splits) in SETS.items() for split in splits)
