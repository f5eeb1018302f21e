"""Converters of elements of screens with their boxes: WaveUI and Multimodal-Mind2Web."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from vl2.data.raw_files import Json, image_bytes, parquet_files, parquet_rows
from vl2.data.record import Record
from vl2.datasets.box_questions import Query, box_of_xywh, check_size, clip_box, locate_records
from vl2.datasets.conversion import Conversion, Converted, convert_rows, numbered
from vl2.errors import UserError


def read_waveui(conversion: Conversion) -> Converted:
    """Read WaveUI-25k: elements of web, desktop and phone screens, one element with its box per row.

        data/train-00000-of-00022.parquet   image, bbox: [x0, y0, x1, y1] in pixels, resolution, name, description, ...

    Questions use the description of an element, or its name if there is none. The other elements of a screen have no
    boxes, so there are no queries for absent ones.
    """
    rows = parquet_rows(
        parquet_files(conversion.folder, conversion.split), ("image", "bbox", "name", "description"), batch_rows=4
    )

    def make(row: tuple[int, Json]) -> Iterator[Record]:
        number, element = row
        image = image_bytes(element["image"], f"of row {number}")
        if element.get("resolution"):
            check_size(dict(zip(("width", "height"), element["resolution"], strict=True)), image)
        label = (element["description"] or element["name"] or "").strip().rstrip(".")
        if not label:
            raise UserError("the element has no description and no name")
        box = clip_box(element["bbox"], (image.width, image.height))
        yield from locate_records(conversion, number, image, [Query(label=label, boxes_px=(box,))])

    return convert_rows(numbered(rows), make)


_ACTION = re.compile(r"\[(?P<role>[^\]]*)\]\s*(?P<text>.*?)\s*->\s*[A-Z]+(:.*)?", re.DOTALL)
_HIDDEN = "-1,-1,-1,-1"  # the box of an element that is not on the screenshot


def read_mind2web(conversion: Conversion) -> Converted:
    """Read Multimodal-Mind2Web: screenshots of web pages and the element that the next action of a task is on.

        data/train-00000-of-00027-*.parquet   action_uid, screenshot: {bytes, path}, target_action_reprs,
                                              pos_candidates: JSON texts with attributes, a JSON text with
                                              bounding_box_rect: "left,top,width,height" in pixels

    Questions use the text of the element ("[combobox]  City or airport -> TYPE: Oslo"), or its role if it has none.
    The splits test_task, test_website and test_domain are for evaluation. Actions whose element is not on the
    screenshot are problems.
    """
    columns = ("action_uid", "screenshot", "target_action_reprs", "pos_candidates")
    rows = parquet_rows(parquet_files(conversion.folder, conversion.split), columns, batch_rows=4)

    def make(row: Json) -> Iterator[Record]:
        image = image_bytes(row["screenshot"], row["action_uid"])
        action = _ACTION.fullmatch(row["target_action_reprs"].strip())
        if action is None:
            raise UserError(f"an action must be [role] text -> ACTION, got {row['target_action_reprs']!r:.80}")
        label = action["text"] or action["role"]
        boxes = [json.loads(json.loads(each)["attributes"])["bounding_box_rect"] for each in row["pos_candidates"]]
        shown = next((box for box in boxes if box != _HIDDEN), None)
        if shown is None:
            raise UserError("its element is not on the screenshot")
        box = box_of_xywh([float(side) for side in shown.split(",")], (image.width, image.height))
        yield from locate_records(conversion, row["action_uid"], image, [Query(label=label, boxes_px=(box,))])

    return convert_rows(rows, make)
