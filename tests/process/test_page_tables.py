"""HTML tables of pages as Markdown: what Markdown can say, and what stays HTML."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vl2.process.page_tables import table_to_markdown, tables_to_markdown

PLAIN = "<table><tr><td>a</td><td>b</td></tr><tr><td>c</td><td>d</td></tr></table>"
PLAIN_MARKDOWN = "| a | b |\n| --- | --- |\n| c | d |"


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        (PLAIN, PLAIN_MARKDOWN),
        (
            "<TABLE border='1'><thead><tr><th>a</th><th>b</th></tr></thead>\n<tbody><tr><td>c<td>d</tbody></TABLE>",
            PLAIN_MARKDOWN,
        ),
        ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>", "| a | b |\n| --- | --- |\n| c |  |"),
        ("<table><tr><td>1 &lt; 2 | x</td></tr></table>", "| 1 &lt; 2 \\| x |\n| --- |"),
        ("<table><tr><td>a\n  b<br/>c</td></tr></table>", "| a b<br>c |\n| --- |"),
        ("<table><tr><td>3.1* and 2*</td></tr></table>", "| 3.1\\* and 2\\* |\n| --- |"),
        ("<table><tr><td>\\(a^* b^*\\)</td></tr></table>", "| \\(a^* b^*\\) |\n| --- |"),
        ("<table><tr><td>m<sup>2</sup></td></tr></table>", "| m<sup>2</sup> |\n| --- |"),
        ('<table><tr><td colspan="1">a</td></tr></table>', "| a |\n| --- |"),
    ],
)
def test_a_plain_table_becomes_markdown(html: str, expected: str) -> None:
    assert table_to_markdown(html) == expected


@pytest.mark.parametrize(
    "html",
    [
        '<table><tr><td colspan="2">a</td></tr><tr><td>b</td><td>c</td></tr></table>',
        "<table><tr><td rowspan=2>a</td><td>b</td></tr><tr><td>c</td></tr></table>",
        "<table><tr><td rowspan=x>a</td></tr></table>",
        "<table><tr><td><table><tr><td>a</td></tr></table></td></tr></table>",
        "<table><tr><td><ul><li>a</li></ul></td></tr></table>",
        "<table><caption>Sales</caption><tr><td>a</td></tr></table>",
        "<table>lost<tr><td>a</td></tr></table>",
        "<table></table>",
    ],
)
def test_what_markdown_cannot_say_stays_html(html: str) -> None:
    assert table_to_markdown(html) is None
    assert tables_to_markdown(f"before {html} after") == f"before {html} after"


def test_tables_in_a_text_are_set_apart() -> None:
    merged = '<table><tr><td colspan="2">a</td></tr></table>'
    text = f"Above\n{PLAIN}\nbetween{PLAIN}{merged}"
    assert tables_to_markdown(text) == f"Above\n\n{PLAIN_MARKDOWN}\n\nbetween\n\n{PLAIN_MARKDOWN}\n\n{merged}"
    assert tables_to_markdown(PLAIN) == PLAIN_MARKDOWN
    assert tables_to_markdown(f"  x {PLAIN[:-8]}") == f"  x {PLAIN[:-8]}"  # cut off


PIECES = st.sampled_from(["<table>", "</table>", "<tr>", "<td>", "</td>", "word", "|", "<", "&amp;", "<td colspan=2>"])


@given(pieces=st.lists(PIECES, max_size=30))
@settings(deadline=None, derandomize=True)
def test_no_text_fails_and_no_word_is_lost(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert tables_to_markdown(text).count("word") == text.count("word")
