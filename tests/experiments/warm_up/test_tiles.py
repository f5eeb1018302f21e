"""Warm-up tiles: what is marked is what is drawn, and difficulty is what it says."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.nano.warm_up.classes import ASCII, NOTHING, Classes, choose_characters
from experiments.nano.warm_up.sheet import PADDING
from experiments.nano.warm_up.tiles import TileDrawer
from tests.synth.pill_set import write_set
from vl2.synth.shapes import COLORS, SHAPES
from vl2.synth.sprites import read_kinds

TEXTS = ("the quick brown fox jumps over the lazy dog", "Iron expands when it is heated")
CLASSES = Classes(ASCII)


def drawer() -> TileDrawer:
    return TileDrawer(classes=CLASSES, texts_en=TEXTS, texts_zh=())


def test_every_class_has_one_number() -> None:
    classes = Classes((*ASCII, "中", "文"), ("apple", "dog"))
    numbers = [classes.character(c) for c in classes.characters]
    numbers += [classes.sprite(name) for name in classes.sprites]
    numbers += [classes.shape(shape.en, color) for shape in SHAPES for color in COLORS]
    assert sorted(n for n in numbers if n is not None) == list(range(1, len(classes)))
    assert [n for r in classes.groups.values() for n in r] == list(range(1, len(classes)))
    assert classes.character("é") is None


def test_the_most_frequent_characters_are_chosen() -> None:
    assert choose_characters(["中中中国国人abc"], 2) == (*ASCII, "中", "国")


@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
def test_a_tile_depends_on_its_generator_alone(difficulty: float) -> None:
    one, two = (drawer().draw(random.Random(7), difficulty) for _ in range(2))
    assert np.array_equal(one.pixels, two.pixels)
    assert np.array_equal(one.classes, two.classes)
    assert one.pixels.shape == (168, 168, 3)
    assert one.classes.shape == (12, 12)


def test_patches_lie_in_the_boxes_they_are_given_and_only_shown_ones_have_one() -> None:
    center = (np.arange(12) + 0.5) / 12
    shown = 0
    for seed in range(40):
        tile = drawer().draw(random.Random(seed), 0.6)
        for row, column in np.argwhere(tile.classes != NOTHING):
            x0, y0, x1, y1 = tile.boxes[row, column]
            assert x0 - 1e-6 <= center[column] < x1 + 1e-6
            assert y0 - 1e-6 <= center[row] < y1 + 1e-6
            shown += 1
        assert not tile.boxes[tile.classes == NOTHING].any()
    assert shown > 500


def test_marked_letters_differ_from_the_ground() -> None:
    """Where a letter is marked there is ink; where nothing is, the easiest tiles are even."""
    for seed in range(30):
        tile = drawer().draw(random.Random(seed), 0.0)
        inked = []
        for row, column in np.argwhere(tile.classes != NOTHING):
            x0, y0, x1, y1 = (round(v * 168) for v in tile.boxes[row, column].clip(0, 1))
            if x1 - x0 > 3 and y1 - y0 > 3:
                inked.append(float(tile.pixels[y0:y1, x0:x1].std()))
        assert not inked or np.median(inked) > 5


def test_easy_tiles_hold_no_sprites_and_no_chinese() -> None:
    classes = Classes((*ASCII, *"图书馆上午九点开门"))
    easy = TileDrawer(classes=classes, texts_en=TEXTS, texts_zh=("图书馆上午九点开门",))
    chinese = classes.groups["chinese"]
    for seed in range(40):
        found = easy.draw(random.Random(seed), 0.1).classes
        assert not ((found >= chinese.start) & (found < chinese.stop)).any()


def test_a_line_on_its_own_is_read_token_by_token() -> None:
    """What the tokens of a line hold, row by row, is a text of the words drawn, with its spaces."""
    name = {CLASSES.character(c): c for c in CLASSES.characters} | {CLASSES.space: " "}
    words = {word for text in TEXTS for word in text.split()}
    whole = 0
    lines = replace(drawer(), things_share=0.0, lines_share=1.0)
    for seed in range(60):
        tile = lines.draw(random.Random(seed), 0.0)
        assert tile.things.shape == (6, 6, 5)
        rows = [r for r in range(6) if (tile.things[r] != NOTHING).any()]
        assert len(rows) <= 1, "a line stands in one row of tokens"
        read = "".join(name[n] for n in tile.things[rows].flatten() if n != NOTHING)
        whole += any(word.lower() in words for word in read.split())
    assert whole > 15


def test_a_thing_is_held_by_the_token_in_which_its_middle_lies() -> None:
    held = 0
    scenes = replace(drawer(), things_share=1.0)
    for seed in range(40):
        tile = scenes.draw(random.Random(seed), 0.0)
        for row, column in np.argwhere(tile.things[:, :, 0] != NOTHING):
            x0, y0, x1, y1 = tile.first_boxes[row, column]
            assert column / 6 - 1e-6 <= (x0 + x1) / 2 < (column + 1) / 6 + 1e-6
            assert row / 6 - 1e-6 <= (y0 + y1) / 2 < (row + 1) / 6 + 1e-6
            held += 1
        assert not tile.first_boxes[tile.things[:, :, 0] == NOTHING].any()
    assert held > 40


def test_where_a_thing_stands_is_told_as_a_part_of_the_picture_without_its_padding() -> None:
    padded = 0
    scenes = replace(drawer(), things_share=1.0)
    for seed in range(40):
        tile = scenes.draw(random.Random(seed), 0.0)
        is_padding = (tile.pixels == PADDING).all(axis=2)
        rows, columns = np.flatnonzero(~is_padding.all(axis=1)), np.flatnonzero(~is_padding.all(axis=0))
        left, right, top, bottom = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
        padded += (right - left, bottom - top) != (168, 168)
        for row, column in np.argwhere(tile.things[:, :, 0] != NOTHING):
            x0, y0, x1, y1 = tile.first_places[row, column]
            in_tile = (left + x0 * (right - left), top + y0 * (bottom - top),
                       left + x1 * (right - left), top + y1 * (bottom - top))  # fmt: skip
            assert np.allclose(np.array(in_tile) / 168, tile.first_boxes[row, column], atol=0.01)
        center = (np.arange(12) + 0.5) * 14
        outside = (center < top) | (center >= bottom), (center < left) | (center >= right)
        assert not tile.classes[outside[0]].any(), "padding shows nothing"
        assert not tile.classes[:, outside[1]].any(), "padding shows nothing"
        assert not tile.first_places[tile.things[:, :, 0] == NOTHING].any()
    assert 8 < padded < 32


def test_restyled_sprites_are_marked_where_they_are_drawn(tmp_path: Path) -> None:
    folder = write_set(tmp_path)
    kinds = read_kinds(str(folder))
    classes = Classes(ASCII, tuple(sorted({kind.en for kind in kinds})))
    plain = TileDrawer(classes=classes, texts_en=TEXTS, texts_zh=(), styles=[kinds], things_share=1.0)
    other = replace(plain, restyled_share=1.0)
    changed = marked = 0
    for seed in range(30):
        one, two = (drawer.draw(random.Random(seed), 1.0) for drawer in (plain, other))
        changed += not np.array_equal(one.pixels, two.pixels)
        sprites = np.isin(two.classes, list(classes.groups["sprite"]))
        marked += int(sprites.sum())
    assert changed > 15
    assert marked > 100


def test_the_share_of_shapes_among_the_things_is_as_asked(tmp_path: Path) -> None:
    kinds = read_kinds(str(write_set(tmp_path)))
    classes = Classes(ASCII, tuple(sorted({kind.en for kind in kinds})))
    plain = TileDrawer(classes=classes, texts_en=TEXTS, texts_zh=(), styles=[kinds], things_share=1.0)
    found = {}
    for share in (0.0, 0.3, 1.0):
        some = replace(plain, shapes_share=share)
        things = np.concatenate([some.draw(random.Random(seed), 1.0).things.flatten() for seed in range(60)])
        shapes, sprites = (np.isin(things, list(classes.groups[name])).sum() for name in ("shape", "sprite"))
        found[share] = shapes / (shapes + sprites)
        assert shapes + sprites > 100
    assert found[0.0] == 0
    assert found[1.0] == 1
    assert 0.2 < found[0.3] < 0.4
