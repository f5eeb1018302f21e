"""Sets of pictures with their HTML: tables (PubTabNet) and made-up web pages (WebSight)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vl2.data.raw_files import Json, find_file, image_bytes, image_file, jsonl_rows, parquet_files, parquet_rows
from vl2.data.record import Record
from vl2.datasets.conversion import Conversion, Converted, each, numbered, of_split
from vl2.datasets.question_answers import PAGE_TO_HTML, TABLE_TO_HTML, converse
from vl2.errors import UserError


def read_pubtabnet(conversion: Conversion) -> Converted:
    """Read PubTabNet: pictures of tables and their HTML.

    PubTabNet_2.0.0.jsonl   {filename, split, html: {structure: {tokens}, cells: [{tokens}]}}
    train/PMC1064074_007_00.png
    """

    def make(row: Json) -> Iterator[Record]:
        name = row["filename"]
        image = image_file(conversion.folder, f"{conversion.split}/{name}")
        cells = [cell["tokens"] for cell in row["html"]["cells"]]
        html = table_html(row["html"]["structure"]["tokens"], cells)
        yield converse(
            conversion, name.rsplit(".", 1)[0], [(conversion.random(name).choice(TABLE_TO_HTML), html)], [image]
        )

    rows = jsonl_rows(find_file(conversion.folder, "PubTabNet*.jsonl"))
    return each(of_split(rows, "split", conversion.split), make)


def table_html(structure: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Put the cells between the structure's tags. UserError if their numbers differ."""
    places = structure.count("</td>")
    if places != len(cells):
        raise UserError(f"the table has {places} places for {len(cells)} cells")
    rest = iter(cells)
    pieces = ["".join(next(rest)) + tag if tag == "</td>" else tag for tag in structure]
    return f"<table>{''.join(pieces)}</table>"


def read_websight(conversion: Conversion) -> Converted:
    """Read WebSight: screenshots of made-up web pages with their HTML.

    data/train-00000-of-00738-*.parquet   image: {bytes, path}, text (the HTML)
    """
    rows = parquet_rows(parquet_files(conversion.folder, conversion.split), ("image", "text"))

    def make(row: tuple[int, Json]) -> Iterator[Record]:
        number, page = row
        image = image_bytes(page["image"], f"of row {number}")
        yield converse(conversion, number, [(conversion.random(number).choice(PAGE_TO_HTML), page["text"])], [image])

    return each(numbered(rows), make)
