"""Web pages: well-formed code, and boxes that are where the browser drew."""

from __future__ import annotations

import io
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from vl2.errors import UserError
from vl2.synth.browser import find_browser, fonts_conf, render
from vl2.synth.web_writer import WebWriter, read_style_sheets

needs_browser = pytest.mark.skipif(find_browser() is None, reason="there is no Chromium here")


class Balance(HTMLParser):
    """Counts what is open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "input", "img", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_tag_is_closed_and_pages_differ(language: str) -> None:
    sheets = ("", "bootstrap.min.css", "bulma.min.css", "simple.css")
    pages = {
        WebWriter(rng=random.Random(seed), language=language, sheet=sheet).page()
        for seed in range(10)
        for sheet in sheets
    }
    assert len(pages) == 40
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


@needs_browser
def test_style_sheets_and_pictures_of_the_page_are_drawn() -> None:
    red = io.BytesIO()
    Image.new("RGB", (40, 30), (255, 0, 0)).save(red, "PNG")
    page = (
        '<!DOCTYPE html><html><head><link rel="stylesheet" href="own.css"></head>'
        '<body><img src="red.png" alt=""><button>Go</button></body></html>'
    )
    files = {"own.css": b"body { margin: 20px; background: #0f0 } img { display: block }", "red.png": red.getvalue()}
    pixels = np.asarray(render(page, 500, files=files).image)
    assert (pixels[:10] == (0, 255, 0)).all()
    assert (pixels[20:50, 20:60] == (255, 0, 0)).all()
    assert (pixels[20:50, 61:70] == (0, 255, 0)).all()


def test_a_page_names_its_pictures_and_its_style_sheet(tmp_path: Path) -> None:
    Image.new("RGB", (900, 600), (9, 9, 9)).save(tmp_path / "a.png")
    (tmp_path / "pico.css").write_text("p { color: red }", encoding="utf-8")
    assert read_style_sheets(str(tmp_path)) == {"pico.css": b"p { color: red }"}
    named = 0
    for seed in range(12):
        writer = WebWriter(rng=random.Random(seed), language="en", sheet="pico.css", photographs=str(tmp_path))
        page = writer.page()
        assert page.count('href="pico.css"') == 1
        assert set(re.findall(r'src="([^"]+)"', page)) == set(writer.files)
        named += len(writer.files)
    assert named > 5
    with pytest.raises(UserError, match="holds no style sheet: `vl2 data fetch style_sheets` gets some"):
        read_style_sheets(str(tmp_path / "none"))
