"""Converter of tables that are regions of PDF pages: FinTabNet."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from vl2.data.raw_files import Json, find_file, image_bytes, jsonl_rows
from vl2.data.record import Record, StoredImage
from vl2.datasets.conversion import Conversion, Converted, convert_rows
from vl2.datasets.question_answers import TABLE_TO_HTML, converse
from vl2.datasets.web_sets import table_html
from vl2.errors import UserError
from vl2.optional_imports import install_extra

PIXELS_PER_POINT = 2.0  # 144 dpi: small print of annual reports stays legible
MARGIN_POINTS = 6.0


def read_fintabnet(conversion: Conversion) -> Converted:
    """Read FinTabNet: tables of annual reports with their HTML. The pages are drawn, which needs pypdfium2.

    FinTabNet_1.0.0_cell_train.jsonl   filename, table_id, bbox: [x0, y0, x1, y1] of the table in points from the
                                       lower left, html: {structure: {tokens}, cells: [{tokens}]}
    pdf/ADS/2007/page_112.pdf          one page
    """
    document = _import_pdfium().PdfDocument
    path = find_file(conversion.folder, f"FinTabNet_*_cell_{conversion.split}.jsonl")

    def make(row: Json) -> Iterator[Record]:
        id = f"{conversion.split}-{row['table_id']}"
        page = _page_file(conversion.folder, row["filename"])
        image = _draw_region(document, page, row["bbox"])
        cells = [cell["tokens"] for cell in row["html"]["cells"]]
        html = table_html(row["html"]["structure"]["tokens"], cells)
        yield converse(conversion, id, [(conversion.random(id).choice(TABLE_TO_HTML), html)], [image])

    return convert_rows(jsonl_rows(path), make)


def _import_pdfium() -> Any:
    try:
        import pypdfium2
    except ImportError:
        raise UserError(f"pages of PDF files need pypdfium2: {install_extra('pdf')}") from None
    return pypdfium2


def _page_file(folder: Path, name: str) -> Path:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
        raise UserError(f"page {name!r} leads out of the folder")
    path = folder / "pdf" / name
    if not path.is_file():
        raise UserError(f"page {name} is not there")
    return path


def _draw_region(document: Any, path: Path, box: Sequence[float]) -> StoredImage:
    """Draw a region of the first page, with a margin, as PNG. Raise UserError if the page cannot be drawn."""
    x0, y0, x1, y1 = (float(side) for side in box)
    try:
        with document(path) as pdf:
            page = pdf[0]
            width, height = page.get_size()
            cut = (x0, y0, width - x1, height - y1)  # from the left, bottom, right and top
            if min(cut) < -MARGIN_POINTS or x0 >= x1 or y0 >= y1:
                raise UserError(f"the table's box {[x0, y0, x1, y1]} is not on its page of {width:g} x {height:g}")
            crop = tuple(max(0.0, side - MARGIN_POINTS) for side in cut)
            drawn = page.render(scale=PIXELS_PER_POINT, crop=crop).to_pil()
    except RuntimeError as error:  # pypdfium2's errors
        raise UserError(f"page {path.name} cannot be drawn: {error}") from None
    stream = io.BytesIO()
    drawn.convert("RGB").save(stream, "PNG")
    return image_bytes(stream.getvalue(), path.name)
