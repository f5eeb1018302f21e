"""easy-VQA: one coloured shape on a small picture, short questions; `vl2 data fetch easy_vqa` gets it.

    train/questions.json   [[question, answer, image id], ...]
    train/images/0.png

The same in `test`, the official split. All questions about a picture are turns of one record in `train`, in an order
that is drawn: the file has those for shape and colour before all yes-or-no questions, none of which would ever come
first. In `test` each is a record of its own, because an earlier question gives answers away.
"""

from __future__ import annotations

from collections.abc import Iterator

from vl2.data.raw_files import Row, find_file, image_file, read_list
from vl2.data.record import Record
from vl2.datasets.conversion import Conversion, Converted, each
from vl2.datasets.question_answers import Turn, converse, short_question
from vl2.errors import UserError


def read(conversion: Conversion) -> Converted:
    rows = read_list(find_file(conversion.folder, f"{conversion.split}/questions.json"))
    return each(_single(rows) if conversion.split == "test" else _by_picture(rows), lambda row: _make(conversion, *row))


def _single(rows: list[Row]) -> Iterator[Row]:
    for number, (where, row) in enumerate(rows):
        yield where, (number, [row])


def _by_picture(rows: list[Row]) -> Iterator[Row]:
    """Gather the questions of each picture, in the order in which pictures first occur."""
    gathered: dict[int, list[object]] = {}
    for _, row in rows:
        picture = row[2] if isinstance(row, list) and len(row) == 3 else None
        gathered.setdefault(picture if isinstance(picture, int) else -1, []).append(row)
    for picture, questions in gathered.items():
        yield f"image {picture}", (picture, questions)


def _make(conversion: Conversion, id: int, questions: list[list[object]]) -> Iterator[Record]:
    turns: list[Turn] = []
    for question, answer, picture in conversion.random("order", id).sample(questions, len(questions)):
        if not isinstance(question, str) or not isinstance(answer, str) or not isinstance(picture, int):
            raise UserError("a row must hold a question, an answer and the number of an image")
        # The wish for a short answer is said once.
        turns.append((question if turns else short_question(question), answer))
    yield converse(
        conversion,
        f"{conversion.split}-{id}",
        turns,
        [image_file(conversion.folder, f"{conversion.split}/images/{picture}.png")],
    )
