"""Blocks of pages, read from answers in both forms, whole, cut off and malformed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vl2.process.page_blocks import parse_blocks, to_markdown

OCR = (
    "<|ref|>title<|/ref|><|det|>[[100, 50, 900, 120]]<|/det|>\n# Report\n\n"
    "<|ref|>text<|/ref|><|det|>[[100, 150, 480, 400], [520, 150, 900, 400]]<|/det|>\nIt goes on\nin two columns.\n\n"
    "<|ref|>image<|/ref|><|det|>[[0, 0, 999, 999]]<|/det|>\n"
    "<|ref|>table<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>\n<table><tr><td>a</td></tr></table>\n"
)
UNLIMITED = (
    "<PAGE><|det|>title [100, 50, 900, 120]<|/det|># Report\n<|det|>text [1, 2, 3, 4]<|/det|>First."
    "<PAGE><|det|>text [5, 6, 7, 8]<|/det|>Second."
)


def test_blocks_have_types_text_and_boxes_in_pixels() -> None:
    title, text, image, table = parse_blocks(OCR, [(1998, 999)])
    assert (title.type, title.text, title.boxes_px) == ("title", "# Report", ((200.0, 50.0, 1800.0, 120.0),))
    assert (text.type, text.text) == ("text", "It goes on\nin two columns.")
    assert text.boxes_999 == ((100, 150, 480, 400), (520, 150, 900, 400))
    assert (image.type, image.text, image.boxes_px) == ("image", "", ((0.0, 0.0, 1998.0, 999.0),))
    assert (table.type, table.text) == ("table", "<table><tr><td>a</td></tr></table>")
    assert to_markdown([title, text, image, table]) == (
        "# Report\n\nIt goes on\nin two columns.\n\n<table><tr><td>a</td></tr></table>"
    )


def test_the_form_of_unlimited_ocr_and_its_pages() -> None:
    blocks = parse_blocks(UNLIMITED, [(999, 999), (1998, 1998)])
    assert [(block.type, block.text, block.page) for block in blocks] == [
        ("title", "# Report", 0),
        ("text", "First.", 0),
        ("text", "Second.", 1),
    ]
    assert [block.boxes_px[0] for block in blocks] == [(100, 50, 900, 120), (1, 2, 3, 4), (10, 12, 14, 16)]


def test_an_answer_that_is_found_words_keeps_them() -> None:
    blocks = parse_blocks(
        "<|ref|>Total 12<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>\n<|ref|>Tax 3<|/ref|><|det|>[[5, 6, 7, 8]]<|/det|>"
    )
    assert [block.type for block in blocks] == ["Total 12", "Tax 3"]
    assert to_markdown(blocks) == "Total 12\n\nTax 3"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("plain text", [("", "plain text", 0)]),
        ("before <|ref|>text<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>after", [("", "before", 0), ("text", "after", 1)]),
        ("<|ref|>text<|/ref|><|det|>[[1, 2, 3", [("", "text[[1, 2, 3", 0)]),  # cut off
        ("<|ref|>text<|/ref|><|det|>[[1, 2, 3, 1000]]<|/det|>a", [("text", "a", 0)]),  # beyond the scale
        ("<|ref|>a<|ref|>b<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>c", [("", "a", 0), ("b", "c", 1)]),
    ],
)
def test_what_is_malformed_is_text(text: str, expected: list[tuple[str, str, int]]) -> None:
    assert [(block.type, block.text, len(block.boxes_999)) for block in parse_blocks(text)] == expected


PIECES = st.sampled_from(["<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<PAGE>", "[[1, 2, 3, 4]]", "text ", "\n", "["])


@given(pieces=st.lists(PIECES, max_size=30))
@settings(deadline=None, derandomize=True)
def test_no_text_fails_and_no_word_is_lost(pieces: list[str]) -> None:
    text = "".join(pieces)
    blocks = parse_blocks(text, [(10, 10)])
    said = " ".join(f"{block.type} {block.text}" for block in blocks)
    assert said.count("text") == text.count("text")
    assert not any(tag in said for tag in ("<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>"))
