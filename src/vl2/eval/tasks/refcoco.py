"""RefCOCO, RefCOCO+ and RefCOCOg: locate the object that a phrase describes; correct at IoU 0.5 or more.

    val-*.parquet, testA-*.parquet and so on (lmms-eval's)    question_id, image, answer: [phrases], bbox: [x, y, w, h]
    RefCOCO.tsv (VLMEvalKit's)    index, image, question, split, width, height, bbox_x1, bbox_y1, bbox_x2, bbox_y2
    refcoco_val.jsonl, refcoco+_testA.jsonl and so on (Qwen-VL's)    image, sent, bbox: [x0, y0, x1, y1], width, height

The `val` split of the Parquet copies of RefCOCO and RefCOCOg has 5,000 rows more than the split that papers report; the
other two layouts have exactly that split. Every phrase of a row is a question. The report gives no prompt; the model's
own is `<|ref|>phrase<|/ref|>.`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from vl2.errors import UserError
from vl2.eval.protocols import ask, score_first_box
from vl2.eval.public_data import Dataset, Row, images_of, read_rows, stems_of, texts
from vl2.eval.score.boxes import HIT, Box, iou, lmms_eval_box, vlmevalkit_box
from vl2.eval.task import OTHER_SPLIT, DataSource, Item, LeftOut, Protocol, Score, Task, mean_score
from vl2.infer.prompts import locate_prompt
from vl2.process.conversation import Turn, user_turn
from vl2.process.image import open_image

SETS = {
    "refcoco": ("RefCOCO", ("val", "testA", "testB")),
    "refcoco_plus": ("RefCOCO+", ("val", "testA", "testB")),
    "refcocog": ("RefCOCOg", ("val", "test")),
}

HUBS = {"refcoco": "lmms-lab/RefCOCO", "refcoco_plus": "lmms-lab/RefCOCOplus", "refcocog": "lmms-lab/RefCOCOg"}


def read_named(title: str, split: str) -> Callable[[Task, DataSource], Iterator[Item | LeftOut]]:
    def read(task: Task, source: DataSource) -> Iterator[Item | LeftOut]:
        folder = source.folder(task)
        stems = [f"{title.lower()}_{split}", *stems_of(split, tsv={split: "RefCOCO"})]
        for number, row in enumerate(read_rows(folder, stems)):
            if "sent" in row:
                yield _of_jsonl(row, number, _photo(row, folder))
            elif "bbox_x1" in row:
                if str(row.get("split") or row.get("category")) == f"{title}_{split}":
                    yield _of_tsv(row, images_of(row["image"], folder, str(row["index"])))
                else:
                    yield OTHER_SPLIT
            else:
                yield from _of_parquet(row, number, images_of(row["image"], folder, str(row.get("question_id"))))

    return read


def _of_parquet(row: Row, number: int, images: tuple[object, ...]) -> Iterator[Item]:
    x, y, width, height = (float(v) for v in row["bbox"])
    size = list(open_image(images[0]).size)  # type: ignore[arg-type]
    for index, phrase in enumerate(texts(row["answer"])):
        yield Item(
            id=f"{number}-{index}",
            question=phrase,
            images=images,
            gold=[[x, y, x + width, y + height]],
            cluster=str(row.get("question_id", number)),
            notes={"size": size},
        )


def _photo(row: Row, folder: Path) -> tuple[object, ...]:
    """Return the photo of a JSONL row, whose path may have folders that do not exist here."""
    name = PurePosixPath(row["image"]).name
    places = (str(row["image"]), f"train2014/{name}", name)
    found = next((place for place in places if (folder / place).is_file()), places[1])
    return images_of(found, folder, name)


def _of_jsonl(row: Row, number: int, images: tuple[object, ...]) -> Item:
    return Item(
        id=str(number),
        question=row["sent"],
        images=images,
        gold=[[float(v) for v in row["bbox"]]],
        cluster=str(row["image"]),
        notes={"size": [int(row["width"]), int(row["height"])]},
    )


def _of_tsv(row: Row, images: tuple[object, ...]) -> Item:
    try:
        box = [float(row[f"bbox_{side}"]) for side in ("x1", "y1", "x2", "y2")]
        size = [int(float(row["width"])), int(float(row["height"]))]
    except (KeyError, ValueError):
        raise UserError(f"row {row.get('index')} has no box or size") from None
    return Item(id=str(row["index"]), question=row["question"], images=images, gold=[box], notes={"size": size})


def ask_ours(item: Item) -> list[Turn]:
    return [user_turn(locate_prompt(item.question), item.images)]


def ask_lmms(item: Item) -> list[Turn]:
    asked = f'Locate every object that matches the description "{item.question}" in the image.'
    return [user_turn(f"{asked} Report bbox coordinates in JSON format.", item.images)]


def score_vlmevalkit(item: Item, answer: str) -> Score:
    return _score(vlmevalkit_box(answer, tuple(item.notes["size"])), item)


def score_lmms(item: Item, answer: str) -> Score:
    return _score(lmms_eval_box(answer, tuple(item.notes["size"]), item.gold[0]), item)


def _score(box: Box | None, item: Item) -> Score:
    overlap = iou(box, item.gold[0]) if box is not None else 0.0
    return Score(value=float(overlap >= HIT), read=f"IoU {overlap:.2f}" if box is not None else "no box")


def _task(name: str, split: str) -> Task:
    title, _ = SETS[name]
    return Task(
        name=f"{name}_{split}",
        title=f"{title} {split}: the object that a phrase describes",
        layout=f"reads {title.lower()}_{split}.jsonl, RefCOCO.tsv or {split}-*.parquet (image, answer, bbox)",
        folders=(name, title),
        hub=Dataset(HUBS[name], (f"data/{split}-*",)),
        read=read_named(title, split),
        split=split,
        protocols={
            "paper": Protocol(ask=ask_ours, score=score_first_box, max_new_tokens=128,
                              says="The first box of the answer, on the scale 0..999, must have IoU 0.5."),
            "vlmevalkit": Protocol(ask=ask, score=score_vlmevalkit,
                                   says="VLMEvalKit: the first box of any form must have IoU 0.5."),
            "lmms-eval": Protocol(ask=ask_lmms, score=score_lmms,
                                  says="lmms-eval's refcoco_grounding: the best of all boxes, in pixels or 0..1000."),
        },
        published_by="paper",
        published=f"{name}_{split}",
        metric=mean_score,
    )  # fmt: skip


TASKS = tuple(_task(name, split) for name, (_, splits) in SETS.items() for split in splits)
