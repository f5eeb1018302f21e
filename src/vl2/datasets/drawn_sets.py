"""Converters of datasets of drawn shapes: easy-VQA (questions) and NLVR (statements)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import product

from vl2.data.json_stream import Row, list_rows
from vl2.data.raw_files import Json, find_file, image_bytes, image_file, jsonl_rows, parquet_files, parquet_rows
from vl2.data.record import BoxPx, Record
from vl2.datasets.box_questions import Query, absent_queries, check_size, clip_box, locate_records
from vl2.datasets.conversion import Conversion, Converted, convert_rows
from vl2.datasets.question_answers import Turn, converse, short_question
from vl2.errors import UserError


def read_easy_vqa(conversion: Conversion) -> Converted:
    """Read easy-VQA: short questions about one colored shape. `vl2 data fetch easy_vqa` downloads it.

        train/questions.json   [[question, answer, image id], ...]
        train/images/0.png

    The official split `test` has the same layout. In `train` all questions about an image are turns of one record, in
    random order, because the file lists the yes-or-no questions last and they would never come first. In `test` each
    question is its own record, because earlier turns would give answers away.
    """
    rows = list_rows(find_file(conversion.folder, f"{conversion.split}/questions.json"))
    return convert_rows(
        _single_questions(rows) if conversion.split == "test" else _by_picture(rows),
        lambda row: _easy_vqa_record(conversion, *row),
    )


def _single_questions(rows: Iterator[Row]) -> Iterator[Row]:
    for number, (where, row) in enumerate(rows):
        yield where, row if isinstance(row, UserError) else (number, [row])


def _by_picture(rows: Iterator[Row]) -> Iterator[Row]:
    """Group the questions by image, in the order in which the images first occur. The set is small."""
    gathered: dict[int, list[object]] = {}
    for where, row in rows:
        if isinstance(row, UserError):
            yield where, row
            continue
        picture = row[2] if isinstance(row, list) and len(row) == 3 else None
        gathered.setdefault(picture if isinstance(picture, int) else -1, []).append(row)
    for picture, questions in gathered.items():
        yield f"image {picture}", (picture, questions)


def _easy_vqa_record(conversion: Conversion, id: int, questions: list[list[object]]) -> Iterator[Record]:
    turns: list[Turn] = []
    for question, answer, picture in conversion.random("order", id).sample(questions, len(questions)):
        if not isinstance(question, str) or not isinstance(answer, str) or not isinstance(picture, int):
            raise UserError("a row must hold a question, an answer and the number of an image")
        # Only the first question asks for a short answer.
        turns.append((question if turns else short_question(question), answer))
    yield converse(
        conversion,
        f"{conversion.split}-{id}",
        turns,
        [image_file(conversion.folder, f"{conversion.split}/images/{picture}.png")],
    )


NLVR_COLORS = ("yellow", "black", "blue")
NLVR_SHAPES = ("square", "circle", "triangle")
PERMUTATIONS = 6


def read_nlvr(conversion: Conversion) -> Converted:
    """Read NLVR: drawn scenes of colored shapes with sentences that are true or false.

    1. Files: train/train.json (one JSON object per line: identifier, directory, sentence, label) and six images per
       sentence, train/images/{directory}/train-{identifier}-{0..5}.png, the same scene with its boxes permuted.
    2. Parquet: id, image, sentence, label, and objects: [{shape, color, x0, y0, x1, y1}]. The objects are complete,
       so they give locate queries such as "yellow square", for present and for absent shapes.
    """
    if any(conversion.folder.glob("*.parquet")):
        rows = parquet_rows(
            parquet_files(conversion.folder, conversion.split), ("id", "image", "sentence", "label", "objects")
        )
        return convert_rows(rows, lambda row: _nlvr_of_row(conversion, row))
    if conversion.negatives:
        raise UserError("the original files are read without their objects: set negatives to 0")
    return convert_rows(
        jsonl_rows(find_file(conversion.folder, f"{conversion.split}/{conversion.split}.json")),
        lambda row: _nlvr_of_line(conversion, row),
    )


def statement(sentence: str, is_true: bool) -> Turn:
    return f"{sentence.strip()}\nIs this true of the image? Answer yes or no.", "Yes" if is_true else "No"


def _nlvr_of_line(conversion: Conversion, row: Json) -> Iterator[Record]:
    label = str(row["label"]).lower()
    if label not in ("true", "false"):
        raise UserError(f"label must be true or false, got {row['label']!r}")
    for number in range(PERMUTATIONS):
        name = f"{conversion.split}-{row['identifier']}-{number}"
        image = image_file(conversion.folder, f"{conversion.split}/images/{row['directory']}/{name}.png")
        yield converse(conversion, name, [statement(row["sentence"], label == "true")], [image])


def _nlvr_of_row(conversion: Conversion, row: Json) -> Iterator[Record]:
    image = image_bytes(row["image"], row["id"])
    check_size(row, image)
    yield converse(conversion, row["id"], [statement(row["sentence"], row["label"])], [image])
    boxes: dict[str, list[BoxPx]] = defaultdict(list)
    for found in row["objects"]:
        corners = [found[side] for side in ("x0", "y0", "x1", "y1")]
        boxes[f"{found['color']} {found['shape']}"].append(clip_box(corners, (image.width, image.height)))
    queries = [Query(label=label, boxes_px=tuple(found)) for label, found in boxes.items()]
    vocabulary = [f"{color} {shape}" for color, shape in product(NLVR_COLORS, NLVR_SHAPES)]
    queries += absent_queries(conversion, row["id"], len(queries), set(boxes), vocabulary)
    yield from locate_records(conversion, f"{row['id']}-objects", image, queries)
