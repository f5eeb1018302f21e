"""The page beside its text, and pictures made larger."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ocr.golden import toy_folder
from tests.serve.live_server import LiveServer, serving
from tests.web.scripted_backend import ScriptedBackend
from tests.web.talk import add, ask, rect, wait_until
from vl2.process.processor import Processor
from vl2.serve.settings import ServerSettings

PAGE = (
    "<|ref|>image<|/ref|><|det|>[[0, 400, 999, 999]]<|/det|>\n"
    "<|ref|>title<|/ref|><|det|>[[100, 50, 900, 120]]<|/det|>\n# Report\n\n"
    "<|ref|>table<|/ref|><|det|>[[100, 500, 300, 700]]<|/det|>\n<table><tr><td>1</td><td>2</td></tr></table>\n\n"
    "<|ref|>text<|/ref|><|det|>[[100, 150, 480, 300]]<|/det|>\nThe <img src=x onerror=window.hurt=1> end, \\(x^2\\)."
)
LIT = (
    "[...document.querySelectorAll('#document .is-lit')].map(e => e.className.split(' ')[0] + e.dataset.mention).sort()"
)
FIGURE = "() => document.querySelector('#zoom .zoom-figure').textContent"


@pytest.fixture(scope="module")
def reader() -> Iterator[tuple[ScriptedBackend, LiveServer]]:
    backend = ScriptedBackend(Processor.from_folder(toy_folder("deepseek-ocr")))
    with serving(backend, ServerSettings(name="deepseek-ocr")) as server:
        yield backend, server


@pytest.fixture
def document_page(open_page: Callable[..., Any], reader: Any, picture: Path) -> Any:
    backend, server = reader
    backend.reset()
    backend.text = PAGE
    page = open_page(server.url)
    wait_until(page, "() => document.querySelector('#tasks input[value=read]')?.checked")
    add(page, picture)
    ask(page)
    page.get_by_role("button", name="Page and text").click()
    return page


def test_blocks_and_their_boxes_light_each_other_up(document_page: Any):
    page = document_page
    names = page.locator(".block .block-type").all_inner_texts()
    assert names == ["image", "title", "table", "text"]
    left, top, right, bottom = rect(page.locator(".document-pages .frame"))
    x0, _y0, _x1, y1 = rect(page.locator(".document-pages .box[data-mention='1']"))
    assert abs((x0 - left) / (right - left) - 100 / 999) < 0.01
    assert abs((y1 - top) / (bottom - top) - 120 / 999) < 0.01
    page.hover(".block >> nth=3")
    assert page.evaluate(LIT) == ["block3", "box3"]
    page.hover(".document-pages .box[data-mention='2']")  # which lies on the figure's
    assert page.evaluate(LIT) == ["block2", "box2"]
    page.click(".document-pages .box[data-mention='1']")
    assert page.evaluate("document.activeElement.dataset.mention") == "1"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")  # over the table
    assert page.evaluate("document.activeElement.closest('.block').dataset.mention") == "2"
    assert page.locator(".block h3").inner_text() == "Report"
    assert page.locator(".block .katex-html").count() == 1
    assert page.locator(".block td").all_inner_texts() == ["1", "2"]
    assert page.locator(".block .cut-out").count() == 1
    assert page.evaluate("window.hurt") is None
    page.keyboard.press("Escape")
    assert not page.locator("#document").is_visible()


def test_the_document_view_is_stacked_on_a_phone_and_accessible(document_page: Any):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="the `browser` extra is not installed"
    ).Axe()
    page = document_page
    found = axe.run(page).response["violations"]
    assert [(v["id"], [n["target"] for n in v["nodes"]]) for v in found] == []
    page.set_viewport_size({"width": 390, "height": 760})
    assert rect(page.locator(".document-pages"))[3] <= rect(page.locator(".document-text"))[1] + 1
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_picture_is_zoomed_by_keys_wheel_and_buttons(page: Any, backend: ScriptedBackend, picture: Path):
    backend.text = "A <|ref|>field<|/ref|><|det|>[[0, 500, 999, 999]]<|/det|>."
    add(page, picture)
    ask(page, "What?")
    page.get_by_role("button", name="Enlarge the picture").click()
    frame = page.locator("#zoom .frame")
    left, top, right, bottom = rect(frame)
    assert abs((right - left) / (bottom - top) - 4 / 3) < 0.01
    first = right - left
    page.keyboard.press("+")
    wait_until(page, f"() => ({FIGURE})() === '125%'")
    left, top, right, bottom = rect(frame)
    assert abs((right - left) / first - 1.25) < 0.01
    box = rect(page.locator("#zoom .box"))
    assert abs(box[1] - (top + bottom) / 2) < 2  # the box grows with the picture
    page.keyboard.press("0")
    wait_until(page, f"() => ({FIGURE})() === '100%'")
    # What is under the pointer stays there.
    page.mouse.move(500, 400)
    before = [(500 - rect(frame)[0]) / first, (400 - rect(frame)[1]) / first]
    page.mouse.wheel(0, -400)
    wait_until(page, f"() => ({FIGURE})() !== '100%'")
    left, top, right, bottom = rect(frame)
    assert abs((500 - left) / (right - left) - before[0]) < 0.02
    assert abs((400 - top) / (right - left) - before[1]) < 0.02
    page.get_by_role("button", name="Zoom out").click()
    page.keyboard.press("Escape")
    assert not page.locator("#zoom").is_visible()
    page.locator(".answer .frame img").click(position={"x": 5, "y": 5})  # no box is there
    assert page.locator("#zoom").is_visible()


def test_two_fingers_zoom(page: Any, backend: ScriptedBackend, picture: Path):
    backend.text = "A <|ref|>field<|/ref|><|det|>[[0, 500, 999, 999]]<|/det|>."
    add(page, picture)
    ask(page, "What?")
    page.click(".enlarge")
    page.evaluate(
        """() => {
          const place = document.querySelector(".zoom-viewport");
          const fire = (type, pointerId, clientX) => place.dispatchEvent(
            new PointerEvent(type, { pointerId, clientX, clientY: 300, pointerType: "touch", bubbles: true }));
          fire("pointerdown", 1, 400); fire("pointerdown", 2, 500);
          fire("pointermove", 2, 600); fire("pointerup", 1, 400); fire("pointermove", 2, 900);
        }"""
    )
    assert page.evaluate(FIGURE) == "200%"
