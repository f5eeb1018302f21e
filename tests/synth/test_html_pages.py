"""Drawn pages show what is written in them, where their boxes say, and are the same every time."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

import pytest
from PIL import ImageFile

from vl2.errors import UserError
from vl2.eval.drawn import png
from vl2.eval.task import DataSource, Item
from vl2.eval.task_catalog import find_task
from vl2.eval.tasks.documents import gold_markdown, score
from vl2.synth import fonts
from vl2.synth.html_pages import draw_html, import_weasyprint, style
from vl2.synth.page_writer import KINDS, write_page
from vl2.synth.source import Dropped

for _library in ("pypdfium2", "bs4", "lxml", "rapidfuzz", "scipy"):
    pytest.importorskip(_library)
try:
    import_weasyprint()
except UserError:
    pytest.skip("WeasyPrint or Pango is not installed", allow_module_level=True)

FACES = [face for face in fonts.find_faces() if face.path]
if not FACES:
    pytest.skip("this machine has no font files", allow_module_level=True)


def page(body: str, height: int = 200) -> str:
    return f"<html><head><style>{style(300, height, 20, 16)}</style></head><body>{body}</body></html>"


def test_truncated_images_are_still_refused() -> None:
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False  # WeasyPrint, imported above, sets it


def test_boxes_are_around_what_is_drawn() -> None:
    black = '<div id="square" style="width: 40px; height: 30px; background: #000; margin-left: 50px"></div>'
    drawn = draw_html(page(black + '<div id="nothing" style="height: 20px"></div>'), FACES[0], "A")
    assert drawn.image.size == (300, 200)
    assert drawn.boxes == {"square": (70, 20, 110, 50)}  # the margin of the page is 20 px


def test_content_that_needs_a_second_page_is_dropped() -> None:
    with pytest.raises(Dropped, match="does not fit on one page"):
        draw_html(page("<p>A</p>" * 40), FACES[0], "A")


def test_a_page_loads_nothing_from_outside() -> None:
    drawn = draw_html(page('<img id="far" src="http://192.0.2.1/a.png"><p id="near">A</p>'), FACES[0], "A")
    assert list(drawn.boxes) == ["near"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_written_and_drawn_the_same_every_time(kind: str) -> None:
    first, second = (write_page(random.Random(4), "en", kind) for _ in range(2))  # type: ignore[arg-type]
    assert first == second
    try:
        one, other = (draw_html(p.html, FACES[0], p.text, files=p.files) for p in (first, second))
    except Dropped:
        return
    assert png(one.image) == png(other.image)
    assert one.boxes == other.boxes
    assert {block.id for block in first.blocks} == {*one.boxes}  # every block is visible


@pytest.fixture(scope="module")
def pages() -> list[Item]:
    return list(islice(find_task("documents_en").items(DataSource()), len(KINDS)))


def test_the_gold_markdown_of_every_kind_of_page_scores_one(pages: list[Item]) -> None:
    assert {item.part for item in pages} <= {*KINDS}
    for item in pages:
        found = score(item, gold_markdown(item.gold))
        assert found.value == 1.0, item.id
        assert set(found.measures.values()) == {1.0}


def test_each_damage_lowers_its_own_score(pages: list[Item]) -> None:
    item = next(item for item in pages if any(block["type"] == "table" for block in item.gold))
    blocks = gold_markdown(item.gold).split("\n\n")
    dropped = next(n for n, block in enumerate(blocks) if "<table>" not in block)
    assert score(item, "\n\n".join(blocks[:dropped] + blocks[dropped + 1 :])).measures["text"] < 1.0
    swapped = score(item, "\n\n".join(blocks[len(blocks) // 2 :] + blocks[: len(blocks) // 2])).measures
    assert (swapped["text"], swapped["tables"]) == (1.0, 1.0)
    assert swapped["order"] < 1.0
    broken = score(item, "\n\n".join(block.replace("</td><td>", " ") for block in blocks)).measures
    assert (broken["text"], broken["order"]) == (1.0, 1.0)
    assert broken["tables"] < 1.0


def test_boxes_are_scored_if_the_answer_has_them(pages: list[Item]) -> None:
    item = pages[0]
    width, height = 794, 1123
    sized = [block for block in item.gold if block["type"] not in ("header", "footer")]
    said = ""
    for block in sized:
        x0, y0, x1, y1 = (
            round(v / side * 999) for v, side in zip(block["box"], (width, height) * 2, strict=True)
        )  # fmt: skip
        kind = "image" if block["type"] == "figure" else "text"
        said += f"<|ref|>{kind}<|/ref|><|det|>[[{x0}, {y0}, {x1}, {y1}]]<|/det|>\n{block['text']}\n"
    found = score(item, said).measures
    assert found["text"] == found["order"] == 1.0
    assert 0.9 < found["boxes"] <= 1.0  # a unit of the scale is about a pixel
    assert "boxes" not in score(item, gold_markdown(item.gold)).measures


def test_a_folder_without_a_chinese_font_is_an_error() -> None:
    latin = next((face.path.rpartition("/")[0] for face in FACES if "DejaVu" in face.name), None)
    if latin is None or "zh" in fonts.languages((latin,)):
        pytest.skip("no folder of Latin fonts only")
    with pytest.raises(UserError, match="needs a font for Chinese"):
        next(iter(find_task("documents_zh").items(DataSource(fonts=Path(latin)))))
