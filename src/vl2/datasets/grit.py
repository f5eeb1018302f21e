"""GRIT: web images whose captions name boxes, found by a detector (so the boxes are not checked by people).

    coyo_0_snappy.parquet   key, caption, noun_chunks, ref_exps, ... and images/{key}.jpg or {key[:5]}/{key}.jpg
    00000.tar               the same as img2dataset writes it: {key}.jpg and {key}.json with those fields

`noun_chunks` and `ref_exps` are [start, end, x0, y0, x1, y1, score]: characters of the caption, then fractions of
the image's sides. Noun chunks make a grounded caption, referring expressions make queries. Most of an image is not
boxed, so nothing is said to be absent.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain

from vl2.data.raw_files import Json, Row, find_files, image_bytes, image_file, parquet_rows, tar_samples
from vl2.data.record import Record, StoredImage
from vl2.datasets.boxes import Query, box_of_fractions, grounded_caption, locate_records
from vl2.datasets.conversion import Conversion, Converted, each
from vl2.process.tiling import Size

Span = tuple[int, int]


def read(conversion: Conversion) -> Converted:
    files = find_files(conversion.folder, "*.tar", "*.parquet")
    if files[0].suffix == ".tar":
        rows: Iterator[Row] = chain.from_iterable(map(tar_samples, files))
        return each(rows, lambda sample: _records(conversion, *_of_sample(sample)))
    rows = parquet_rows(files, ("key", "caption", "noun_chunks", "ref_exps"))
    return each(rows, lambda row: _records(conversion, row, _file(conversion, str(row["key"]))))


def _of_sample(sample: dict[str, bytes]) -> tuple[Json, StoredImage]:
    row = json.loads(sample[".json"])
    return row, image_bytes(sample[".jpg"], str(row["key"]))


def _file(conversion: Conversion, key: str) -> StoredImage:
    return image_file(conversion.folder, f"images/{key}.jpg", f"{key[:5]}/{key}.jpg", f"{key}.jpg")


def _records(conversion: Conversion, row: Json, image: StoredImage) -> Iterator[Record]:
    caption, size = row["caption"], (image.width, image.height)
    chunks = phrases(caption, row["noun_chunks"], size)
    yield grounded_caption(conversion, row["key"], image, _pieces(caption, chunks))
    expressions = phrases(caption, row["ref_exps"], size).values()
    yield from locate_records(conversion, f"{row['key']}-phrases", image, list(expressions))


def phrases(caption: str, found: Sequence[Sequence[float]], size: Size) -> dict[Span, Query]:
    """Gather the boxes of each span of the caption."""
    boxes = defaultdict(list)
    for start, end, x0, y0, x1, y1, *_ in found:
        boxes[int(start), int(end)].append(box_of_fractions((x0, y0, x1, y1), size))
    return {
        (start, end): Query(label=caption[start:end].strip(), boxes_px=tuple(boxes[start, end]))
        for start, end in sorted(boxes)
    }


def _pieces(caption: str, chunks: dict[Span, Query]) -> list[str | Query]:
    """Cut the caption at its chunks; a chunk that starts inside the one before it stays text."""
    pieces: list[str | Query] = []
    position = 0
    for (start, end), query in chunks.items():
        if start >= position:
            pieces += [caption[position:start], query]
            position = end
    return [*pieces, caption[position:]]
