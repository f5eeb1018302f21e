"""Converter of SROIE: scanned receipts with text lines, boxes and four fields."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vl2.data.json_stream import Row
from vl2.data.raw_files import Json, find_files, image_bytes, image_file, parquet_rows
from vl2.data.record import BoxPx, Record, StoredImage
from vl2.datasets.box_questions import Query, absent_queries, check_size, clip_box, locate_records
from vl2.datasets.conversion import Conversion, Converted, convert_rows
from vl2.datasets.question_answers import TRANSCRIBE, converse
from vl2.errors import UserError

FIELDS = {
    "company": "What is the name of the company?",
    "date": "What is the date?",
    "address": "What is the address?",
    "total": "What is the total?",
}
LINES_ASKED = 6  # locate queries per receipt; its other lines occur in the transcription only

_FOLDERS = ("{split}/img", "img", "*task1*{split}*", "{split}")


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """One receipt: its image, its text lines with boxes, and the fields that it has."""

    id: str
    image: StoredImage
    lines: tuple[tuple[str, BoxPx], ...]
    fields: dict[str, str]


def read_sroie(conversion: Conversion) -> Converted:
    """Read SROIE: scanned receipts with text lines, boxes and four fields.

    1. Files: img/000.jpg; box/000.txt or box/000.csv with lines `x1,y1,x2,y2,x3,y3,x4,y4,TEXT`; and the fields as
       JSON in entities/000.txt or key/000.json. A folder around these may name the split. In the original release,
       `0325updated.task1train(626p)` holds images and boxes, `0325updated.task2train(626p)` the fields.
    2. Parquet: id, image, width, height, lines: [{text, x0, y0, x1, y1}], company, date, address, total.

    A receipt gives a transcription, questions about its fields, and locate queries for its lines. Queries for absent
    lines use lines of the previous receipt.
    """
    if any(conversion.folder.glob("*.parquet")):
        columns = ("id", "image", "lines", *FIELDS)
        files = find_files(conversion.folder, f"{conversion.split}-*.parquet", f"{conversion.split}.parquet")
        return _convert(conversion, parquet_rows(files, columns), from_parquet=True)
    pictures = find_files(conversion.folder, *(f"{f.format(split=conversion.split)}/*.jpg" for f in _FOLDERS))
    return _convert(conversion, [(path.name, path) for path in pictures], from_parquet=False)


def _convert(conversion: Conversion, rows: Iterator[Row] | list[Row], *, from_parquet: bool) -> Converted:
    before: list[str] = []  # the lines of the previous receipt

    def make(row: Json | Path) -> Iterator[Record]:
        receipt = _of_row(row) if isinstance(row, dict) else _of_files(conversion.folder, row)
        yield from _records(conversion, receipt, list(before))
        before[:] = [text for text, _ in receipt.lines]

    return convert_rows(rows, make)


def _records(conversion: Conversion, receipt: Receipt, before: list[str]) -> Iterator[Record]:
    id, image = receipt.id, receipt.image
    rng = conversion.random(id)
    text = "\n".join(line for line, _ in receipt.lines)
    yield converse(conversion, f"{id}-text", [(rng.choice(TRANSCRIBE), text)], [image], category="ocr")
    if receipt.fields:
        turns = [(FIELDS[name], value) for name, value in receipt.fields.items()]
        yield converse(conversion, f"{id}-fields", turns, [image], category="document")
    # A line that occurs twice, or inside another line, would have several correct answers.
    count = Counter(line for line, _ in receipt.lines)
    single = [(line, box) for line, box in receipt.lines if count[line] == 1 and len(line) > 3]
    chosen = rng.sample(single, min(LINES_ASKED, len(single)))
    queries = [Query(label=line, boxes_px=(box,)) for line, box in chosen if sum(line in other for other in count) == 1]
    # Compare letters and digits only: "TOTAL:" is not absent if "TOTAL" is present.
    here = _letters_and_digits(text)
    vocabulary = [
        line for line in before if len(_letters_and_digits(line)) > 3 and _letters_and_digits(line) not in here
    ]
    queries += absent_queries(conversion, id, len(queries), set(count), vocabulary)
    yield from locate_records(conversion, f"{id}-lines", image, queries)


def _letters_and_digits(text: str) -> str:
    return "".join(filter(str.isalnum, text)).lower()


def _of_row(row: Json) -> Receipt:
    image = image_bytes(row["image"], str(row["id"]))
    check_size(row, image)
    size = image.width, image.height
    lines = [(r["text"], clip_box((r["x0"], r["y0"], r["x1"], r["y1"]), size)) for r in row["lines"]]
    fields = {name: row[name] for name in FIELDS if row[name]}
    return Receipt(id=str(row["id"]), image=image, lines=tuple(lines), fields=fields)


def _of_files(folder: Path, picture: Path) -> Receipt:
    image = image_file(folder, picture.relative_to(folder).as_posix())
    stem, around = picture.stem, picture.parent.parent
    boxes = _first([around / "box" / f"{stem}.txt", around / "box" / f"{stem}.csv", picture.with_suffix(".txt")])
    if boxes is None:
        raise UserError(f"{picture.name} has no file of boxes")
    lines = [box_line(line, (image.width, image.height)) for line in _text(boxes).splitlines() if line.strip()]
    kept = [around / "entities" / f"{stem}.txt", around / "key" / f"{stem}.json"]
    entities = _first([*kept, *sorted(around.glob(f"*task2*/{stem}.txt"))])
    values: Json = json.loads(_text(entities)) if entities is not None else {}
    fields = {name: values[name] for name in FIELDS if values.get(name)}
    return Receipt(id=stem, image=image, lines=tuple(lines), fields=fields)


def _first(paths: list[Path]) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig", errors="replace")


def box_line(line: str, size: tuple[int, int]) -> tuple[str, BoxPx]:
    """Parse a line `x1,y1,...,x4,y4,TEXT`, whose text may hold commas, into the text and its bounding box."""
    *corners, text = line.split(",", 8)
    if len(corners) != 8:
        raise UserError(f"a line must be eight numbers and a text, got {line!r:.80}")
    xs, ys = [float(v) for v in corners[::2]], [float(v) for v in corners[1::2]]
    return text.strip(), clip_box((min(xs), min(ys), max(xs), max(ys)), size)
