"""Documents as Markdown and HTML: plain text is shown as it is, and nothing in it becomes markup."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from vl2.documents.block import BlockPlace, DocumentBlock, DocumentPage, ReadDocument
from vl2.documents.docling import to_docling
from vl2.documents.write import escape_markdown, to_html, to_markdown

PLACE = BlockPlace(page=1, box_px=(10, 20, 300, 40))


def block(kind: str, text: str, **fields: object) -> DocumentBlock:
    return DocumentBlock(**{"type": kind, "text": text, "places": (PLACE,), "source": "text layer", **fields})  # type: ignore[arg-type]


def document(*blocks: DocumentBlock) -> ReadDocument:
    page = DocumentPage(number=1, blocks=blocks, source="text layer", size_px=(600, 800))
    return ReadDocument(name="a & b.pdf", pages=(page,), blocks=blocks)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab1 *_`#<>[]()!&;~-+.=\\|:/\"'", min_size=1, max_size=30))
def test_escaped_text_is_shown_as_it_is(text: str) -> None:
    plain = " ".join(text.split())
    if not plain:
        return
    rendered = MarkdownIt("commonmark").render(escape_markdown(plain))
    shown = re.fullmatch(r"<p>(.*)</p>\n", rendered)
    assert shown is not None, rendered
    assert shown[1] == plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def test_markdown_of_each_type() -> None:
    shown = to_markdown([
        block("heading", "Rivers", level=2), block("paragraph", "a * b"), block("list_item", "one", level=1),
        block("list_item", "two", level=2, marker="2."), block("code", "x = `1`"),
        block("formula", "a^2", source="model"), block("paragraph", "*as it is*", source="model"),
        block("figure", "Ferry", figures=("figures/a-1.png",)), block("figure", "words in it"), block("figure", ""),
    ])  # fmt: skip
    assert shown == (
        "## Rivers\n\na \\* b\n\n- one\n  2. two\n\n```\nx = `1`\n```\n\n$$\na^2\n$$\n\n*as it is*\n\n"
        "![Ferry](figures/a-1.png)\n\nwords in it"
    )


def test_html_has_boxes_and_no_foreign_markup() -> None:
    shown = to_html(
        document(),
        [block("paragraph", "<script>x</script>"), block("paragraph", "**bold** <img src=x onerror=y>", source="model"),
         block("table", '<table onclick="x"><tr><td><script>y</script>1</td><td>2</td></tr></table>', source="model"),
         block("list_item", "one")],
    )  # fmt: skip
    assert "<title>a &amp; b.pdf</title>" in shown
    assert 'data-page="1" data-box="10.0 20.0 300.0 40.0"' in shown
    assert "<strong>bold</strong>" in shown
    assert "<ul>\n<li" in shown
    assert "<script" not in shown
    assert "<img" not in shown
    assert "onclick" not in shown


@pytest.mark.parametrize("tables", ["html", "markdown"])
def test_tables_are_written_as_wanted(tables: str) -> None:
    html = "<table>\n<tr><th>a</th><th>b</th></tr>\n<tr><td>1</td><td>2</td></tr>\n</table>"
    shown = to_markdown([block("table", html)], tables=tables)  # type: ignore[arg-type]
    assert shown == (html if tables == "html" else "| a | b |\n| --- | --- |\n| 1 | 2 |")


def test_docling_loads_what_is_written() -> None:
    types = pytest.importorskip("docling_core.types.doc")
    table = '<table><tr><th colspan="2">a</th></tr><tr><td>1</td><td>2</td></tr></table>'
    blocks = (
        block("heading", "Rivers", level=2), block("paragraph", "Text."), block("list_item", "one", marker="1."),
        block("table", table), block("figure", "Ferry"), block("formula", "a^2"), block("code", "x"),
        block("page_footer", "12"),
    )  # fmt: skip
    loaded = types.DoclingDocument.model_validate_json(to_docling(document(*blocks)).model_dump_json())
    assert [item.text for item in loaded.texts] == ["Rivers", "Text.", "one", "Ferry", "a^2", "x", "12"]
    assert loaded.texts[0].level == 2
    assert loaded.texts[-1].content_layer.value == "furniture"
    (read,) = loaded.tables
    assert [(cell.text, cell.col_span, cell.start_row_offset_idx) for cell in read.data.table_cells] == [
        ("a", 2, 0), ("1", 1, 1), ("2", 1, 1)]  # fmt: skip
    (proof,) = loaded.texts[1].prov
    assert (proof.page_no, proof.bbox.as_tuple(), proof.bbox.coord_origin.value) == (1, (10, 20, 300, 40), "TOPLEFT")
    assert loaded.pages[1].size.width == 600
    assert "Rivers" in loaded.export_to_markdown()
