"""ScreenSpot, ScreenSpot-v2 and ScreenSpot-Pro: click the element of a screenshot that an instruction is about.

    screenspot_{mobile,desktop,web}.json, screenspot_imgs/ (the release)    img_filename, instruction, data_type,
        data_source, bbox: [x, y, width, height] in pixels
    screenspot_{mobile,desktop,web}_v2.json, screenspotv2_image/ (the release of v2)    the same
    annotations/*.json, images/ (the release of Pro)    id, img_filename, instruction, ui_type, group,
        bbox: [x0, y0, x1, y1] in pixels, img_size
    test-*.parquet (the hub's copy of ScreenSpot)    image, instruction, data_type, data_source,
        bbox: [x0, y0, x1, y1] as fractions of the sides

An answer is right if its point is in the element's box, edges included. A box stands for its center. The protocol
`paper` asks with this model's own prompt, whose answer is a box on the scale 0..999.

Source: `pretrain/screenspot_test.py` of njucckevin/SeeClick; `eval_screenspot_pro.py` of
likaixin2000/ScreenSpot-Pro-GUI-Grounding; lmms-eval's tasks screenspot, screenspot_v2 and screenspot_pro.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vl2.data.json_stream import list_rows
from vl2.errors import UserError
from vl2.eval.public_data import Dataset, Row, checked_rows, images_of, read_rows, stems_of
from vl2.eval.score.boxes import our_boxes
from vl2.eval.task import DataSource, Item, Protocol, Result, Score, Task, mean_score
from vl2.infer.prompts import locate_prompt
from vl2.process.conversation import Turn, user_turn
from vl2.process.image import open_image

Point = tuple[float, float]
Size = tuple[int, int]

SEECLICK = 'In this UI screenshot, what is the position of the element corresponding to the command "{}" (with point)?'
LMMS_POINT = (
    "Identify the UI element for the instruction and output exactly one click point as [x, y] in normalized "
    "coordinates within [0, 1]. Do not output a bounding box.\nInstruction: {}"
)
LMMS_BOX = (
    "Bounding box coordinates are specified in the format (top-left x, top-left y, bottom-right x, bottom-right y). "
    "All values are floating point numbers bounded between 0 and 1 with two decimal places of precision (e.g., 0.15). "
    "Please provide the bounding box coordinates of the region that corresponds to the command: {}"
)
_NUMBER = r"-?\d+(?:\.\d+)?"
_PERCENT = rf"{_NUMBER}%?"
_FOUR_IN_BRACKETS = re.compile(rf"[\[(]\s*({_NUMBER}),\s*({_NUMBER}),\s*({_NUMBER}),\s*({_NUMBER})\s*[\])]")
_TAGGED_BOX = re.compile(r"<\s*bbox[^>]*>(.*?)<\s*/\s*bbox\s*>", re.IGNORECASE | re.DOTALL)
_POINT = re.compile(rf"[\[(]\s*({_PERCENT})\s*(?:,|\s)\s*({_PERCENT})\s*[\])]")
_NAMED = re.compile(
    rf"['\"]?x['\"]?\s*[:=]\s*({_PERCENT}).*?['\"]?y['\"]?\s*[:=]\s*({_PERCENT})", re.IGNORECASE | re.DOTALL
)


def read_named(files: str, pictures: str) -> Callable[[Task, DataSource], Iterator[Item]]:
    """Return a reader of a release's JSON files, or of the hub's Parquet files where there are none."""

    def read(task: Task, source: DataSource) -> Iterator[Item]:
        folder = source.folder(task)
        paths = sorted(path for path in folder.glob(files) if path.is_file())
        if not paths:
            yield from _of_parquet(folder, source.part(task))
            return
        for path in paths:
            for number, (where, row) in enumerate(checked_rows(list_rows(path))):
                yield _of_json(row, where, f"{path.stem}-{number}", folder / pictures)

    return read


def _of_json(row: Any, where: str, id: str, pictures: Path) -> Item:
    is_pro = "ui_type" in row
    try:
        x0, y0, x1, y1 = (float(v) for v in row["bbox"])
        name, instruction, kind = row["img_filename"], row["instruction"], row["ui_type" if is_pro else "data_type"]
        part = row["group"] if is_pro else id.split("-")[0].removeprefix("screenspot_").removesuffix("_v2")
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{where}: img_filename, instruction, bbox and the kind of element are needed") from None
    return Item(
        id=str(row.get("id", id)),
        question=instruction,
        images=images_of(name, pictures, id),
        gold=[[x0, y0, x1, y1] if is_pro else [x0, y0, x0 + x1, y0 + y1]],
        part=f"{part} {kind}",
        cluster=name,
    )


def _of_parquet(folder: Path, split: str) -> Iterator[Item]:
    rows: Iterator[Row] = read_rows(folder, stems_of(split), ("image", "instruction", "bbox", "data_type"))
    for number, row in enumerate(rows):
        images, id = images_of(row["image"], folder, str(number)), str(number)
        box = [float(v) for v in row["bbox"]]
        if len(box) != 4 or not all(0 <= v <= 1 for v in box):
            raise UserError(f"row {number}: bbox must be four fractions of the sides, got {row['bbox']}")
        width, height = open_image(images[0]).size  # type: ignore[arg-type]
        yield Item(
            id=id,
            question=row["instruction"],
            images=images,
            gold=[[box[0] * width, box[1] * height, box[2] * width, box[3] * height]],
            part=str(row["data_type"]),
            cluster=str(row.get("file_name", number)),
        )


def center(box: list[float] | tuple[float, ...]) -> Point:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def is_inside(point: Point, box: list[float]) -> bool:
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def our_point(answer: str, size: Size) -> Point | None:
    """Return the center of the first box in this model's form, in pixels."""
    boxes = our_boxes(answer, size)
    return center(tuple(boxes[0])) if boxes else None


