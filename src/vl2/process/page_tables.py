"""Write the HTML tables of a page as Markdown tables, where Markdown can express them.

A Markdown table has one header row, and every row has the same number of cells. A table with merged cells, a table
inside a table, or lists and paragraphs in a cell cannot be written so. Such a table stays HTML.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Literal

TableFormat = Literal["html", "markdown"]

_TABLE_TAG = re.compile(r"<(?P<end>/?)table\b[^<>]{0,999}>", re.IGNORECASE)
_ROWS = {"tr"}
_CELLS = {"td", "th"}
_GROUPS = {"table", "thead", "tbody", "tfoot", "colgroup", "col"}
_INLINE = {"b", "strong", "i", "em", "code", "sub", "sup", "u", "s"}  # Markdown allows these within a line
_FORMULA = "\\("


def tables_to_markdown(text: str) -> str:
    """Replace each complete HTML table of a text by a Markdown table, unless Markdown cannot express it."""
    pieces, end = [], 0
    for start, stop in whole_tables(text):
        table = table_to_markdown(text[start:stop])
        if table is not None:
            pieces += [text[end:start], table]
            end = stop
    if not pieces:
        return text
    # A Markdown table has an empty line before and after it.
    return "\n\n".join(piece.strip() for piece in [*pieces, text[end:]] if piece.strip())


def whole_tables(text: str) -> Iterator[tuple[int, int]]:
    """Yield the start and the end of each table that is in no other and is complete."""
    start, depth = 0, 0
    for tag in _TABLE_TAG.finditer(text):
        if not tag["end"]:
            start = tag.start() if depth == 0 else start
            depth += 1
        elif depth > 0:
            depth -= 1
            if depth == 0:
                yield start, tag.end()


def table_to_markdown(html: str) -> str | None:
    """Return a table in HTML as a Markdown table, or None if Markdown cannot express it.

    The first row becomes the header, because a Markdown table always has one. Rows with fewer cells than others get
    empty cells at their end, as browsers show them.
    """
    reader = _TableReader()
    reader.feed(html)
    reader.close()
    rows = [row for row in reader.rows if row]
    if not reader.is_plain or not rows:
        return None
    width = max(map(len, rows))
    lines = [f"| {' | '.join([*row, *[''] * (width - len(row))])} |" for row in rows]
    return "\n".join([lines[0], f"|{' --- |' * width}", *lines[1:]])


class _TableReader(HTMLParser):
    """Read the cells of one table. `is_plain` tells whether all that was found can be written in Markdown."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.rows: list[list[str]] = []
        self.is_plain = True
        self._tables = 0
        self._cell: list[str] | None = None  # pieces of the open cell

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _ROWS:
            self._end_cell()
            self.rows.append([])
        elif tag in _CELLS:
            self._end_cell()
            if not self.rows:
                self.rows.append([])
            self._cell = []
            self.is_plain &= all(value == "1" for name, value in attrs if name in ("colspan", "rowspan"))
        elif tag == "br" or tag in _INLINE:
            self._add(f"<{tag}>")
        elif tag == "table":
            self._tables += 1
            self.is_plain &= self._tables == 1
        else:
            self.is_plain &= tag in _GROUPS

    def handle_endtag(self, tag: str) -> None:
        if tag in _INLINE:
            self._add(f"</{tag}>")
        elif tag in _CELLS or tag in _ROWS or tag == "table":
            self._end_cell()

    def handle_data(self, data: str) -> None:
        if self._cell is None:
            self.is_plain &= not data.strip()  # text between the cells would be lost
        # "<" would begin a tag, a bar would end the cell, and stars would set words in italics.
        shown = data.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
        self._add(shown if _FORMULA in shown else shown.replace("*", "\\*"))

    def _add(self, piece: str) -> None:
        if self._cell is not None:
            self._cell.append(piece)

    def _end_cell(self) -> None:
        if self._cell is not None:
            self.rows[-1].append(" ".join("".join(self._cell).split()))
        self._cell = None
