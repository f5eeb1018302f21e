"""ChartQA: questions that people wrote about charts, and ones made by a machine from their captions.

    train/train_human.json, train/train_augmented.json   [{imgname, query, label}]
    train/png/41699051005347.png

The folder is the one that holds `train/` (`ChartQA Dataset` in the release).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from vl2.data.raw_files import Row, find_files, image_file, read_list
from vl2.data.record import Record
from vl2.datasets.conversion import Conversion, Converted, each
from vl2.datasets.question_answers import converse, short_question


def read(conversion: Conversion) -> Converted:
    files = find_files(conversion.folder, f"{conversion.split}/{conversion.split}_*.json")
    rows = chain.from_iterable(_numbered(path) for path in files)

    def make(row: tuple[str, int, dict[str, str]]) -> Iterator[Record]:
        part, number, question = row
        image = image_file(conversion.folder, f"{conversion.split}/png/{question['imgname']}")
        yield converse(
            conversion, f"{part}-{number}", [(short_question(question["query"]), question["label"])], [image]
        )

    return each(rows, make)


def _numbered(path: Path) -> list[Row]:
    """Number a file's questions, which have no ids of their own."""
    return [(where, (path.stem, i, row)) for i, (where, row) in enumerate(read_list(path))]
