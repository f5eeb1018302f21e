"""Web pages: well-formed code, and boxes that are where the browser drew."""

from __future__ import annotations

import random
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from vl2.errors import UserError
from vl2.synth.browser import find_browser, fonts_conf, render
from vl2.synth.web_page import write_page

needs_browser = pytest.mark.skipif(find_browser() is None, reason="there is no Chromium here")


class Balance(HTMLParser):
    """Counts what is open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_tag_is_closed_and_pages_differ(language: str) -> None:
    pages = {write_page(random.Random(seed), language) for seed in range(30)}
    assert len(pages) == 30
    for page in pages:
        reader = Balance()
        reader.feed(page)
        assert reader.open == []


@needs_browser
def test_the_box_of_a_button_is_where_it_was_drawn() -> None:
    style = "body { margin: 0 } button { margin: 37px 0 0 51px; background: #f00; color: #f00; border: 0 }"
    page = f"<!DOCTYPE html><html><head><style>{style}</style></head><body><button>Save</button></body></html>"
    drawn = render(page, 500)
    assert [(e.tag, e.label) for e in drawn.elements] == [("button", "Save")]
    rows, columns = (np.asarray(drawn.image)[:, :, 1] < 128).nonzero()
    inked = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert np.abs(np.subtract(drawn.elements[0].box, inked)).max() <= 1
    assert drawn.image.size == (500, round(drawn.elements[0].box[3]))


def test_an_error_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="at least 500 px, got 300"):
        render("<html></html>", 300)
    with pytest.raises(UserError, match="needs Chromium"):
        render("<html></html>", 500)


def test_more_folders_of_fonts_come_beside_the_systems() -> None:
    tree = ElementTree.fromstring(fonts_conf(["/fonts/a & b", "/more"]))
    assert [element.text for element in tree.findall("dir")] == ["/fonts/a & b", "/more"]
    assert tree.findtext("include") == "/etc/fonts/fonts.conf"
