"""Read tables from CSV, Parquet or WikiSQL's files, generate random ones, and parse the numbers in their columns.

Numbers are `Decimal`, so that sums and differences are exact, as a reader would write them.
"""

from __future__ import annotations

import csv
import io
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from pathlib import Path

from vl2.data.raw_files import jsonl_rows, parquet_rows
from vl2.errors import UserError
from vl2.synth import words
from vl2.synth.corpus import MARKERS

MAX_CELL = 28  # characters; longer cells do not fit in a drawn table
MAX_DIGITS = 12
_NUMBER = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?|-?\d+(?:\.\d+)?", re.ASCII)

BUILT_IN = (
    ("Planets", "Planet,Diameter (km),Moons,Year (days)\nMercury,4879,0,88\nVenus,12104,0,225\nEarth,12756,1,365\n"
     "Mars,6792,2,687\nJupiter,142984,95,4331\nSaturn,120536,146,10747\nUranus,51118,28,30589\nNeptune,49528,16,59800\n"),
    ("High mountains", "Mountain,Height (m),First ascent\nEverest,8849,1953\nK2,8611,1954\nKangchenjunga,8586,1955\n"
     "Lhotse,8516,1956\nMakalu,8485,1955\nCho Oyu,8188,1954\nDhaulagiri,8167,1960\nManaslu,8163,1956\n"
     "Nanga Parbat,8126,1953\nAnnapurna,8091,1950\n"),
    ("Long rivers", "River,Length (km),Continent\nNile,6650,Africa\nAmazon,6400,South America\nYangtze,6300,Asia\n"
     "Mississippi,6275,North America\nYenisei,5539,Asia\nYellow River,5464,Asia\nOb,5410,Asia\nCongo,4700,Africa\n"),
    ("Chemical elements", "Element,Symbol,Atomic number,Atomic mass\nHydrogen,H,1,1.008\nHelium,He,2,4.003\n"
     "Carbon,C,6,12.011\nNitrogen,N,7,14.007\nOxygen,O,8,15.999\nSodium,Na,11,22.990\nAluminium,Al,13,26.982\n"
     "Iron,Fe,26,55.845\nCopper,Cu,29,63.546\nSilver,Ag,47,107.868\nGold,Au,79,196.967\n"),
    ("中国的河流", "河流,长度（公里）,流入\n长江,6300,东海\n黄河,5464,渤海\n"
     "珠江,2320,南海\n松花江,1927,黑龙江\n塔里木河,2179,台特马湖\n"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text cells with a header. Raise UserError unless all rows have as many cells as the header."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if not self.header or any(len(row) != len(self.header) for row in self.rows):
            raise UserError(f"table {self.title!r}: every row must have the {len(self.header)} cells of the header")

    @property
    def language(self) -> str:
        return "zh" if any("一" <= char <= "鿿" for char in "".join(self.header)) else "en"

    @property
    def text(self) -> str:
        return self.title + "".join(self.header) + "".join(cell for row in self.rows for cell in row)

    def column(self, index: int) -> list[str]:
        return [row[index] for row in self.rows]

    def numbers(self, index: int) -> list[Decimal] | None:
        """Return a column as numbers, or None if a cell is not a number or the table has no rows."""
        values = [as_number(cell) for cell in self.column(index)]
        return None if None in values or not values else [value for value in values if value is not None]

    @property
    def numeric_columns(self) -> list[int]:
        return [i for i in range(1, len(self.header)) if self.numbers(i) is not None]

    @property
    def has_keys(self) -> bool:
        """Whether the first column names the rows: no cell is empty, and all are different."""
        names = self.column(0)
        return all(names) and len(set(names)) == len(names)

    @property
    def is_numbered(self) -> bool:
        """Whether the first column has only numbers that are not all years, such as ranks."""
        values = self.numbers(0)
        return values is not None and not all(1000 <= value <= 2100 for value in values)

    def part(self, rows: Sequence[int], columns: Sequence[int]) -> Table:
        """Return the table restricted to these rows and columns, given by index."""
        kept = tuple(tuple(self.rows[r][c] for c in columns) for r in rows)
        return Table(title=self.title, header=tuple(self.header[c] for c in columns), rows=kept)

    def as_markdown(self) -> str:
        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

        return "\n".join((line(self.header), line(["---"] * len(self.header)), *(line(row) for row in self.rows)))

    def as_html(self) -> str:
        def line(cells: Sequence[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{_escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "\n".join(line(row, "td") for row in self.rows)
        return f"<table>\n{line(self.header, 'th')}\n{body}\n</table>"

    def as_csv(self) -> str:
        return _as_csv((self.header, *self.rows)).rstrip("\n")


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def as_number(cell: str) -> Decimal | None:
    """Parse a plain number, with or without commas between thousands. Return None for any other text."""
    cell = cell.strip()
    if len(cell) > MAX_DIGITS or not _NUMBER.fullmatch(cell):
        return None
    return Decimal(cell.replace(",", ""))


def write_number(value: Decimal) -> str:
    """Format a number without an exponent and without trailing zeros after the decimal point."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def parse_table(title: str, text: str) -> Table:
    """Parse CSV text whose first row is the header. Short rows are padded with empty cells, long ones are cut.

    Raise UserError unless there are a header and at least one row.
    """
    lines = io.StringIO(text, newline="")
    # WikiTableQuestions escapes a quote by a backslash, all other files by a second quote.
    reader = csv.reader(lines, escapechar="\\", doublequote=False) if '\\"' in text else csv.reader(lines)
    rows = [[" ".join(cell.split()) for cell in row] for row in reader]
    rows = [row for row in rows if any(row)]
    if len(rows) < 2:
        raise UserError(f"table {title!r}: a header and at least one row are needed")
    width = len(rows[0])
    body = tuple(tuple((row + [""] * width)[:width]) for row in rows[1:])
    return Table(title=title, header=tuple(rows[0]), rows=body)


@lru_cache(maxsize=4)
def tables_in(folder: str | None, languages: tuple[str, ...]) -> tuple[Table, ...]:
    """Return the tables of `read_tables` whose header is in one of the languages."""
    return tuple(table for table in read_tables(folder) if table.language in languages)


@lru_cache(maxsize=4)
def read_tables(folder: str | None) -> tuple[Table, ...]:
    """Read all tables of a folder and its subfolders; None returns the built-in tables.

    A table is a CSV file, whose name is the title, a row of a Parquet file with a column `csv` and optionally `title`,
    or a line of a file `*.tables.jsonl` of WikiSQL. Tables that cannot be parsed are skipped. Raise UserError if no
    table remains.
    """
    if folder is None:
        return tuple(parse_table(title, text) for title, text in BUILT_IN)
    written = list(_written_tables(Path(folder)))
    if not written:
        raise UserError(f"{folder} holds no .csv file, no .parquet file with a column csv and no .tables.jsonl file")
    found = []
    for title, text in written:
        try:
            found.append(parse_table(title, text))
        except (UserError, csv.Error):
            continue  # a bad table must not stop a run over thousands
    if not found:
        raise UserError(f"none of the {len(written)} tables of {folder} could be read")
    return tuple(found)


def _written_tables(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the title and the CSV text of every table in the folder and its subfolders."""
    for file in sorted(folder.rglob("*.csv")):
        # A file in another encoding is still usable: letters that cannot be decoded become replacement characters.
        yield file.stem.replace("_", " ").replace("-", " "), file.read_text(encoding="utf-8-sig", errors="replace")
    for file in sorted(folder.rglob("*.parquet")):
        for _, row in parquet_rows([file], ("csv",), batch_rows=256):
            if isinstance(row, UserError):
                break  # a Parquet file without tables, such as one with the questions about them
            yield str(row.get("title") or file.stem), row["csv"]
    for file in sorted(folder.rglob("*.tables.jsonl")):
        for _, row in jsonl_rows(file):
            if isinstance(row, dict) and isinstance(row.get("header"), list) and isinstance(row.get("rows"), list):
                yield str(row.get("page_title") or row.get("caption") or ""), _as_csv([row["header"], *row["rows"]])


def _as_csv(rows: Sequence[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def made_up(rng: random.Random, language: str, names: Sequence[str] = ()) -> Table:
    """Return a table with random numbers, such as monthly sales by product or city.

    Its rows have the given names, of which at least four are needed, or else built-in ones.
    """
    zh = language == "zh"
    columns = ("一月", "二月", "三月", "四月", "五月", "六月") if zh else ("Jan", "Feb", "Mar", "Apr", "May", "Jun")
    names = names if len(names) >= 4 else rng.choice((words.CITIES, words.GOODS))[language]
    title = rng.choice(("月销售量", "参观人数", "用电量") if zh else ("Units sold", "Visitors", "Energy use (kWh)"))
    picked = rng.sample(names, min(len(names), rng.randint(4, 8)))
    top = rng.choice((60, 400, 5000))
    decimals = rng.random() < 0.3
    count = rng.randint(2, 4)
    rows = tuple(
        (name, *(f"{rng.randint(1, top * 10) / 10}" if decimals else str(rng.randint(1, top)) for _ in range(count)))
        for name in picked
    )
    return Table(title=title, header=("名称" if zh else "Name", *columns[:count]), rows=rows)


def choose_table(rng: random.Random, tables: Sequence[Table], *, max_rows: int, max_columns: int) -> Table | None:
    """Return a random part of a random table, or None if that part cannot be drawn.

    Its cells must be short and free of special tokens, its columns named, and its rows named by the first column.
    """
    if not tables:
        return None
    table = rng.choice(tables)
    columns = [0, *sorted(rng.sample(range(1, len(table.header)), min(len(table.header), max_columns) - 1))]
    count = min(len(table.rows), rng.randint(3, max_rows))
    start = rng.randrange(len(table.rows) - count + 1)
    part = table.part(range(start, start + count), columns)
    cells = [*part.header, *(cell for row in part.rows for cell in row)]
    drawable = all(len(c) <= MAX_CELL and not any(m in c for m in MARKERS) for c in cells)
    named = all(part.header) and len(set(part.header)) == len(part.header) and part.has_keys and not part.is_numbered
    return part if drawable and named and len(part.header) > 1 and count > 1 else None
