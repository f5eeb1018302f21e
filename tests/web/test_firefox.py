"""The main flow in Firefox, which Playwright drives through WebDriver BiDi: a picture, boxes, formulas, and kept chats.

Skipped where no Firefox is found (VL2_FIREFOX can name one), and where Playwright and this Firefox do not understand
each other: Playwright 1.57 and Firefox 153 do.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pdf_files import color_pdf
from tests.web.conftest import playwright
from tests.web.scripted_backend import ScriptedBackend
from tests.web.talk import add, answer_text, ask, choose, fill_fields, wait_until

NAMES = ("firefox-esr", "firefox")


@pytest.fixture
def firefox_page(driver: Any) -> Iterator[Any]:
    path = os.environ.get("VL2_FIREFOX") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Firefox found; VL2_FIREFOX can name one")
    browser = driver.firefox.launch(channel="moz-firefox", executable_path=path)
    try:
        # Firefox may not know the commands for these overrides.
        options = {"color_scheme": "null", "reduced_motion": "null"}
        context = browser.new_context(viewport={"width": 1280, "height": 860}, locale="en-GB", **options)
    except playwright.Error as error:
        browser.close()
        pytest.skip(f"Playwright cannot drive this Firefox: {error}")
    page = context.new_page()
    page.set_default_timeout(60_000)
    yield page
    browser.close()


def test_the_main_flow(
    firefox_page: Any, scripted_server: Any, backend: ScriptedBackend, picture: Path, tmp_path: Path
):
    page, troubles = firefox_page, list[str]()
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto(scripted_server[1].url)
    wait_until(page, "() => document.getElementById('model-name').textContent !== ''")

    backend.text = "A <|ref|>field<|/ref|><|det|>[[0, 500, 999, 999]]<|/det|> of \\(x^2\\).\n\na | b\n-|-\n1 | 2"
    add(page, picture)
    ask(page, "What is it?")
    assert page.locator(".box").count() == 1
    assert page.locator(".answer-text td").all_inner_texts() == ["1", "2"]
    wait_until(page, "() => document.querySelectorAll('.katex-html').length === 1")
    assert backend.requests[-1].images[0].size == (400, 300)

    page.locator(".enlarge").click()
    assert page.locator("#zoom").is_visible()
    page.locator("#zoom .close-dialog").click()

    backend.text = "Another."
    page.locator(".again").click()
    wait_until(page, "() => document.querySelector('.answer[aria-busy=false] .variants')?.innerText.includes('2/2')")

    wait_until(page, "() => document.querySelectorAll('.chat').length === 1")
    page.reload()
    wait_until(page, "() => document.querySelector('.answer-text')?.innerText.trim() === 'Another.'")
    assert page.locator(".thumb img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 400

    (tmp_path / "one.pdf").write_bytes(color_pdf(["blue"]))
    page.set_input_files("#file", str(tmp_path / "one.pdf"))
    wait_until(page, "() => document.querySelectorAll('.attachment').length === 1")
    choose(page, "extract")
    fill_fields(page, ("total", "number"))
    backend.text = '{"total": 5}'
    page.locator("#send").click()
    wait_until(page, "() => document.querySelector('.values td')?.innerText === '5'")
    wait_until(page, "() => document.querySelectorAll('.answer[aria-busy=false]').length === 2")
    assert answer_text(page).split() == ["Field", "Value", "total", "5"]
    assert troubles == []
