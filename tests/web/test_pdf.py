"""PDF files on the page: thumbnails, the choice of pages, and what is then sent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pdf_files import color_pdf
from tests.web.scripted_backend import ScriptedBackend
from tests.web.talk import ask, wait_until
from vl2.process.pdf import draw_page


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """A PDF file of 40 pages: red, green and blue in turn."""
    path = tmp_path / "report.pdf"
    path.write_bytes(color_pdf(["red", "lime", "blue"] * 13 + ["red"]))
    return path


def test_chosen_pages_are_sent_as_batch_jobs_draw_them(page: Any, backend: ScriptedBackend, report: Path):
    page.set_input_files("#file", str(report))
    page.wait_for_selector("#pages[open]")
    assert page.locator("#pages-title").inner_text() == "report.pdf"
    assert page.locator(".page").count() == 40
    assert page.locator("#add-pages").is_disabled()
    wait_until(page, "() => [...document.querySelectorAll('.page img')].filter(i => i.complete).length >= 24")
    for number in (3, 2):
        page.locator(".page").nth(number - 1).click()
    assert page.locator("#pages-count").inner_text() == "2 of 40 pages chosen"
    page.click("#add-pages")
    wait_until(page, "() => document.querySelectorAll('.attachment').length === 2")
    ask(page, "What?")
    for number, image in zip((2, 3), backend.requests[-1].images, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(draw_page(report, number, 144)))
    assert page.locator(".thumb img").first.get_attribute("alt") == "report.pdf, page 2"


def test_thumbnails_come_when_they_are_scrolled_to(page: Any, report: Path):
    page.set_viewport_size({"width": 700, "height": 500})
    page.set_input_files("#file", str(report))
    page.wait_for_selector("#pages[open]")
    assert page.locator(".page >> nth=39").locator("img").count() == 0
    page.locator(".page >> nth=39").scroll_into_view_if_needed()
    wait_until(page, "() => document.querySelectorAll('.page')[39].querySelector('img')")


def test_no_more_pages_are_taken_than_a_conversation_may_have(page: Any, report: Path):
    page.set_input_files("#file", str(report))
    page.wait_for_selector("#pages[open]")
    page.click("#pages-all")
    assert page.locator("#pages-count").inner_text() == "16 of 40 pages chosen"
    page.locator(".page").nth(20).click()
    assert page.locator("#pages-count").inner_text().startswith("Choose 16 pages at most")
    assert page.locator("#add-pages").is_disabled()
    page.click("#pages-none")
    assert page.locator("#pages-count").inner_text() == "0 of 40 pages chosen"
    page.keyboard.press("Escape")
    assert page.locator(".attachment").count() == 0


def test_a_file_of_one_page_needs_no_choice(page: Any, backend: ScriptedBackend, tmp_path: Path):
    (tmp_path / "one.pdf").write_bytes(color_pdf(["blue"]))
    page.set_input_files("#file", str(tmp_path / "one.pdf"))
    page.wait_for_selector(".attachment")
    ask(page, "What?")
    assert backend.requests[-1].images[0].size == (400, 200)


def test_pages_are_chosen_by_keyboard_alone(page: Any, report: Path):
    page.set_input_files("#file", str(report))
    page.wait_for_selector("#pages[open]")
    page.focus(".page input")
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.keyboard.press("Enter")
    wait_until(page, "() => document.querySelectorAll('.attachment').length === 2")


def test_a_file_that_is_no_pdf_is_told(open_page: Callable[..., Any], scripted_server: Any, tmp_path: Path):
    page = open_page(scripted_server[1].url, expects_errors=True)
    (tmp_path / "broken.pdf").write_bytes(b"no pdf")
    page.set_input_files("#file", str(tmp_path / "broken.pdf"))
    page.wait_for_selector("#composer-error p")
    assert "not a PDF, or damaged" in page.locator("#composer-error").inner_text()
    (tmp_path / "broken.pdf").write_bytes(color_pdf(["blue"]))
    page.set_input_files("#file", str(tmp_path / "broken.pdf"))
    page.wait_for_selector(".attachment")
    assert not page.locator("#composer-error").is_visible()
