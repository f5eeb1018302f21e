"""Find the tables of a Markdown text, in Markdown or HTML, and the neighbors of their cells.

A cell that spans several rows or columns may have several neighbors on a side. Headings are the cells of the first row
and column of a Markdown table, and the `<th>` and `<thead>` cells of an HTML table.

Source: `table_parsing.py` of allenai/olmocr (commit f7cfe4c2), without its code.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vl2.optional_imports import import_extra

MAX_SPAN = 1000  # a larger span of an answer is cut to this many rows or columns
Side = Literal["up", "down", "left", "right"]


@dataclass(eq=False, kw_only=True)
class Cell:
    """A cell of a table; row and column are those of its upper left corner."""

    text: str
    is_heading: bool
    num_rows: int = 1
    num_columns: int = 1
    row: int = 0
    column: int = 0


class CellGrid:
    """The cells of a table at their places. Cells span rows and columns as they do in HTML."""

    def __init__(self, rows: Sequence[Sequence[Cell]]) -> None:
        self.cells = [cell for row in rows for cell in row]
        self._grid: list[dict[int, Cell]] = []
        spanning: dict[int, tuple[Cell, int]] = {}  # by column: a cell from above, and how many rows it still spans
        for number, row in enumerate(rows):
            self._grid.append(_lay_row(number, deque(row), spanning))
        while spanning:  # cells that span more rows than the table has
            self._grid.append(_lay_row(len(self._grid), deque(), spanning))
        self._width = 1 + max((column for row in self._grid for column in row), default=-1)

    def neighbors(self, cell: Cell, side: Side) -> list[Cell]:
        """Return the next cells on a side, each once. Empty places are skipped."""
        rows = range(cell.row, min(cell.row + cell.num_rows, len(self._grid)))
        columns = range(cell.column, cell.column + cell.num_columns)
        found: dict[int, Cell] = {}
        for line in rows if side in ("left", "right") else columns:
            for place in self._line(cell, side):
                row, column = (line, place) if side in ("left", "right") else (place, line)
                other = self._grid[row].get(column)
                if other is not None and other is not cell:
                    found[id(other)] = other
                    break
        return list(found.values())

    def headings(self, cell: Cell, side: Literal["up", "left"]) -> list[Cell]:
        """Return the heading cells that are reached from a cell by steps to a side; if none, the outermost cells."""
        headings, outermost = [], []
        seen: set[int] = set()
        waiting = [cell]
        while waiting:
            here = waiting.pop()
            if id(here) in seen:
                continue
            seen.add(id(here))
            further = self.neighbors(here, side)
            if here is not cell:
                headings += [here] if here.is_heading else []
                outermost += [] if further else [here]
            waiting += further
        return headings or outermost

    def _line(self, cell: Cell, side: Side) -> range:
        """Return the rows or columns beyond a cell on a side, the nearest first."""
        if side == "up":
            return range(cell.row - 1, -1, -1)
        if side == "left":
            return range(cell.column - 1, -1, -1)
        if side == "down":
            return range(cell.row + cell.num_rows, len(self._grid))
        return range(cell.column + cell.num_columns, self._width)


def _lay_row(number: int, cells: deque[Cell], spanning: dict[int, tuple[Cell, int]]) -> dict[int, Cell]:
    """Return a row's cells by column: those that span it from above, and between them its own."""
    row: dict[int, Cell] = {}
    column = 0
    while cells or column <= max(spanning, default=-1):
        if column in spanning:
            cell, rows_left = spanning.pop(column)
            row[column] = cell
            if rows_left > 1:
                spanning[column] = (cell, rows_left - 1)
            column += 1
        elif cells:
            cell = cells.popleft()
            cell.row, cell.column = number, column
            for covered in range(column, column + cell.num_columns):
                row[covered] = cell
                spanning.pop(covered, None)
                if cell.num_rows > 1:
                    spanning[covered] = (cell, cell.num_rows - 1)
            column += cell.num_columns
        else:
            column += 1
    return row


def markdown_tables(text: str) -> Iterator[CellGrid]:
    """Yield the Markdown tables of a text: neighboring lines with a bar, at least two."""
    block: list[str] = []
    for line in [*text.strip().split("\n"), ""]:
        if "|" in line:
            block.append(line)
            continue
        rows = _markdown_rows(block) if len(block) > 1 else []
        if rows:
            yield CellGrid(
                [
                    [Cell(text=value, is_heading=0 in (row, column)) for column, value in enumerate(values)]
                    for row, values in enumerate(rows)
                ]
            )
        block = []


def _markdown_rows(lines: Sequence[str]) -> list[list[str]]:
    rows = []
    for line in lines:
        if set(line) <= set("- :|"):
            continue  # the line below the header, or an empty row
        values = [value.strip() for value in line.split("|")]
        values = values[1:] if values[:1] == [""] else values
        values = values[:-1] if values[-1:] == [""] else values
        if values:
            rows.append(values)
    return rows


def html_tables(text: str) -> Iterator[CellGrid]:
    """Yield the HTML tables of a text."""
    soup = import_extra("bs4", "documents", "scoring tables").BeautifulSoup(text, "html.parser")
    for table in soup.find_all("table"):
        lines = table.find_all("tr")
        rows = [
            [_html_cell(cell, len(lines) - number) for cell in line.find_all(["th", "td"], recursive=False)]
            for number, line in enumerate(lines)
        ]
        if any(rows):
            yield CellGrid(rows)


def _html_cell(element: Any, rows_left: int) -> Cell:
    for line_break in element.find_all("br"):
        line_break.replace_with("\n")
    to_the_end = str(element.get("rowspan", "")).strip() == "0"
    return Cell(
        text=element.get_text(separator="").strip(),
        is_heading=element.name == "th" or element.find_parent("thead") is not None,
        num_rows=max(1, rows_left) if to_the_end else _span(element.get("rowspan")),
        num_columns=_span(element.get("colspan")),
    )


def _span(value: Any) -> int:
    try:
        return min(MAX_SPAN, max(1, int(value)))
    except (TypeError, ValueError):
        return 1
