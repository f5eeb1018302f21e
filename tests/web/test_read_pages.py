"""The page before a model of the DeepSeek-OCR family: blocks with their boxes, tables in HTML, figures cut out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.ocr.golden import toy_folder
from tests.serve.live_server import LiveServer, serving
from tests.web.scripted_backend import ScriptedBackend
from tests.web.talk import add, answer_text, ask, choose, rect, send, wait_until
from vl2.infer.prompts import describe_prompt, locate_prompt, read_prompt
from vl2.process.processor import Processor
from vl2.serve.settings import ServerSettings

TABLE = (
    '<table><tr><td colspan="2">Sales & <b>more</b></td></tr>'
    '<tr><td rowspan="2">2024<br>2025</td><td>1 < 2</td></tr><tr><td>x</td></tr></table>'
)
PAGE = (
    "<|ref|>title<|/ref|><|det|>[[100, 50, 900, 120]]<|/det|>\n# Report\n\n"
    "<|ref|>image<|/ref|><|det|>[[0, 500, 999, 999]]<|/det|>\n"
    f"<|ref|>table<|/ref|><|det|>[[1, 2, 300, 400]]<|/det|>\n{TABLE}\n\n"
    "<|ref|>text<|/ref|><|det|>[[100, 150, 480, 400]]<|/det|>\nThe end."
)
UNLIMITED = (
    "<PAGE><|det|>title [100, 50, 900, 120]<|/det|># First\n<|det|>text [1, 2, 300, 400]<|/det|>one"
    "<PAGE><|det|>text [500, 600, 700, 800]<|/det|>two"
)


@pytest.fixture(scope="module", params=["deepseek-ocr", "unlimited-ocr"])
def family_server(request: pytest.FixtureRequest) -> Iterator[tuple[ScriptedBackend, LiveServer]]:
    backend = ScriptedBackend(Processor.from_folder(toy_folder(request.param)))
    with serving(backend, ServerSettings(name=request.param)) as server:
        yield backend, server


@pytest.fixture
def family(family_server: tuple[ScriptedBackend, LiveServer]) -> ScriptedBackend:
    family_server[0].reset()
    return family_server[0]


@pytest.fixture
def family_page(open_page: Callable[..., Any], family_server: tuple[Any, LiveServer]) -> Any:
    page = open_page(family_server[1].url)
    wait_until(page, "() => document.querySelectorAll('.task').length === 5")
    return page


only_ocr = pytest.mark.parametrize("family_server", ["deepseek-ocr"], indirect=True)
only_unlimited = pytest.mark.parametrize("family_server", ["unlimited-ocr"], indirect=True)


def test_each_task_asks_as_the_python_api_does(family_page: Any, family: ScriptedBackend, picture: Path) -> None:
    kind = family.processor.kind
    asked = {
        "read": ("", read_prompt(kind)),
        "ask": ("Why?", "Why?"),
        "locate": ("the sky", locate_prompt("the sky", kind)),
        "describe": ("", describe_prompt(grounded=True, kind=kind)),
    }
    shown = [task.get_attribute("value") for task in family_page.locator("#tasks input").all()]
    assert shown == [*asked, "extract"]
    assert family_page.locator("#tasks input:checked").get_attribute("value") == "read"
    assert family_page.locator(".example").count() == 0
    for task, (question, prompt) in asked.items():
        family_page.click("#new-chat")
        add(family_page, picture)
        choose(family_page, task)
        ask(family_page, question)
        expected = family.processor.encode_prompt(f"<image>\n{prompt}", [picture])
        assert family.requests[-1].sample.input_ids.tolist() == expected.input_ids.tolist()
    assert len(family.requests) == 4  # the model is not asked whether what was located is there


@only_ocr
def test_a_read_page_is_shown_with_types_tables_and_figures(
    family_page: Any, family: ScriptedBackend, picture: Path
) -> None:
    family.text = PAGE
    add(family_page, picture)
    ask(family_page)
    shown = family_page.locator(".answer-text")
    assert shown.locator(".block-type").all_inner_texts() == ["title", "image", "table", "text"]
    assert shown.locator("h3").inner_text() == "Report"
    cells = [
        (c.inner_text(), c.get_attribute("colspan"), c.get_attribute("rowspan")) for c in shown.locator("td").all()
    ]
    assert [cell[0] for cell in cells] == ["Sales & more", "2024\n2025", "1 < 2", "x"]
    assert (cells[0][1], cells[1][2]) == ("2", "2")
    assert shown.locator("b").count() == 0
    assert shown.locator("p").last.inner_text() == "The end."
    # The figure is the lower half of the picture, of 400 x 150 px, and green.
    left, top, right, bottom = rect(shown.locator(".cut-out"))
    assert abs((right - left) / (bottom - top) - 400 / 150) < 0.02
    image = rect(shown.locator(".cut-out img"))
    assert np.allclose(image, (left, top - (bottom - top), right, bottom), atol=2)
    assert family_page.locator(".box-label").all_inner_texts() == ["title", "image", "table", "text"]


@only_ocr
def test_the_markdown_is_copied_and_the_file_has_the_blocks(
    family_page: Any, family: ScriptedBackend, picture: Path, tmp_path: Path
) -> None:
    family_page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    family.text = PAGE
    add(family_page, picture)
    ask(family_page)
    family_page.click("text=Copy text")
    wait_until(family_page, "() => document.querySelector('#toast.shown')")
    copied = family_page.evaluate("navigator.clipboard.readText()")
    assert copied == f"# Report\n\n{TABLE}\n\nThe end."
    with family_page.expect_download() as download:
        family_page.click("text=JSON")
    download.value.save_as(tmp_path / "page.json")
    saved = json.loads((tmp_path / "page.json").read_text(encoding="utf-8"))
    assert saved["markdown"] == copied
    assert [block["type"] for block in saved["blocks"]] == ["title", "image", "table", "text"]


@only_unlimited
def test_boxes_of_several_pages_lie_on_their_pages(
    family_page: Any, family: ScriptedBackend, picture: Path, second_picture: Path
) -> None:
    family.text = UNLIMITED
    add(family_page, picture, second_picture)
    ask(family_page)
    assert answer_text(family_page).split() == ["title", "First", "text", "one", "text", "two"]
    assert family_page.locator(".answer-text h3").inner_text() == "First"
    frames = family_page.locator(".frame").all()
    assert [frame.locator(".box").count() for frame in frames] == [2, 1]
    assert [frame.locator("img").get_attribute("alt") for frame in frames] == ["halves.png", "tall.png"]


@only_ocr
def test_a_table_that_is_coming_is_shown_and_cannot_inject_anything(
    family_page: Any, family: ScriptedBackend, picture: Path
) -> None:
    attacks = (
        "<table><tr><td><img src=x onerror=window.hurt=1>a</td></tr></table>",
        "<table onclick=window.hurt=1><tr><td onclick=window.hurt=1 colspan=9999999>b</td></tr></table>",
        "<table><script>window.hurt=1</script><tr><td><a href='javascript:window.hurt=1'>c</a></td></tr></table>",
        "<table><tr><td>d<table><tr><td>e</td></tr></table></td></tr></table> f",
        "<table>lost<tr><td>g",
    )
    add(family_page, picture)
    for attack in attacks:
        family.text = attack
        ask(family_page, attack)
        family_page.click(".answer td >> nth=-1")
    assert family_page.evaluate("window.hurt") is None
    inside = "img, script, a, [onclick], [onerror]"
    assert family_page.locator(f".answer-text :is({inside})").count() == 0
    said = " ".join(family_page.locator(".answer-text").all_inner_texts()).replace("Copy table", "").split()
    assert said == ["a", "b", "window.hurt=1", "c", "d", "e", "f", "lost", "g"]
    family.text = "<table><tr><td>first</td></tr><tr><td>second</td></tr></table>"
    family.pause_after = len(family.processor.tokenizer.encode("<table><tr><td>first</td></tr><tr><td>"))
    send(family_page, "Once more.")
    wait_until(family_page, "() => [...document.querySelectorAll('.answer-text td')].at(-2)?.innerText === 'first'")
    family.go_on()
    wait_until(family_page, "() => [...document.querySelectorAll('.answer-text td')].at(-1)?.innerText === 'second'")


@only_ocr
def test_an_accessibility_checker_finds_nothing(
    open_page: Callable[..., Any], family_server: tuple[Any, LiveServer], family: ScriptedBackend, picture: Path
) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="the `browser` extra is not installed"
    ).Axe()
    family.text = PAGE
    for scheme in ("light", "dark"):
        page = open_page(family_server[1].url, color_scheme=scheme, reduced_motion="reduce")
        add(page, picture)
        ask(page)
        add(page, picture)
        found = axe.run(page).response["violations"]
        assert [(v["id"], [n["target"] for n in v["nodes"]]) for v in found] == []
