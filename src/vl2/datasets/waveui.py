"""WaveUI-25k: elements of web, desktop and phone screens, one a row, each with its box.

    data/train-00000-of-00022.parquet   image, bbox: [x0, y0, x1, y1] in pixels, resolution, name, description, ...

An element is asked for by its description, or else its name. The rest of a screen is not boxed, so nothing is said to
be absent.
"""

from __future__ import annotations

from collections.abc import Iterator

from vl2.data.raw_files import Json, image_bytes, parquet_files, parquet_rows
from vl2.data.record import Record
from vl2.datasets.boxes import Query, check_size, clip_box, locate_records
from vl2.datasets.conversion import Conversion, Converted, each, numbered
from vl2.errors import UserError


def read(conversion: Conversion) -> Converted:
    rows = parquet_rows(
        parquet_files(conversion.folder, conversion.split), ("image", "bbox", "name", "description"), batch_rows=4
    )

    def make(row: tuple[int, Json]) -> Iterator[Record]:
        number, element = row
        image = image_bytes(element["image"], f"of row {number}")
        if element.get("resolution"):
            check_size(dict(zip(("width", "height"), element["resolution"], strict=True)), image)
        label = (element["description"] or element["name"] or "").strip().rstrip(".")
        if not label:
            raise UserError("the element has no description and no name")
        box = clip_box(element["bbox"], (image.width, image.height))
        yield from locate_records(conversion, number, image, [Query(label=label, boxes_px=(box,))])

    return each(numbered(rows), make)
