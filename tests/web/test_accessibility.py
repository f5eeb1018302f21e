"""An accessibility checker finds nothing in any state of the page, light or dark, in a window or on a phone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pdf_files import color_pdf
from tests.web.scripted_backend import ScriptedBackend
from tests.web.talk import add, ask, choose, fill_fields, open_chats, send, wait_until
from vl2.errors import UserError

PHONE = {"viewport": {"width": 390, "height": 760}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
WINDOWS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"color_scheme": "dark", **PHONE},
}
VALUES = '{"total": 4.2, "paid": null}'
GROUNDED = "A <|ref|>field<|/ref|><|det|>[[0, 500, 999, 999]]<|/det|>.\n\n\\[x^2\\]\n\n| a | b |\n|---|---|\n| 1 | 2 |"


def states(page: Any, backend: ScriptedBackend, picture: Path, report: Path) -> Iterator[str]:
    """Bring the page into one state after the other, and yield the name of each."""
    send(page)
    yield "an error in the question"
    page.set_input_files("#file", str(report))
    page.wait_for_selector("#pages[open]")
    page.locator(".page").first.click()
    yield "the pages of a file"
    page.click("#cancel-pages")
    backend.text = GROUNDED
    add(page, picture)
    ask(page, "What?")
    wait_until(page, "() => document.querySelectorAll('.katex-html').length === 1")
    page.click(".again")
    wait_until(page, "() => document.querySelector('.answer[aria-busy=false] .variants')")
    page.get_by_role("button", name="Edit").click()
    yield "a question that is edited, and variants"
    page.keyboard.press("Escape")
    page.click(".enlarge")
    yield "a picture made larger"
    page.click("#zoom .close-dialog")
    page.click("#new-chat")
    add(page, picture)
    choose(page, "extract")
    fill_fields(page, ("total", "number"), ("paid", "flag"))
    yield "the fields of an extraction"
    backend.text, backend.later = VALUES, "<|ref|>it<|/ref|><|det|>[[100, 200, 500, 300]]<|/det|>"
    backend.requests.clear()
    page.click("#send")
    wait_until(page, "() => document.querySelector('.answer[aria-busy=false] .values')")
    yield "extracted values"
    backend.error = UserError("there is no room for it")
    ask(page, "More?")
    open_chats(page)
    page.locator(".chat-more").last.click()
    yield "an error in place of an answer, and the list of chats"
    page.locator(".chat-actions .danger").click()
    yield "the question whether a chat is deleted"


@pytest.mark.parametrize("window", WINDOWS)
def test_an_accessibility_checker_finds_nothing_in_any_state(
    open_page: Callable[..., Any], scripted_server: Any, backend: Any, picture: Path, tmp_path: Path, window: str
):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="the `browser` extra is not installed"
    ).Axe()
    (tmp_path / "report.pdf").write_bytes(color_pdf(["red", "lime", "blue"]))
    page = open_page(scripted_server[1].url, expects_errors=True, reduced_motion="reduce", **WINDOWS[window])
    for state in states(page, backend, picture, tmp_path / "report.pdf"):
        found = axe.run(page).response["violations"]
        assert [(v["id"], [n["target"] for n in v["nodes"]]) for v in found] == [], state
        assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0, state
