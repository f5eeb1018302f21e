"""Articles of several pages and columns: the text flows in reading order, boxes are where the ink is."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vl2.errors import UserError
from vl2.synth import fonts, words
from vl2.synth.article import Article, Block, Layout, as_markdown, choose_layout, draw_pages
from vl2.synth.catalog import make_source
from vl2.synth.illustration import choose_illustration
from vl2.synth.source import generate

RED, BLUE = (255, 0, 0), (0, 0, 255)


def layout(seed: int, columns: int) -> Layout:
    rng = random.Random(seed)
    chosen = choose_layout(rng, fonts.BUILT_IN, columns)
    while chosen.columns != columns:
        chosen = choose_layout(rng, fonts.BUILT_IN, columns)
    return dataclasses.replace(chosen, accent=RED, ink=BLUE)


def article(count: int) -> list[Block]:
    blocks = [Block(kind="title", text="All about everything")]
    for number in range(1, count + 1):
        blocks.append(Block(kind="heading", text=f"Part {number}", section=number))
        blocks.append(Block(kind="paragraph", text=words.PASSAGES["en"][number % 10], section=number))
    return blocks


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_boxes_are_where_headings_are_drawn(columns: int) -> None:
    blocks = article(30)
    pages = draw_pages(blocks, layout(columns, columns), "en", 2, random.Random(columns))
    for number, page in enumerate(pages):
        pixels = np.asarray(page).astype(int)
        is_red = (pixels[:, :, 0] - pixels[:, :, 2]) > 100
        inside = np.zeros_like(is_red)
        boxes = [box for b in blocks if b.kind in ("title", "heading") for n, box in b.boxes if n == number]
        assert boxes
        for x0, y0, x1, y1 in boxes:
            assert is_red[int(y0) : int(y1), int(x0) : int(x1)].any()
            inside[int(y0) : int(y1), int(x0) : int(x1)] = True
        # Outside of the boxes only the rule below the title is red, one pixel high.
        assert (is_red & ~inside).any(axis=1).sum() <= 1


def test_text_flows_through_the_columns_of_all_pages() -> None:
    blocks = article(60)
    chosen = layout(3, 3)
    draw_pages(blocks, chosen, "en", 2, random.Random(0))
    drawn = [block for block in blocks if block.boxes]
    assert drawn == blocks[: len(drawn)]
    assert len(drawn) < len(blocks)  # the article is longer than two pages
    middle = chosen.margin + chosen.column_px / 2
    width = chosen.column_px + chosen.gap
    order = [
        (page, round((box[0] + chosen.column_px / 2 - middle) / width), box[1])
        for block in drawn
        if block.kind != "title"
        for page, box in block.boxes
    ]
    assert order == sorted(order)
    assert {(page, column) for page, column, _ in order} == {(p, c) for p in range(2) for c in range(3)}
    assert all(block.is_whole for block in drawn[:-1])
    assert as_markdown(drawn[:3], "en") == ("# All about everything\n\n## Part 1\n\n" + words.PASSAGES["en"][1])


def test_a_heading_is_never_the_last_line_of_a_column() -> None:
    blocks = article(60)
    draw_pages(blocks, layout(1, 2), "en", 3, random.Random(1))
    for heading, paragraph in zip(blocks[1::2], blocks[2::2], strict=True):
        if paragraph.boxes:
            assert heading.boxes[-1][0] == paragraph.boxes[0][0]
            assert paragraph.boxes[0][1][1] > heading.boxes[-1][1][1]


def test_questions_are_answered_by_what_is_drawn(tmp_path: Path) -> None:
    Image.new("RGB", (600, 400), (20, 90, 60)).save(tmp_path / "photo.jpg")
    settings = {"languages": "en", "photographs": str(tmp_path), "max_pages": 3}
    for record in generate(make_source("article", settings), 30):
        question, answer = (message.parts[-1].text or "" for message in record.messages[:2])
        assert 1 <= len(record.images) <= 3
        if "Count from" in question or "counted from" in question:
            assert 1 <= int(answer) <= len(record.images)
        elif "caption" in question:
            assert answer.startswith("Figure ")
        elif record.objects:
            assert record.category == "grounding"
        else:
            assert len(answer) > 8


def test_a_folder_without_photographs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no photograph"):
        choose_illustration(random.Random(0), str(tmp_path), 100)
    with pytest.raises(UserError, match="max_pages of article must be at least 2"):
        Article(max_pages=1)
