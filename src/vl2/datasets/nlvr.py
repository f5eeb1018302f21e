"""NLVR: drawn scenes of coloured shapes, and sentences that are true or false of them.

1. Files: train/train.json (one JSON a line: identifier, directory, sentence, label) and six pictures a sentence,
   train/images/{directory}/train-{identifier}-{0..5}.png, the same scene with its boxes in another order.
2. Parquet: id, image, sentence, label, and objects: [{shape, color, x0, y0, x1, y1}], which are all that is in the
   scene: they give queries such as "yellow square", and what is absent is sure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import product

from vl2.data.raw_files import Json, find_file, image_bytes, image_file, jsonl_rows, parquet_files, parquet_rows
from vl2.data.record import BoxPx, Record
from vl2.datasets.boxes import Query, absent_queries, check_size, clip_box, locate_records
from vl2.datasets.conversion import Conversion, Converted, each
from vl2.datasets.question_answers import Turn, converse
from vl2.errors import UserError

COLOURS = ("yellow", "black", "blue")
SHAPES = ("square", "circle", "triangle")
PERMUTATIONS = 6


def read(conversion: Conversion) -> Converted:
    if any(conversion.folder.glob("*.parquet")):
        rows = parquet_rows(
            parquet_files(conversion.folder, conversion.split), ("id", "image", "sentence", "label", "objects")
        )
        return each(rows, lambda row: _of_row(conversion, row))
    if conversion.negatives:
        raise UserError("the original files are read without their objects: set negatives to 0")
    return each(
        jsonl_rows(find_file(conversion.folder, f"{conversion.split}/{conversion.split}.json")),
        lambda row: _of_line(conversion, row),
    )


def statement(sentence: str, is_true: bool) -> Turn:
    return f"{sentence.strip()}\nIs this true of the image? Answer yes or no.", "Yes" if is_true else "No"


def _of_line(conversion: Conversion, row: Json) -> Iterator[Record]:
    label = str(row["label"]).lower()
    if label not in ("true", "false"):
        raise UserError(f"label must be true or false, got {row['label']!r}")
    for number in range(PERMUTATIONS):
        name = f"{conversion.split}-{row['identifier']}-{number}"
        image = image_file(conversion.folder, f"{conversion.split}/images/{row['directory']}/{name}.png")
        yield converse(conversion, name, [statement(row["sentence"], label == "true")], [image])


def _of_row(conversion: Conversion, row: Json) -> Iterator[Record]:
    image = image_bytes(row["image"], row["id"])
    check_size(row, image)
    yield converse(conversion, row["id"], [statement(row["sentence"], row["label"])], [image])
    boxes: dict[str, list[BoxPx]] = defaultdict(list)
    for found in row["objects"]:
        corners = [found[side] for side in ("x0", "y0", "x1", "y1")]
        boxes[f"{found['color']} {found['shape']}"].append(clip_box(corners, (image.width, image.height)))
    queries = [Query(label=label, boxes_px=tuple(found)) for label, found in boxes.items()]
    vocabulary = [f"{colour} {shape}" for colour, shape in product(COLOURS, SHAPES)]
    queries += absent_queries(conversion, row["id"], len(queries), set(boxes), vocabulary)
    yield from locate_records(conversion, f"{row['id']}-objects", image, queries)
