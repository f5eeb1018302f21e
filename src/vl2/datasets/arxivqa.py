"""ArxivQA, the questions of Multimodal ArXiv: options about figures of papers, with a reason for the right one.

    arxivqa.jsonl   {id, image: "images/1501.00713_1.jpg", question, options: ["A) ..."], label: "A", rationale}
    images/1501.00713_1.jpg

The reason comes first and the option last, as reasoning is learned.
"""

from __future__ import annotations

from collections.abc import Iterator

from vl2.data.raw_files import Json, find_file, image_file, jsonl_rows
from vl2.data.record import Record
from vl2.datasets.conversion import Conversion, Converted, each
from vl2.datasets.question_answers import converse
from vl2.errors import UserError

REASON = "Explain, and give the letter of the right option at the end."


def read(conversion: Conversion) -> Converted:
    def make(row: Json) -> Iterator[Record]:
        letter = row["label"].strip()[:1].upper()
        if not "A" <= letter < chr(ord("A") + len(row["options"])):
            raise UserError(f"label must be one of {len(row['options'])} letters, got {row['label']!r}")
        question = "\n".join([row["question"].strip(), *map(str.strip, row["options"]), REASON])
        answer = f"{row['rationale'].strip()}\nThe answer is {letter}."
        yield converse(conversion, row["id"], [(question, answer)], [image_file(conversion.folder, row["image"])])

    return each(jsonl_rows(find_file(conversion.folder, "arxivqa.jsonl")), make)
