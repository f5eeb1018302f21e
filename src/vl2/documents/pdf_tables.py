"""Tables of a PDF page: those drawn with lines, those with horizontal rules only, and those of aligned text."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vl2.documents.lines import Line, around, is_full, join_lines, to_lines
from vl2.documents.pdf_graphics import THIN_PT, BoxPt
from vl2.documents.pdf_page import Word
from vl2.documents.table import Cell, Table, escape_cell

NEAR_PT = 3.0  # lines that end so near to each other meet
MIN_LINE_PT = 8.0
MAX_SIDES = 200  # lines of a table in one direction
MIN_ROWS = 3  # of a table without lines
MIN_COLUMN_GAP_EM = 0.8


@dataclass(frozen=True, kw_only=True)
class PlacedTable:
    """A table and where it stands, in points."""

    table: Table
    box: BoxPt


@dataclass(frozen=True)
class _Segment:
    """A line: at `at` across its direction, from `start` to `end` along it."""

    at: float
    start: float
    end: float


def ruled_tables(words: Sequence[Word], rules: Sequence[BoxPt]) -> list[PlacedTable]:
    """Return the tables that lines surround, and those between horizontal rules of one width."""
    horizontal = _merge(_Segment((y0 + y1) / 2, x0, x1) for x0, y0, x1, y1 in rules if y1 - y0 <= THIN_PT < x1 - x0)
    vertical = _merge(_Segment((x0 + x1) / 2, y0, y1) for x0, y0, x1, y1 in rules if x1 - x0 <= THIN_PT < y1 - y0)
    found: list[PlacedTable] = []
    used: set[_Segment] = set()
    for rows, columns in _connected(horizontal, vertical):
        table = _grid_table(words, rows, columns)
        if table is not None:
            found.append(table)
            used |= {*rows}
    loose = [segment for segment in horizontal if segment not in used]
    return [*found, *_rule_tables(words, loose)]


def _merge(segments: Iterable[_Segment]) -> list[_Segment]:
    """Join lines that continue or cover each other, and drop short ones."""
    merged: list[_Segment] = []
    for segment in sorted(segments, key=lambda s: (round(s.at / NEAR_PT), s.start)):
        last = merged[-1] if merged else None
        if last is not None and abs(last.at - segment.at) <= NEAR_PT / 2 and segment.start <= last.end + NEAR_PT:
            merged[-1] = _Segment(last.at, last.start, max(last.end, segment.end))
        else:
            merged.append(segment)
    return [segment for segment in merged if segment.end - segment.start >= MIN_LINE_PT]


def _connected(
    horizontal: Sequence[_Segment], vertical: Sequence[_Segment]
) -> Iterable[tuple[list[_Segment], list[_Segment]]]:
    """Yield the groups of lines that meet."""
    left_h, left_v = list(horizontal), list(vertical)
    while left_h:
        rows, columns, new_rows = [], list[_Segment](), [left_h.pop()]
        while new_rows:
            rows += new_rows
            met = [v for v in left_v if any(_meet(h, v) for h in new_rows)]
            left_v = [v for v in left_v if v not in met]
            columns += met
            new_rows = [h for h in left_h if any(_meet(h, v) for v in met)]
            left_h = [h for h in left_h if h not in new_rows]
        if len(rows) >= 2 and columns:
            yield rows, columns


def _meet(row: _Segment, column: _Segment) -> bool:
    return (
        row.start - NEAR_PT <= column.at <= row.end + NEAR_PT
        and column.start - NEAR_PT <= row.at <= column.end + NEAR_PT
    )


def _positions(values: Iterable[float]) -> list[float]:
    """Return the sorted values without those that are near to the one before."""
    kept: list[float] = []
    for value in sorted(values):
        if not kept or value - kept[-1] > NEAR_PT:
            kept.append(value)
    return kept


def _grid_table(words: Sequence[Word], rows: Sequence[_Segment], columns: Sequence[_Segment]) -> PlacedTable | None:
    """Return the table of lines that meet, or None if they are a frame, a diagram or empty."""
    xs = _positions([*(c.at for c in columns), min(r.start for r in rows), max(r.end for r in rows)])
    ys = _positions([*(r.at for r in rows), min(c.start for c in columns), max(c.end for c in columns)])
    if not (2 <= len(xs) <= MAX_SIDES and 2 <= len(ys) <= MAX_SIDES) or (len(xs) - 1) * (len(ys) - 1) < 2:
        return None
    owner = _merge_cells(xs, ys, rows, columns)
    inside: dict[tuple[int, int], list[Word]] = {}
    for word in words:
        x, y = (word.box[0] + word.box[2]) / 2, (word.box[1] + word.box[3]) / 2
        i, j = _interval(ys, y), _interval(xs, x)
        if i is not None and j is not None:
            inside.setdefault(owner[i][j], []).append(word)
    spans: dict[tuple[int, int], list[int]] = {}
    for i, row in enumerate(owner):
        for j, cell in enumerate(row):
            span = spans.setdefault(cell, [i, j, i, j])
            span[2], span[3] = max(span[2], i), max(span[3], j)
    if len(inside) < 2 or 3 * len(inside) < len(spans) or len({j for _, j in inside}) < 2:
        return None
    table_rows: list[tuple[Cell, ...]] = []
    for i in range(len(ys) - 1):
        cells = sorted(((cell, span) for cell, span in spans.items() if cell[0] == i), key=lambda entry: entry[0][1])
        texts = [inside.get(cell, []) for cell, _ in cells]
        if all(span[0] == span[2] for _, span in cells) and len(cells) > 1:
            ends = [xs[span[3] + 1] for _, span in cells]
            split = _split_rows(texts, ends)
            table_rows += [
                tuple(_cell(words, span) for words, (_, span) in zip(row, cells, strict=True)) for row in split
            ]
        else:
            table_rows.append(tuple(_cell(words, span) for words, (_, span) in zip(texts, cells, strict=True)))
    if all(cell.num_rows == 1 for row in table_rows for cell in row):  # spans count the empty rows too
        table_rows = [row for row in table_rows if any(cell.content for cell in row)]
    table = Table(rows=_with_header(table_rows, [inside.get(cell, []) for cell in spans if cell[0] == 0]))
    return PlacedTable(table=table, box=(xs[0], ys[0], xs[-1], ys[-1]))


def _split_rows(cells: Sequence[Sequence[Word]], ends: Sequence[float]) -> list[list[list[Word]]]:
    """Return the rows that stand between two lines: several if most lines of text did not end for want of room.

    `ends` are the right sides of the cells.
    """
    lines = [to_lines(words) for words in cells]
    whole = [[list(words) for words in cells]]
    count = max(map(len, lines))
    if count < 2 or sum(len(found) == count for found in lines) < 2:
        return whole
    breaks = [is_full(a, b, end) for found, end in zip(lines, ends, strict=True) for a, b in itertools.pairwise(found)]
    if 2 * sum(breaks) >= len(breaks):
        return whole
    rows = to_lines([word for words in cells for word in words])
    if len(rows) != count:
        return whole
    return [[[word for word in words if word in row.words] for words in cells] for row in rows]


def _merge_cells(
    xs: Sequence[float], ys: Sequence[float], rows: Sequence[_Segment], columns: Sequence[_Segment]
) -> list[list[tuple[int, int]]]:
    """Return for each place of the grid the upper left place of its cell: without a line between, two are one cell."""
    owner = [[(i, j) for j in range(len(xs) - 1)] for i in range(len(ys) - 1)]

    def has_right(i: int, j: int) -> bool:
        middle = (ys[i] + ys[i + 1]) / 2
        return any(abs(c.at - xs[j + 1]) <= NEAR_PT and c.start <= middle <= c.end for c in columns)

    def has_below(i: int, j: int) -> bool:
        middle = (xs[j] + xs[j + 1]) / 2
        return any(abs(r.at - ys[i + 1]) <= NEAR_PT and r.start <= middle <= r.end for r in rows)

    taken: set[tuple[int, int]] = set()
    for i, j in itertools.product(range(len(ys) - 1), range(len(xs) - 1)):
        if (i, j) in taken:
            continue
        last_j = j
        while last_j + 2 < len(xs) and (i, last_j + 1) not in taken and not has_right(i, last_j):
            last_j += 1
        last_i = i
        while last_i + 2 < len(ys) and all(
            not has_below(last_i, at) and (last_i + 1, at) not in taken for at in range(j, last_j + 1)
        ):
            last_i += 1
        for place in itertools.product(range(i, last_i + 1), range(j, last_j + 1)):
            owner[place[0]][place[1]] = (i, j)
            taken.add(place)
    return owner


def _interval(sides: Sequence[float], value: float) -> int | None:
    return next((i for i in range(len(sides) - 1) if sides[i] <= value < sides[i + 1]), None)


def _cell(words: Sequence[Word], span: Sequence[int]) -> Cell:
    return Cell(
        content=escape_cell(join_lines(to_lines(words))),
        num_rows=span[2] - span[0] + 1,
        num_columns=span[3] - span[1] + 1,
    )


def _with_header(rows: Sequence[tuple[Cell, ...]], first: Sequence[Sequence[Word]]) -> tuple[tuple[Cell, ...], ...]:
    """Mark the first row as the header if all its words are bold."""
    words = [word for cell in first for word in cell]
    if len(rows) < 2 or not words or not all(word.is_bold for word in words):
        return tuple(rows)
    header = tuple(
        Cell(content=cell.content, num_columns=cell.num_columns, num_rows=cell.num_rows, is_header=True)
        for cell in rows[0]
    )
    return (header, *rows[1:])


def _rule_tables(words: Sequence[Word], rules: Sequence[_Segment]) -> list[PlacedTable]:
    """Return tables between at least three horizontal rules that begin and end together, as in books."""
    found = []
    groups: dict[tuple[int, int], list[_Segment]] = {}
    for rule in rules:
        groups.setdefault((round(rule.start / 6), round(rule.end / 6)), []).append(rule)
    for group in groups.values():
        ys = _positions(rule.at for rule in group)
        if len(ys) < 3:
            continue
        left, right = min(rule.start for rule in group), max(rule.end for rule in group)
        inside = [
            word for word in words
            if left - NEAR_PT <= (word.box[0] + word.box[2]) / 2 <= right + NEAR_PT
            and ys[0] <= (word.box[1] + word.box[3]) / 2 <= ys[-1]
        ]  # fmt: skip
        lines = to_lines(inside)
        table = aligned_table(lines)
        if table is not None:
            found.append(PlacedTable(table=table, box=(left, ys[0], right, ys[-1])))
    return found


def aligned_table(lines: Sequence[Line]) -> Table | None:
    """Return the table that lines of aligned cells are; None if they are no table."""
    if len(lines) < 2:
        return None
    em = sum(line.size_pt for line in lines) / len(lines)
    # A heading may span columns: what one line in five covers is still a gap.
    gaps = _column_gaps(lines, MIN_COLUMN_GAP_EM * em, max_crossing=len(lines) // 5)
    if not gaps:
        return None
    rows, is_split = [], 0
    for line in lines:
        cells: list[list[Word]] = [[] for _ in range(len(gaps) + 1)]
        for word in line.words:
            cells[sum(word.box[0] >= gap for gap in gaps)].append(word)
        is_split += sum(bool(cell) for cell in cells) > 1
        rows.append(tuple(Cell(content=escape_cell(join_lines(to_lines(cell)))) for cell in cells))
    if 2 * is_split < len(lines):
        return None
    return Table(rows=_with_header(rows, [lines[0].words]))


def _column_gaps(lines: Sequence[Line], min_gap: float, *, max_crossing: int) -> list[float]:
    """Return the right edge of each gap between columns: positions that at most `max_crossing` lines cover."""
    left, _, right, _ = around([line.box for line in lines])
    num_steps = max(1, int(right - left))
    covered = [0] * (num_steps + 1)
    for line in lines:
        steps: set[int] = set()
        for word in line.words:
            steps |= set(range(int(word.box[0] - left), min(num_steps, int(word.box[2] - left)) + 1))
        for step in steps:
            covered[step] += 1
    gaps, start = [], None
    for step, count in enumerate([*covered, max_crossing + 1]):
        if count <= max_crossing:
            start = step if start is None else start
        elif start is not None:
            if step - start >= min_gap and start > 0 and step <= num_steps:
                gaps.append(left + step - 0.5)
            start = None
    return gaps


def find_aligned(lines: Sequence[Line]) -> list[tuple[int, int, Table]]:
    """Return tables without lines, as ranges of lines in one column: several lines in a row have aligned cells."""
    found, start = [], 0
    while start < len(lines):
        end = start
        while end < len(lines) and len(lines[end].cells) > 1 and not lines[end].is_mono:
            end += 1
        table = aligned_table(lines[start:end]) if end - start >= MIN_ROWS else None
        if table is not None and all(sum(bool(cell.content) for cell in row) > 1 for row in table.rows):
            found.append((start, end, table))
        start = max(end, start + 1)
    return found
