"""Tables as they are found, with long cells: every cell broken into lines, drawn whole or refused.

`table_image` chooses tables that are drawn on one line a row; here a question comes with its table.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from PIL import Image

from vl2.errors import UserError
from vl2.synth import fonts
from vl2.synth.draft import store
from vl2.synth.page import Page, line_height, text_width, wrap

MAX_CELL_PX = 190  # wider cells are broken into lines; a long word stays whole
MAX_WIDTH_PX, MAX_HEIGHT_PX = 1600, 1800
STYLES = ("grid", "zebra", "rules")

_PAD = 6
_INK, _LINE, _SHADE, _HEAD = (25, 25, 25), (150, 150, 150), (236, 240, 245), (216, 224, 234)


def draw_cells(table: Sequence[Sequence[str]]) -> bytes:
    """Draw rows of cells, the header first, and return the PNG. The same table looks the same every time.

    UserError for a table that is too large to read in one picture, or that no font of this machine can write.
    """
    text = "\n".join("\t".join(row) for row in table)
    if not text.strip():
        raise UserError("the table is empty")
    rng = random.Random(text)
    face = fonts.choose_face(rng, "".join(text.split()))
    if face is None:
        raise UserError("no font of this machine covers the table")
    font, style = fonts.load(face, rng.randint(13, 16)), rng.choice(STYLES)
    rows = [[_lines(cell, font) for cell in row] for row in table]
    num_columns = max(map(len, rows))
    rows = [row + [[]] * (num_columns - len(row)) for row in rows]
    widths = [_width([row[at] for row in rows], font) for at in range(num_columns)]
    step = round(line_height(font) * 1.15)
    heights = [step * max(1, *map(len, row)) + 2 * _PAD for row in rows]
    size = (sum(widths) + 2 * _PAD, sum(heights) + 2 * _PAD)
    if size[0] > MAX_WIDTH_PX or size[1] > MAX_HEIGHT_PX:
        limit = f"{MAX_WIDTH_PX} x {MAX_HEIGHT_PX}"
        raise UserError(f"the table is too large to draw: {size[0]} x {size[1]} px, {limit} are allowed")
    page = Page(Image.new("RGB", size, "white"))
    top = _PAD
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        _draw_row(page, row, (top, height, step), widths, font, style, number)
        top += height
    data = store(page.image).data
    assert data is not None
    return data


def _lines(cell: str, font: fonts.Font) -> list[str]:
    language = "zh" if any("一" <= char <= "鿿" for char in cell) else "en"
    return [line for part in cell.split("\n") for line in wrap(" ".join(part.split()), font, MAX_CELL_PX, language)]


def _width(cells: Sequence[Sequence[str]], font: fonts.Font) -> int:
    return max((text_width(font, line) for lines in cells for line in lines), default=0) + 2 * _PAD


def _draw_row(
    page: Page,
    row: Sequence[Sequence[str]],
    place: tuple[int, int, int],
    widths: Sequence[int],
    font: fonts.Font,
    style: str,
    number: int,
) -> None:
    """Draw one row at `place`: its top, its height, and the step between lines."""
    top, height, step = place
    right = _PAD + sum(widths)
    if number == 0 or (style == "zebra" and number % 2 == 0):
        page.draw.rectangle((_PAD, top, right, top + height), fill=_SHADE if number else _HEAD)
    x = _PAD
    for lines, width in zip(row, widths, strict=True):
        if style == "grid":
            page.draw.rectangle((x, top, x + width, top + height), outline=_LINE)
        for at, line in enumerate(lines):
            page.write((x + _PAD, top + _PAD + at * step), line, font, _INK)
        x += width
    if style == "rules":
        page.draw.line((_PAD, top + height, right, top + height), fill=_LINE)
