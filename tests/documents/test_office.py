"""DOCX, PPTX and HTML files as blocks, and archives that would unpack to too much."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tests.documents.office_files import write_docx, write_pptx
from tests.documents.pages import texts
from vl2.documents import office, read
from vl2.documents.html_blocks import html_blocks
from vl2.documents.office import read_docx, read_pptx
from vl2.documents.sources import decode_html
from vl2.documents.table import read_table
from vl2.errors import UserError

for name in ("bs4", "markdownify", "mammoth", "pptx"):
    pytest.importorskip(name)


def test_a_docx_file_has_headings_tables_and_figures(tmp_path: Path) -> None:
    content = read_docx(write_docx(tmp_path / "a.docx"))
    (page,) = content.pages
    assert texts(page.blocks) == [
        ("heading", "Rivers & fords"),
        ("paragraph", "The river **rises** 1 \\* 2."),
        ("table", '<table>\n<tr><td colspan="2">Boats</td></tr>\n<tr><td>1901</td><td>12</td></tr>\n</table>'),
        ("figure", "A ferry"),
    ]
    assert page.blocks[0].level == 1
    assert list(content.figures) == [(0, 3)]


def test_slides_are_pages_with_boxes(tmp_path: Path) -> None:
    content = read_pptx(write_pptx(tmp_path / "a.pptx"), dpi=72)
    first, second = content.pages
    assert first.size_px == (720, 540)
    assert [(b.type, b.text, b.level) for b in first.blocks][:3] == [
        ("heading", "Rivers", 1), ("list_item", "first", 1), ("list_item", "below it", 2)]  # fmt: skip
    table, figure = first.blocks[3:]
    read_back = read_table(table.text)
    assert read_back is not None
    assert read_back.texts() == (("Year", "Boats"), ("1901", "12"))
    assert (figure.type, figure.places[0].box_px) == ("figure", (432, 432, 648, 576))
    assert [(b.type, b.text, b.label) for b in second.blocks] == [
        ("heading", "Fords", ""), ("paragraph", "Say this slowly.", "notes")]  # fmt: skip


def test_figures_of_office_files_are_written(tmp_path: Path) -> None:
    (document,) = read(write_docx(tmp_path / "a.docx"), figures=tmp_path / "out")
    assert document.blocks[-1].figures[0].endswith("out/a-1.png")
    assert (tmp_path / "out" / "a-1.png").is_file()


def test_a_file_that_is_no_office_file_is_an_error_of_its_document(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_bytes(b"no archive")
    with zipfile.ZipFile(tmp_path / "b.pptx", "w") as archive:
        archive.writestr("a.txt", "x")
    bad, empty = read([tmp_path / "a.docx", tmp_path / "b.pptx"])
    assert "it is not an office file, or damaged" in bad.errors[0][1]
    assert "cannot read" in empty.errors[0][1]


def test_what_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(office, "MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(UserError, match="unpacks to 6 parts of"):
        read_docx(write_docx(tmp_path / "a.docx"))


PAGE = """<!DOCTYPE html><html><head><title>T</title><style>p {}</style></head><body>
<nav><a href="/">Home</a></nav>
<main><h1>Rivers <em>north</em><a href="#rivers">¶</a></h1><p>It <a href="b.html">rises</a><br>in 2 * 3 hills.</p>
<ul><li>one<ul><li>inner</li></ul></li><li><p>two</p></li></ul><ol><li>first</li><li>second</li></ol>
<pre>x  = 1
y</pre><figure><img src="ferry.png" alt="Ferry"><figcaption>Figure 1</figcaption></figure>
<table><caption>Boats</caption><tr><th>Year</th><th rowspan=2>n</th></tr><tr><td>1901</td></tr></table>
<p hidden>secret</p><script>alert(1)</script><!-- remark -->loose <b>text</b></main>
<footer>Imprint</footer></body></html>"""


def test_a_web_page_has_the_blocks_of_its_main_part() -> None:
    blocks = html_blocks(PAGE, "web page", base="https://example.org/a/")
    assert [(b.type, b.text, b.level, b.marker) for b in blocks] == [
        ("heading", "Rivers *north*", 1, ""),
        ("paragraph", "It [rises](https://example.org/a/b.html) in 2 \\* 3 hills.", None, ""),
        ("list_item", "one", 1, ""),
        ("list_item", "inner", 2, ""),
        ("list_item", "two", 1, ""),
        ("list_item", "first", 1, "1."),
        ("list_item", "second", 1, "2."),
        ("code", "x  = 1\ny", None, ""),
        ("figure", "Ferry", None, ""),
        ("caption", "Figure 1", None, ""),
        ("caption", "Boats", None, ""),
        ("table", '<table>\n<tr><th>Year</th><th rowspan="2">n</th></tr>\n<tr><td>1901</td></tr>\n</table>', None, ""),
        ("paragraph", "loose **text**", None, ""),
    ]
    assert blocks[8].figures == ("https://example.org/a/ferry.png",)


def test_a_page_without_a_main_part_marks_its_furniture() -> None:
    blocks = html_blocks("<body><nav>Home</nav><p>Text</p><footer><p>Imprint</p></footer></body>", "web page")
    assert texts(blocks) == [("page_header", "Home"), ("paragraph", "Text"), ("page_footer", "Imprint")]


def test_roles_say_what_elements_without_names_are() -> None:
    page = '<div role="navigation">Home</div><div role="main"><p>Text</p></div>'
    assert texts(html_blocks(page, "web page")) == [("paragraph", "Text")]
    page = '<div role="navigation"><p>Home</p></div><p>Text</p>'
    assert texts(html_blocks(page, "web page")) == [("page_header", "Home"), ("paragraph", "Text")]


def test_hostile_pages_are_refused_and_encodings_kept() -> None:
    with pytest.raises(UserError, match="more than 200 elements inside each other"):
        html_blocks("<div>" * 100_000 + "x", "web page")
    text = '<html><head><meta charset="gb2312"></head><body><p>河流</p></body></html>'
    assert "河流" in decode_html(text.encode("gb2312"))
