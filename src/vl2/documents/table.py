"""Tables as rows of cells, read from HTML and written as HTML; tables that go on are joined here."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html.parser import HTMLParser

MAX_SPAN = 1000  # as in the HTML standard


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell. `content` is HTML: escaped text and inline tags."""

    content: str
    num_columns: int = 1
    num_rows: int = 1
    is_header: bool = False

    @property
    def text(self) -> str:
        """The content without tags."""
        reader = _TextReader()
        reader.feed(self.content)
        reader.close()
        return " ".join("".join(reader.pieces).split())


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table: each row has the cells that begin in it, from left to right."""

    rows: tuple[tuple[Cell, ...], ...]

    @property
    def num_columns(self) -> int:
        """The width of the widest row, with cells that reach down from earlier rows."""
        return max(
            (max((column + cell.num_columns for column, cell in row), default=0) for row in self.placed()), default=0
        )

    def placed(self) -> list[list[tuple[int, Cell]]]:
        """Return each row's cells with the column in which they begin, as a browser places them."""
        taken: dict[int, int] = {}  # column -> rows for which a cell from above still fills it
        placed = []
        for row in self.rows:
            column, found, below = 0, [], {at: left - 1 for at, left in taken.items() if left > 1}
            for cell in row:
                while taken.get(column, 0) > 0:
                    column += 1
                found.append((column, cell))
                if cell.num_rows > 1:
                    below |= dict.fromkeys(range(column, column + cell.num_columns), cell.num_rows - 1)
                column += cell.num_columns
            taken = below
            placed.append(found)
        return placed

    def to_html(self) -> str:
        """Return the table on one line per row."""
        return "\n".join(
            ["<table>", *("".join(["<tr>", *map(_cell_html, row), "</tr>"]) for row in self.rows), "</table>"]
        )

    def texts(self) -> tuple[tuple[str, ...], ...]:
        """Return the text of each row's cells."""
        return tuple(tuple(cell.text for cell in row) for row in self.rows)


def escape_cell(text: str) -> str:
    """Return plain text as the content of a cell."""
    return html.escape(text, quote=False)


def read_table(text: str) -> Table | None:
    """Return the first table of an HTML text; None if it has no cells. Inner tables become text of their cell."""
    reader = _TableReader()
    reader.feed(text)
    reader.close()
    rows = tuple(tuple(row) for row in reader.rows)
    return Table(rows=rows) if any(rows) else None


def join_tables(first: Table, second: Table) -> Table | None:
    """Return one table if the second goes on where the first ends: it has as many columns. Else return None.

    A header that the second repeats is dropped. Other headers, of a table of its own, speak against joining.
    """
    if first.num_columns != second.num_columns or first.num_columns < 2:
        return None
    rows = second.rows
    num_repeated = 0
    for ours, theirs in zip(first.texts(), second.texts(), strict=False):
        if ours != theirs or not any(ours):
            break
        num_repeated += 1
    if num_repeated == 0 and any(cell.is_header for cell in rows[0]):
        return None
    rows = rows[num_repeated:]
    return replace(first, rows=(*first.rows, *rows)) if rows else first


def plain_table(rows: Sequence[Sequence[str]], *, has_header: bool = False) -> Table:
    """Return a table of plain texts."""
    return Table(
        rows=tuple(
            tuple(Cell(content=escape_cell(text), is_header=has_header and number == 0) for text in row)
            for number, row in enumerate(rows)
        )
    )


def _cell_html(cell: Cell) -> str:
    name = "th" if cell.is_header else "td"
    spans = f' colspan="{cell.num_columns}"' * (cell.num_columns > 1) + f' rowspan="{cell.num_rows}"' * (
        cell.num_rows > 1
    )
    return f"<{name}{spans}>{cell.content}</{name}>"


_INLINE = {"b", "strong", "i", "em", "code", "sub", "sup", "u", "s"}


class _TableReader(HTMLParser):
    """Collect the cells of the first table."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.rows: list[list[Cell]] = []
        self._depth, self._is_done = 0, False
        self._cell: Cell | None = None
        self._pieces: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._is_done:
            return
        if tag == "table":
            self._depth += 1
        elif self._depth != 1:
            self._pieces.append(" ")
        elif tag == "tr":
            self._end_cell()
            self.rows.append([])
        elif tag in ("td", "th"):
            self._end_cell()
            if not self.rows:
                self.rows.append([])
            spans = dict(attrs)
            self._cell = Cell(content="", num_columns=_span(spans.get("colspan")), num_rows=_span(spans.get("rowspan")),
                              is_header=tag == "th")  # fmt: skip
        elif tag in _INLINE:
            self._pieces.append(f"<{tag}>")
        else:
            self._pieces.append("<br>" if tag == "br" else " ")

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._depth -= 1
            if self._depth <= 0:
                self._end_cell()
                self._is_done = bool(self.rows)
        elif self._depth == 1 and tag in ("td", "th", "tr"):
            self._end_cell()
        elif self._depth == 1 and tag in _INLINE:
            self._pieces.append(f"</{tag}>")
        else:
            self._pieces.append(" ")

    def handle_data(self, data: str) -> None:
        self._pieces.append(escape_cell(data))

    def _end_cell(self) -> None:
        if self._cell is not None and not self._is_done:
            self.rows[-1].append(replace(self._cell, content=" ".join("".join(self._pieces).split())))
        self._cell, self._pieces = None, []


class _TextReader(HTMLParser):
    """Collect the text between tags."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _INLINE:
            self.pieces.append(" ")

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)


def _span(value: str | None) -> int:
    return min(MAX_SPAN, max(1, int(value))) if value is not None and value.isascii() and value.isdigit() else 1
