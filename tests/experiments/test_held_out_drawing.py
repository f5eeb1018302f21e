"""What the held-out pictures show is what their answers say, measured in the pixels."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from experiments.nano.held_out import charts, draw_charts, drawn_tasks, fonts, items, lines, scenes, tables
from vl2.eval.task import DataSource, Item

TTF = Path(get_data_path()) / "fonts" / "ttf"
FONTS = fonts.Fonts(en=(TTF / "DejaVuSans.ttf", TTF / "DejaVuSerif.ttf"), zh=(TTF / "DejaVuSans.ttf",))
Pixels = npt.NDArray[np.int_]
Box = tuple[float, float, float, float]


@pytest.fixture(autouse=True)
def fonts_of_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tasks draw with fonts that are always there; Chinese then comes out as boxes, which no test here reads."""
    monkeypatch.setattr(drawn_tasks, "kept_fonts", lambda source: FONTS)


def pixels(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB")).astype(int)


def near(image: Image.Image, color: str, within: int = 40) -> npt.NDArray[np.bool_]:
    wanted = np.array([int(color[n : n + 2], 16) for n in (1, 3, 5)])
    return np.asarray(np.abs(pixels(image) - wanted).max(axis=2) <= within)


def extent(mask: npt.NDArray[np.bool_]) -> Box:
    ys, xs = np.nonzero(mask)
    return (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


@pytest.mark.parametrize(("shape", "style"), list(product(scenes.NAMES_ZH, scenes.STYLES)))
def test_a_box_is_the_extent_of_what_is_drawn(shape: str, style: str) -> None:
    rng = Random(f"{shape} {style}")
    turn = rng.uniform(-scenes.TURNS[shape], scenes.TURNS[shape])
    thing = scenes.Thing(shape=shape, color="blue", style=style, x=110, y=90, radius=50, turn=turn)
    scene = scenes.draw_scene(rng, (thing,), (213, 171))
    paper = pixels(scene.image)[0, 0]
    # The dots of the grid are paler than this.
    shown = extent(np.asarray(np.abs(pixels(scene.image) - paper).max(axis=2) > 80))
    assert scene.image.size == (213, 171)
    # A corner that is rounded off stays within its box by up to half of the outline's width.
    assert np.abs(np.array(shown) - np.array(scene.boxes[0])).max() < 4.5


def test_colors_are_told_apart() -> None:
    codes = [color for _, color in scenes.COLORS.values()]
    values = [np.array([int(code[n : n + 2], 16) for n in (1, 3, 5)]) for code in codes]
    apart = [np.abs(a - b).max() for n, a in enumerate(values) for b in values[:n]]
    assert min(apart) >= 45


def count_regions(mask: npt.NDArray[np.bool_], least: int = 40) -> int:
    """Count connected regions of at least so many pixels."""
    image = Image.fromarray((mask * 255).astype(np.uint8))
    found = 0
    while (values := np.asarray(image) == 255).any():
        y, x = np.argwhere(values)[0]
        ImageDraw.floodfill(image, (int(x), int(y)), 128)
        found += int((np.asarray(image) == 128).sum() >= least)
        image = image.point(lambda value: 0 if value == 128 else value)
    return found


@pytest.mark.parametrize("count", [1, 3, 6, 9])
def test_as_many_things_are_drawn_as_the_answer_says(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "NEAR", 1.15)  # so that none touches another and each is a region
    monkeypatch.setattr(scenes, "STYLES", ("filled",))
    for seed in range(4):
        scene, (shape, color) = scenes.scene_to_count(Random(seed), count)
        assert count_regions(near(scene.image, scenes.COLORS[color][1], 12)) >= count
        assert sum((thing.shape, thing.color) == (shape, color) for thing in scene.things) == count
        others = {thing.color for thing in scene.things} - {color}
        if not others:
            assert count_regions(near(scene.image, scenes.COLORS[color][1], 12)) == len(scene.things)


def test_things_do_not_hide_each_other() -> None:
    for seed in range(40):
        scene = scenes.scene_of(Random(seed), 9)
        for n, thing in enumerate(scene.things):
            for other in scene.things[:n]:
                distance = np.hypot(thing.x - other.x, thing.y - other.y)
                assert distance > 0.9 * (thing.radius + other.radius)


def draw_all(name: str, draw: Callable[[Random, str, DataSource], Item], count: int) -> list[Item]:
    return [items.draw_item(name, draw, number, DataSource()) for number in range(count)]


def test_presence_is_true_of_half_and_asks_for_near_misses() -> None:
    found = draw_all("presence", drawn_tasks._draw_presence, 60)
    assert 20 < sum(item.gold == "yes" for item in found) < 40
    for seed in range(30):
        rng = Random(seed)
        scene = scenes.scene_of(rng, 4)
        shown = {(thing.shape, thing.color) for thing in scene.things}
        assert scenes.kind_for_presence(rng, scene, True) in shown
        assert scenes.kind_for_presence(rng, scene, False) not in shown


def test_what_is_to_be_located_has_a_name_of_its_own() -> None:
    for seed in range(30):
        scene, number = scenes.scene_to_locate(Random(seed))
        names = [thing.name("en") for thing in scene.things]
        assert names.count(names[number]) == 1


def chart(kind: charts.Kind, library: charts.Library, *, is_printed: bool = False) -> charts.Chart:
    rows = 2 if kind == "grouped" else 1
    values = (("40", "90", "55"), ("70", "31", "62"))[:rows]
    return charts.Chart(
        kind=kind, library=library, size=(400, 300), title="Title", names=("Aa", "Bb", "Cc"),
        series=("first", "other")[:rows] if rows > 1 else ("",), values=values, is_printed=is_printed, has_grid=True,
        is_plain=True, palette=("#33658a", "#f26419"), font=FONTS.en[0], font_px=12,
    )  # fmt: skip


def needs(library: str) -> None:
    if library == "altair":
        pytest.importorskip("altair")
        pytest.importorskip("vl_convert")


def bar_lengths(mask: npt.NDArray[np.bool_], *, is_lying: bool) -> list[int]:
    """Return how long the bars of a color are, in the order in which they stand."""
    along = mask.sum(axis=1 if is_lying else 0)
    long = along > 20
    starts = np.flatnonzero(long & ~np.roll(long, 1))
    found = []
    for start in starts:
        run = along[start:]
        end = int(np.argmin(run > 20)) or len(run)
        if end > 6:  # thinner ones are of the legend
            found.append(int(np.median(run[:end])))
    return found


@pytest.mark.parametrize("library", ["matplotlib", "altair"])
@pytest.mark.parametrize("kind", ["upright", "lying", "grouped"])
def test_bars_are_as_long_as_their_values(kind: charts.Kind, library: charts.Library) -> None:
    needs(library)
    drawn = chart(kind, library)
    image = draw_charts.draw(drawn)
    assert image.size == drawn.size
    scales = []
    for color, row in zip(drawn.palette, drawn.numbers, strict=False):
        lengths = bar_lengths(near(image, color, 24), is_lying=kind == "lying")
        assert len(lengths) == len(row)
        scales += [length / number for length, number in zip(lengths, row, strict=True)]
    # Two pixels of the shortest bar.
    assert max(scales) / min(scales) < 1 + 2 / min(min(row) for row in drawn.numbers) / min(scales) + 0.01


@pytest.mark.parametrize("library", ["matplotlib", "altair"])
def test_a_line_goes_through_its_values(library: charts.Library) -> None:
    needs(library)
    drawn = chart("line", library)
    mask = near(draw_charts.draw(drawn), drawn.palette[0], 24)
    x0, _, x1, _ = extent(mask)
    heights = {}
    for n, at in enumerate((x0 + 3, (x0 + x1) / 2, x1 - 4)):
        heights[n] = float(np.flatnonzero(mask[:, int(at)]).mean())
    # The values are 40, 90, 55: so the last is 15/50 of the way from the first to the highest.
    assert heights[1] == min(heights.values())
    assert (heights[0] - heights[2]) / (heights[0] - heights[1]) == pytest.approx(15 / 50, abs=0.06)


@pytest.mark.parametrize("library", ["matplotlib", "altair"])
@pytest.mark.parametrize("kind", ["upright", "lying", "grouped", "line"])
def test_printed_values_and_names_are_there(kind: charts.Kind, library: charts.Library) -> None:
    needs(library)
    bare, printed = (draw_charts.draw(chart(kind, library, is_printed=p)) for p in (False, True))
    nameless = draw_charts.draw(replace(chart(kind, library), names=(" ", "  ", "   "), title=" "))

    def ink(image: Image.Image) -> int:
        return int((pixels(image).max(axis=2) < 110).sum())

    assert ink(printed) > ink(bare) + 60
    assert ink(bare) > ink(nameless) + 60


def test_charts_have_one_highest_and_one_lowest_value_and_room_to_read_them() -> None:
    for seed in range(300):
        made = charts.make_chart(Random(seed), FONTS.en, "en", is_printed=seed % 2 == 0)
        numbers = [number for row in made.numbers for number in row]
        assert len(set(numbers)) == len(numbers) == len(made.names) * len(made.series)
        assert len(set(made.names)) == len(made.names)
        if not made.is_printed:
            assert made.size[0] >= 320
            assert min(numbers) >= 0.3 * max(numbers)


def test_answers_about_charts_follow_from_their_numbers() -> None:
    for seed in range(120):
        rng = Random(seed)
        made = charts.make_chart(rng, FONTS.en, "en", is_printed=True)
        question, gold, names = drawn_tasks._ask_chart(rng, made, "en")
        named = [name for name in made.names if re.search(rf"\b{name}\b", question)]
        if names:
            wanted = max if re.search(r"tops|beats", question) else min
            assert gold == made.names[made.numbers[0].index(wanted(made.numbers[0]))]
        else:
            row = next((n for n, series in enumerate(made.series) if series and series in question), 0)
            assert gold == made.values[row][made.names.index(named[0])]


def test_answers_about_tables_follow_from_their_cells() -> None:
    for seed in range(120):
        rng = Random(seed)
        table = tables.make_table(rng, FONTS.en, "en")
        words = [*table.header, *(row[0] for row in table.rows)]
        assert len(set(words)) == len(words)
        question, gold, names = drawn_tasks._ask_table(rng, table, "en")
        (column,) = (n for n, name in enumerate(table.header) if re.search(rf"\b{name}\b", question))
        if names:
            assert gold == max(table.rows, key=lambda row: float(row[column]))[0]
        else:
            (row,) = (row for row in table.rows if re.search(rf"\b{row[0]}\b", question))
            assert gold == row[column]


@pytest.mark.skipif(not any(map(shutil.which, tables.BROWSERS)), reason="Chromium is not installed")
def test_a_table_has_the_rows_and_columns_that_it_says() -> None:
    made = [replace(tables.make_table(Random(seed), FONTS.en, "en"), style="boxed", caption="") for seed in range(3)]
    for table, image in zip(made, tables.draw_tables(made), strict=True):
        dark = near(image, "#444444", 20)
        height, width = dark.shape
        across = np.flatnonzero(dark.sum(axis=1) > 0.8 * (width - 18))
        down = np.flatnonzero(dark.sum(axis=0) > 0.8 * (height - 18))
        assert len(across) == len(table.rows) + 2
        assert len(down) == len(table.header) + 1
        assert pixels(image)[2, 2].tolist() != list(tables.KEY)


@pytest.mark.parametrize("make", [lines.short_line, lines.long_line])
def test_lines_are_as_long_as_they_should_be(make: Callable[[Random], str]) -> None:
    shortest, longest = lines.SHORT if make is lines.short_line else lines.LONG
    texts = [make(Random(seed)) for seed in range(300)]
    assert all(shortest <= len(text) <= longest and text == text.strip() and "{" not in text for text in texts)
    assert len(set(texts)) > 250
    assert 0.7 < sum(map(lines.is_plain, texts)) / len(texts) < 0.9


def test_no_line_runs_out_of_its_picture() -> None:
    for seed in range(60):
        image, text = lines.long_picture(Random(seed), FONTS)
        values = pixels(image)
        edges = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
        assert (edges == values[0, 0]).all(), text


def test_a_longer_line_takes_more_room() -> None:
    font = ImageFont.truetype(str(FONTS.en[0]), 20)
    one, two = (lines.draw_lines(Random(3), texts, font) for texts in (["one line"], ["one line", "and a second one"]))
    assert two.height > one.height + 18
    assert two.width > one.width


@pytest.mark.parametrize(
    "draw",
    [drawn_tasks._draw_locate, drawn_tasks._draw_count, drawn_tasks._draw_presence, drawn_tasks._draw_several],
)
def test_a_number_gives_one_item(draw: Callable[[Random, str, DataSource], Item]) -> None:
    first, again = (draw_all("name", draw, 4) for _ in range(2))
    assert first == again
    assert len({item.images for item in first}) == 4
    other = [items.draw_item("another", draw, number, DataSource()) for number in range(4)]
    assert {item.images for item in first}.isdisjoint(item.images for item in other)


def test_a_chart_is_drawn_the_same_twice() -> None:
    pytest.importorskip("altair")
    draw = drawn_tasks._chart_draw(is_printed=True)
    first, again = (draw_all("chart", draw, 6) for _ in range(2))
    assert first == again
    assert {item.notes["library"] for item in first} == {"matplotlib", "altair"}
    for item in first:
        assert Image.open(io.BytesIO(item.images[0])).size in charts.SIZES


def test_a_limit_takes_the_first_items() -> None:
    task = next(task for task in drawn_tasks.TASKS if task.name == "count")
    some = list(islice(task.items(DataSource()), 5))
    assert some[:2] == list(islice(task.items(DataSource()), 2))
    assert [item.id for item in some] == [f"count-{n:05d}" for n in range(5)]
