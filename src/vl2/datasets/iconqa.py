"""IconQA: questions about abstract diagrams, with options in words or a blank to fill.

    iconqa/train/choose_txt/0/data.json   {question, choices, answer: the index of the right one}
    iconqa/train/fill_in_blank/1/data.json   {question, answer: a text}
    .../image.png beside it

The third kind, `choose_img`, whose options are pictures, is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vl2.data.raw_files import Row, find_files, image_file, read_json
from vl2.data.record import Record
from vl2.datasets.conversion import Conversion, Converted, each
from vl2.datasets.question_answers import choice_question, converse, short_question
from vl2.errors import UserError


def read(conversion: Conversion) -> Converted:
    files = find_files(
        conversion.folder, f"iconqa/{conversion.split}/*/*/data.json", f"{conversion.split}/*/*/data.json"
    )
    kept = [path for path in files if path.parts[-3] in ("choose_txt", "fill_in_blank")]
    rows: list[Row] = [(path.relative_to(conversion.folder).as_posix(), path) for path in kept]

    def make(path: Path) -> Iterator[Record]:
        content = read_json(path)
        image = image_file(conversion.folder, path.with_name("image.png").relative_to(conversion.folder).as_posix())
        question, answer = content["question"], content["answer"]
        if path.parts[-3] == "choose_txt":
            choices = content["choices"]
            if not 0 <= answer < len(choices):
                raise UserError(f"answer must be in 0..{len(choices) - 1}, got {answer}")
            turn = choice_question(question, choices), chr(ord("A") + answer)
        else:
            turn = short_question(question), str(answer)
        yield converse(conversion, f"{conversion.split}-{path.parts[-2]}", [turn], [image])

    return each(rows, make)
