"""DocVQA: questions about pages of scanned documents.

    train_v1.0.json (or train_v1.0_withQT.json)   {data: [{questionId, question, image: "documents/x.png", answers}]}
    documents/xnbl0037_1.png   (or under train/)

Several answers are spellings of one; the first is learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vl2.data.convert.conversation import converse, short_question
from vl2.data.convert.layout import Converted, Job, Json, each, find_file, image_file, read_list
from vl2.data.record import Record


def read(job: Job) -> Converted:
    path = find_file(job.folder, f"{job.split}_v1.0.json", f"{job.split}_v1.0_withQT.json", f"*{job.split}_v1.0*.json")
    return read_questions(job, path, "image", ("", f"{job.split}/"))


def read_questions(job: Job, path: Path, image_key: str, folders: tuple[str, ...]) -> Converted:
    """Read the form that DocVQA and InfographicVQA share."""

    def make(row: Json) -> Iterator[Record]:
        image = image_file(job.folder, *(f"{folder}{row[image_key]}" for folder in folders))
        yield converse(job, row["questionId"], [(short_question(row["question"]), row["answers"][0])], [image])

    return each(read_list(path, "data"), make)
