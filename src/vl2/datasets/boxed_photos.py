"""Photos with boxes in one Parquet file: blood cells (BCCD) and playing cards, small sets that anyone may use.

    bccd.parquet or cards.parquet   id, image, width, height, objects: [{name, x0, y0, x1, y1}], upstream_split

The split is one of upstream's (train, val, test), or `all`. Not every red cell of BCCD is boxed, so its usual rate of
queries for what is absent is 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from vl2.data.raw_files import Json, find_file, image_bytes, parquet_rows
from vl2.data.record import BoxPx, Record
from vl2.datasets.boxes import Query, absent_queries, check_size, clip_box, locate_records
from vl2.datasets.conversion import Conversion, Converted, each, of_split
from vl2.errors import UserError

# What the names in the files are called when they are asked for.
LABELS = {
    "RBC": "red blood cell",
    "WBC": "white blood cell",
    "Platelets": "platelet",
    **{rank: f"{rank} card" for rank in ("nine", "ten", "jack", "queen", "king", "ace")},
}


def read(conversion: Conversion) -> Converted:
    path = find_file(conversion.folder, f"{conversion.source}.parquet")
    vocabulary = [label for label in LABELS.values() if label.endswith(" card") == (conversion.source == "cards")]

    def make(row: Json) -> Iterator[Record]:
        image = image_bytes(row["image"], row["id"])
        check_size(row, image)
        boxes: dict[str, list[BoxPx]] = defaultdict(list)
        for found in row["objects"]:
            if found["name"] not in LABELS:
                raise UserError(f"an object must be one of {', '.join(LABELS)}, got {found['name']!r}")
            corners = [found[side] for side in ("x0", "y0", "x1", "y1")]
            boxes[LABELS[found["name"]]].append(clip_box(corners, (image.width, image.height)))
        queries = [Query(label=label, boxes_px=tuple(found)) for label, found in boxes.items()]
        queries += absent_queries(conversion, row["id"], len(queries), set(boxes), vocabulary)
        yield from locate_records(conversion, row["id"], image, queries)

    rows = parquet_rows([path], ("id", "image", "objects", "upstream_split"))
    return each(rows if conversion.split == "all" else of_split(rows, "upstream_split", conversion.split), make)
