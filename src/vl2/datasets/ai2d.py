"""AI2D: multiple-choice questions about school-book diagrams.

    questions/0.png.json     {questions: {TEXT: {abcLabel, answerTexts, correctAnswer, questionId}}, imageName}
    annotations/0.png.json   {text: {T0: {rectangle: [[x0, y0], [x1, y1]], replacementText}}}
    images/0.png
    ai2d_test_ids.csv        image ids of the test split, one a line

Where `abcLabel` holds, the options are letters that stand for the diagram's labels: they are drawn over them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from vl2.data.raw_files import Row, find_file, find_files, image_bytes, image_file, read_json, read_text
from vl2.data.record import Record, StoredImage
from vl2.datasets.conversion import Conversion, Converted, each
from vl2.datasets.question_answers import choice_question, converse
from vl2.errors import UserError


def read(conversion: Conversion) -> Converted:
    """The split is `train`, `test`, or `all`; without the list of test ids only `all` can be told."""
    rows: list[Row] = [(path.name, path) for path in find_files(conversion.folder, "questions/*.json")]
    if conversion.split != "all":
        if conversion.split not in ("train", "test"):
            raise UserError(f"split must be train, test or all, got {conversion.split!r}")
        tests = set(read_text(find_file(conversion.folder, "ai2d_test_ids.csv")).split())
        rows = [row for row in rows if (row[0].split(".")[0] in tests) == (conversion.split == "test")]
    return each(rows, lambda path: _records(conversion, path))


def _records(conversion: Conversion, path: Path) -> Iterator[Record]:
    content = read_json(path)
    name = content["imageName"]
    plain = image_file(conversion.folder, f"images/{name}")
    lettered = None
    for text, question in content["questions"].items():
        image = plain
        if question["abcLabel"]:
            image = lettered = lettered or _with_letters(conversion.folder, name)
        options, correct = question["answerTexts"], question["correctAnswer"]
        if not 0 <= correct < len(options):
            raise UserError(f"correctAnswer must be in 0..{len(options) - 1}, got {correct}")
        turn = choice_question(text, options), chr(ord("A") + correct)
        yield converse(conversion, question["questionId"], [turn], [image])


def _with_letters(folder: Path, name: str) -> StoredImage:
    """Draw each label's letter on white over the label."""
    labels: dict[str, Any] = json.loads((folder / "annotations" / f"{name}.json").read_bytes())["text"]
    with Image.open(folder / "images" / name) as opened:
        image = opened.convert("RGB")
    drawing = ImageDraw.Draw(image)
    for label in labels.values():
        (x0, y0), (x1, y1) = label["rectangle"]
        drawing.rectangle((x0, y0, x1, y1), fill="white", outline="black")
        drawing.text(((x0 + x1) / 2, (y0 + y1) / 2), label["replacementText"], fill="black", anchor="mm")
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return image_bytes(stream.getvalue(), name)