def seeclick_point(answer: str, size: Size) -> Point | None:
    """Read a point or a box of fractions, if the answer has exactly two or four numbers."""
    found = [float(v) for v in re.findall(r"-?\d+\.?\d*", answer)]
    if len(found) == 4:
        found = [*center(found)]
    return (found[0] * size[0], found[1] * size[1]) if len(found) == 2 else None


def lmms_box_center(answer: str, size: Size) -> Point | None:
    """Return the center of the first four numbers in brackets: fractions, or thousandths if one is above 1."""
    match = _FOUR_IN_BRACKETS.search(answer)
    box = [float(v) for v in match.groups()] if match is not None else [0.0] * 4
    scale = 1000 if max(box) > 1 else 1
    x, y = center(box)
    return x / scale * size[0], y / scale * size[1]


def lmms_point(answer: str, size: Size) -> Point | None:
    """Read a point as lmms-eval does: fractions or per cent of the sides, or pixels if one value is above 1."""
    point = _lmms_reading(answer)
    if point is None:
        return None
    if point[0] > 1 or point[1] > 1:
        return point
    return point[0] * size[0], point[1] * size[1]


def _lmms_reading(answer: str) -> Point | None:
    tagged = _TAGGED_BOX.search(answer)
    if tagged is not None and len(values := _values(tagged[1])) >= 4:
        return center(values[:4])
    for form in (_POINT, _NAMED):
        if (match := form.search(answer)) is not None:
            return _value(match[1]), _value(match[2])
    values = _values(answer)
    if len(values) >= 4 and any(word in answer.lower() for word in ("box", "rect")):
        return center(values[:4])
    return (values[0], values[1]) if len(values) >= 2 else None


def _values(text: str) -> list[float]:
    return [_value(token) for token in re.findall(_PERCENT, text)]


def _value(token: str) -> float:
    return float(token[:-1]) / 100 if token.endswith("%") else float(token)


def ask_with_prompt(prompt: str) -> Callable[[Item], list[Turn]]:
    return lambda item: [user_turn(prompt.format(item.question), item.images)]


def score_with(read: Callable[[str, Size], Point | None]) -> Callable[[Item, str], Score]:
    def score(item: Item, answer: str) -> Score:
        point = read(answer, open_image(item.images[0]).size)
        if point is None:
            return Score(value=0.0, read="no point")
        return Score(value=float(is_inside(point, item.gold[0])), read=f"({point[0]:.1f}, {point[1]:.1f})")

    return score


def by_kind(results: list[Result] | Any) -> dict[str, float]:
    """Return the accuracy, then that of texts and of icons, and of every part."""
    figures = mean_score(results)
    kinds = {
        kind: [r for r in results if r.part.rsplit(" ", 1)[-1] == kind]
        for kind in sorted({r.part.rsplit(" ", 1)[-1] for r in results})
    }
    return {"score": figures["score"]} | {kind: mean_score(some)["score"] for kind, some in kinds.items()} | figures


PAPER = Protocol(
    ask=lambda item: [user_turn(locate_prompt(item.question), item.images)],
    score=score_with(our_point),
    says="The center of the answer's first box, on the scale 0..999, must be in the element's box.",
    max_new_tokens=128,
)
OFFICIAL = Protocol(
    ask=ask_with_prompt(SEECLICK),
    score=score_with(seeclick_point),
    says="SeeClick's program: a point, or the center of a box, in fractions of the sides, must be in the box.",
    max_new_tokens=128,
)


def _lmms(prompt: str, read: Callable[[str, Size], Point | None]) -> Protocol:
    return Protocol(
        ask=ask_with_prompt(prompt), score=score_with(read), max_new_tokens=128,
        says="lmms-eval: the point, or the center of the box, must be in the element's box.",
    )  # fmt: skip


def _task(
    name: str, title: str, layout: str, files: str, pictures: str, hub: Dataset | None, **protocols: Protocol
) -> Task:
    return Task(
        name=name,
        title=f"{title}: click the element that an instruction is about",
        layout=layout,
        folders=(name, title, title.replace("-", "_")),
        read=read_named(files, pictures),
        split="test",
        protocols={"paper": PAPER, **protocols},
        metric=by_kind,
        is_mean=True,
        hub=hub,
    )


V1 = _task(
    "screenspot", "ScreenSpot",
    "reads screenspot_*.json and screenspot_imgs/, or test-*.parquet (image, instruction, bbox, data_type)",
    "screenspot_*.json", "screenspot_imgs", Dataset("rootsautomation/ScreenSpot", ("data/{split}-*",)),
    **{"official": OFFICIAL, "lmms-eval": _lmms(LMMS_BOX, lmms_box_center)},
)  # fmt: skip
V2 = _task(
    "screenspot_v2", "ScreenSpot-v2", "reads screenspot_*_v2.json and screenspotv2_image/",
    "screenspot_*_v2.json", "screenspotv2_image", None,
    **{"official": OFFICIAL, "lmms-eval": _lmms(LMMS_POINT, lmms_point)},
)  # fmt: skip
PRO = _task(
    "screenspot_pro", "ScreenSpot-Pro", "reads annotations/*.json and images/", "annotations/*.json", "images", None,
    **{"lmms-eval": _lmms(LMMS_POINT, lmms_point)},
)  # fmt: skip
TASKS = (V1, V2, PRO)
