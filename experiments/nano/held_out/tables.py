"""Tables of words that training never shows, set by Chromium from HTML: ruled, striped, bare, boxed, with a caption."""

from __future__ import annotations

import base64
import html
import io
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from shutil import which

from PIL import Image, ImageChops

from experiments.nano.held_out.word_lists import labels
from vl2.errors import UserError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SLOT_PX = (1200, 420)  # each table has this much room in the page that holds several
TIMEOUT_S = 120
KEY = (1, 254, 2)  # the color of the room around a table
STYLES = {
    "boxed": "td,th{border:1px solid #444}",
    "rows": "td,th{border-bottom:1px solid #aaa} th{border-bottom:2px solid #222}",
    "striped": "tr:nth-child(even) td{background:#e7edf3} th{background:#3b5b7a;color:#fff}",
    "bare": "th{text-decoration:underline}",
    "columns": "td+td,th+th{border-left:1px solid #777} th{background:#f0e6d6}",
    "cards": "table{border-spacing:4px;border-collapse:separate} td,th{background:#f2f2ea} th{background:#d9d2b8}",
}
PAPERS = ("#ffffff", "#fffdf5", "#f7fafc")


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table: the first column names its rows, the others hold numbers."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    style: str
    paper: str
    font: Path
    font_px: int
    padding_px: tuple[int, int]  # above and beside a cell's text
    caption: str  # "": none


def make_table(rng: Random, fonts: Sequence[Path], language: str) -> Table:
    """Make up a table of 2 to 7 rows and 1 to 4 columns of numbers, in which every word is there once."""
    count, columns = rng.randint(2, 7), rng.randint(1, 4)
    words = labels(rng, language, count + columns + 2, 11)
    names, header, caption = words[:count], words[count : count + columns + 1], words[-1]
    tops = [rng.choice((9, 80, 700, 5000)) for _ in range(columns)]
    decimals = [top <= 80 and rng.random() < 0.3 for top in tops]
    numbers = [
        [f"{value / 10:.1f}" if has_decimals else str(value) for value in rng.sample(range(1, max(top, 20)), count)]
        for top, has_decimals in zip(tops, decimals, strict=True)
    ]
    return Table(
        header=header,
        rows=tuple((name, *(column[n] for column in numbers)) for n, name in enumerate(names)),
        style=rng.choice(tuple(STYLES)),
        paper=rng.choice(PAPERS),
        font=rng.choice(fonts),
        font_px=rng.randint(13, 19),
        padding_px=(rng.randint(2, 7), rng.randint(6, 18)),
        caption=caption if rng.random() < 0.3 else "",
    )


def draw_tables(tables: Sequence[Table]) -> list[Image.Image]:
    """Draw several tables in one run of the browser, each cut out with the margin that it has."""
    browser = next((path for name in BROWSERS if (path := which(name))), None)
    if browser is None:
        raise UserError("the held-out tables are set by Chromium: install chromium")
    width, height = SLOT_PX
    with tempfile.TemporaryDirectory() as scratch:
        page, picture = Path(scratch) / "page.html", Path(scratch) / "page.png"
        page.write_text(_page(tables), encoding="utf-8")
        subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             "--force-device-scale-factor=1", f"--user-data-dir={scratch}/profile",
             f"--window-size={width},{height * len(tables)}",
             f"--screenshot={picture}", page.as_uri()],
            check=True, capture_output=True, timeout=TIMEOUT_S,
        )  # fmt: skip
        whole = Image.open(io.BytesIO(picture.read_bytes())).convert("RGB")
    slots = [whole.crop((0, n * height, width, (n + 1) * height)) for n in range(len(tables))]
    return [slot.crop(_extent(slot)) for slot in slots]


def _extent(slot: Image.Image) -> tuple[int, int, int, int]:
    """Return the box of all that is not the room around, which is the table with its paper."""
    key = Image.new("RGB", slot.size, KEY)
    box = ImageChops.difference(slot, key).getbbox()
    assert box is not None
    assert box[2] < slot.width, "a table is wider than its slot"
    assert box[3] < slot.height, "a table is higher than its slot"
    return box


def _page(tables: Sequence[Table]) -> str:
    fonts = sorted({table.font for table in tables})
    faces = "".join(
        f"@font-face{{font-family:f{n};src:url(data:font/ttf;base64,{base64.b64encode(font.read_bytes()).decode()})}}"
        if font.stat().st_size < 1_000_000
        else f"@font-face{{font-family:f{n};src:url({font.as_uri()})}}"
        for n, font in enumerate(fonts)
    )
    key = f"rgb({KEY[0]},{KEY[1]},{KEY[2]})"
    slots = "".join(_slot(table, n, fonts.index(table.font)) for n, table in enumerate(tables))
    return (
        f"<!doctype html><meta charset=utf-8><style>{faces}body{{margin:0;background:{key}}}"
        "table{border-collapse:collapse} th{text-align:left} td,th{white-space:nowrap} "
        f"{''.join(f'.{name}{{{rules}}}' for name, rules in STYLES.items())}"
        f".slot{{width:{SLOT_PX[0]}px;height:{SLOT_PX[1]}px;overflow:hidden}}"
        ".paper{display:inline-block;padding:9px}"
        f"</style><body>{slots}</body>"
    )


def _slot(table: Table, number: int, font: int) -> str:
    above, beside = table.padding_px
    rows = "".join(
        f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in row)}</tr>"
        for tag, row in (("th", table.header), *(("td", row) for row in table.rows))
    )
    caption = f"<caption>{html.escape(table.caption)}</caption>" if table.caption else ""
    return (
        f"<style>.t{number} :is(td,th){{padding:{above}px {beside}px}}</style>"
        f'<div class=slot><div class="paper t{number} {table.style}" '
        f'style="background:{table.paper};font:{table.font_px}px f{font}">'
        f"<table>{caption}{rows}</table></div></div>"
    )
