"""GQA: compositional questions about Visual Genome images.

    train_balanced_questions.json   {"02930152": {imageId, question, answer, fullAnswer}}
    images/2354786.jpg

The split is `train_balanced`, `val_balanced`, ...; `train` means `train_balanced`.
"""

from __future__ import annotations

from collections.abc import Iterator

from vl2.data.raw_files import Json, Row, find_file, image_file, read_json
from vl2.data.record import Record
from vl2.datasets.conversion import Conversion, Converted, each
from vl2.datasets.question_answers import converse, short_question
from vl2.errors import UserError


def read(conversion: Conversion) -> Converted:
    path = find_file(
        conversion.folder, f"{conversion.split}_questions.json", f"{conversion.split}_balanced_questions.json"
    )
    questions = read_json(path)
    if not isinstance(questions, dict):
        raise UserError(f"{path.name} must hold an object of questions by id")
    rows: list[Row] = [(f"question {id}", (id, row)) for id, row in questions.items()]

    def make(row: tuple[str, Json]) -> Iterator[Record]:
        id, question = row
        image = image_file(conversion.folder, f"images/{question['imageId']}.jpg", f"{question['imageId']}.jpg")
        yield converse(conversion, id, [(short_question(question["question"]), question["answer"])], [image])

    return each(rows, make)
