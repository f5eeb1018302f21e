"""What held-out charts show and how they are asked about; `draw_charts` draws them by matplotlib and by Vega-Altair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from experiments.nano.held_out.word_lists import labels

Kind = Literal["upright", "lying", "grouped", "line"]
Library = Literal["matplotlib", "altair"]
KINDS: tuple[Kind, ...] = ("upright", "upright", "lying", "grouped", "line")
SIZES = ((200, 150), (240, 180), (330, 190), (320, 240), (400, 300), (480, 270), (480, 360), (560, 400), (640, 480))
PALETTES = (
    ("#33658a", "#f26419", "#758e4f", "#86bbd8", "#f6ae2d"),
    ("#5f0f40", "#fb8b24", "#0f4c5c", "#9a031e", "#7a9e7e"),
    ("#264653", "#e9c46a", "#e76f51", "#2a9d8f", "#8ab17d"),
    ("#003f5c", "#ff6361", "#bc5090", "#ffa600", "#58508d"),
)


@dataclass(frozen=True, kw_only=True)
class Chart:
    """The numbers and the look of a chart. `values` has a row for each series."""

    kind: Kind
    library: Library
    size: tuple[int, int]
    title: str
    names: tuple[str, ...]
    series: tuple[str, ...]  # one without a name where there is no legend
    values: tuple[tuple[str, ...], ...]  # as printed
    is_printed: bool
    has_grid: bool
    is_plain: bool  # without frame, on white
    palette: tuple[str, ...]
    font: Path
    font_px: int

    @property
    def numbers(self) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(float(value) for value in row) for row in self.values)

    def is_dip(self, n: int) -> bool:
        """Tell whether the line rises on both sides of a point, so that its value has room below."""
        row = self.numbers[0]
        return all(row[m] > row[n] for m in (n - 1, n + 1) if 0 <= m < len(row))


def band(size: tuple[int, int]) -> str:
    """Return what a size is reported under."""
    return "to 240 px" if size[0] <= 240 else "to 400 px" if size[0] <= 400 else "to 640 px"


def make_chart(rng: Random, fonts: Sequence[Path], language: str, *, is_printed: bool) -> Chart:
    """Make up a chart that is large enough for what it shows.

    Values that are not printed are at least 30 % of the axis, so that a pixel is less than the 5 % that are allowed.
    """
    size = rng.choice(SIZES if is_printed else SIZES[2:])
    kind = rng.choice(KINDS)
    if kind == "grouped" and size[0] < 320:
        kind = "upright"
    library: Library = rng.choice(("matplotlib", "altair"))
    font_px = 10 if size[0] <= 240 else rng.randint(10, 12) if size[0] <= 330 else rng.randint(11, 15)
    most = 3 if size[0] <= 200 else 4 if size[0] <= 330 else 5 if size[0] <= 400 else 7
    count = rng.randint(2, 3) if kind == "grouped" and size[0] < 480 else rng.randint(3, most)
    if kind == "grouped":
        count = min(count, 4)
    if kind == "lying":
        count = min(count, (size[1] - 50) // (font_px + 8))
    if kind == "line":
        count = max(3, count)
    series = labels(rng, language, rng.randint(2, 3 if size[0] >= 480 else 2), 7) if kind == "grouped" else ("",)
    return Chart(
        kind=kind,
        library=library,
        size=size,
        title=" ".join(labels(rng, language, rng.randint(1, 2), 8 if size[0] < 300 else 12)),
        names=labels(rng, language, count, _longest(kind, size, count, font_px, language)),
        series=series,
        values=_values(rng, count, len(series), is_printed=is_printed),
        is_printed=is_printed,
        has_grid=rng.random() < 0.5,
        is_plain=rng.random() < 0.5,
        palette=_shuffled(rng, rng.choice(PALETTES)),
        font=rng.choice(fonts),
        font_px=font_px,
    )


def _longest(kind: Kind, size: tuple[int, int], count: int, font_px: int, language: str) -> int:
    """Return how many letters a name may have where it stands below its bar."""
    letter = font_px * (1.0 if language == "zh" else 0.68)
    room = size[0] * 0.3 if kind == "lying" else (size[0] - 60) / count
    return max(2 if language == "zh" else 4, min(10, int(room / letter)))


def _values(rng: Random, count: int, rows: int, *, is_printed: bool) -> tuple[tuple[str, ...], ...]:
    top = rng.choice((8, 20, 60, 150, 400, 900))
    decimals = 1 if top <= 20 and rng.random() < 0.6 else 0
    scale = 10**decimals
    high = max(top * scale, 2 * count * rows + 2)
    low = max(2, -(-high * (12 if is_printed else 36) // 100))
    # None is as high as another, so that the highest and the lowest are one each.
    drawn = rng.sample(range(low, high + 1), count * rows)
    texts = [f"{value / scale:.{decimals}f}" for value in drawn]
    return tuple(tuple(texts[n * count : (n + 1) * count]) for n in range(rows))


def _shuffled(rng: Random, colors: Sequence[str]) -> tuple[str, ...]:
    return tuple(rng.sample(colors, len(colors)))
