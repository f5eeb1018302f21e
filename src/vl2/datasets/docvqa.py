"""DocVQA: questions about pages of scanned documents.

    spdocvqa_qas/train_v1.0_withQT.json   {data: [{questionId, question, image: "documents/xnbl0037_1.png", answers}]}
    spdocvqa_images/xnbl0037_1.png

The older release had train_v1.0.json and documents/ instead, both at the top or under train/: it is read too. Several
answers are spellings of one; the first is learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vl2.data.raw_files import Json, find_file, image_file, read_list
from vl2.data.record import Record
from vl2.datasets.conversion import Conversion, Converted, each
from vl2.datasets.question_answers import converse, short_question


def read(conversion: Conversion) -> Converted:
    folders = ("spdocvqa_qas/", "", f"{conversion.split}/")
    names = (f"{folder}{conversion.split}_v1.0{form}.json" for folder in folders for form in ("_withQT", ""))
    path = find_file(conversion.folder, *names)
    return read_questions(conversion, path, "image", ("", f"{conversion.split}/"), ("spdocvqa_images/",))


def read_questions(
    conversion: Conversion, path: Path, image_key: str, folders: tuple[str, ...], flat_folders: tuple[str, ...] = ()
) -> Converted:
    """Read the form that DocVQA and InfographicVQA share. In `flat_folders` a picture lies without its own folder."""

    def make(row: Json) -> Iterator[Record]:
        name: str = row[image_key]
        flat = name.rpartition("/")[2]
        places = (*(f"{folder}{name}" for folder in folders), *(f"{folder}{flat}" for folder in flat_folders))
        image = image_file(conversion.folder, *places)
        yield converse(conversion, row["questionId"], [(short_question(row["question"]), row["answers"][0])], [image])

    return each(read_list(path, "data"), make)
