"""WebSight: screenshots of made-up web pages with their HTML.

data/train-00000-of-00738-*.parquet   image: {bytes, path}, text (the HTML)
"""

from __future__ import annotations

from collections.abc import Iterator

from vl2.data.raw_files import Json, image_bytes, parquet_files, parquet_rows
from vl2.data.record import Record
from vl2.datasets.conversion import Conversion, Converted, each, numbered
from vl2.datasets.question_answers import PAGE_TO_HTML, converse


def read(conversion: Conversion) -> Converted:
    rows = parquet_rows(parquet_files(conversion.folder, conversion.split), ("image", "text"))

    def make(row: tuple[int, Json]) -> Iterator[Record]:
        number, page = row
        image = image_bytes(page["image"], f"of row {number}")
        yield converse(conversion, number, [(conversion.random(number).choice(PAGE_TO_HTML), page["text"])], [image])

    return each(numbered(rows), make)
