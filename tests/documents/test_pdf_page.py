"""Words, rules and pictures of PDF pages, and whether their text layer is good."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.documents.pages import SENTENCES, write_pdf
from tests.pdf_files import Filled, Placed, Ruled, paragraph, text_width
from vl2.documents.layer_quality import why_refused
from vl2.documents.pdf_page import LayerCounts, PdfContent, Word, read_pdf_page
from vl2.errors import UserError

pytest.importorskip("pypdfium2")


def test_words_have_boxes_sizes_and_fonts(tmp_path: Path) -> None:
    path = write_pdf(
        tmp_path / "a.pdf",
        [Placed(text="Two words", x=72, y=100, size=12), Placed(text="bold", x=72, y=130, font="bold"),
         Placed(text="code", x=72, y=160, font="mono")],
    )  # fmt: skip
    content = read_pdf_page(path, 1)
    two, words, bold, code = content.words
    assert content.size_pt == (612, 792)
    assert [word.text for word in content.words] == ["Two", "words", "bold", "code"]
    assert two.box[0] == pytest.approx(72, abs=0.5)
    assert two.box[2] == pytest.approx(72 + text_width("Two", 12), abs=0.5)
    assert two.box[1] < 100 < two.box[3]  # the baseline is between top and bottom
    assert (two.size_pt, words.is_bold, bold.is_bold, code.is_mono, bold.is_mono) == (12, False, True, True, False)


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
def test_boxes_are_those_of_the_page_as_it_is_shown(tmp_path: Path, rotate: int) -> None:
    path = write_pdf(tmp_path / "a.pdf", [Placed(text="corner", x=10, y=20)], rotate=rotate)
    content = read_pdf_page(path, 1)
    (word,) = content.words
    width, height = content.size_pt
    assert (width, height) == ((612, 792) if rotate in (0, 180) else (792, 612))
    x, y = (word.box[0] + word.box[2]) / 2, (word.box[1] + word.box[3]) / 2
    # The word is at the upper left of the sheet, which turns clockwise.
    expected = {0: (False, False), 90: (True, False), 180: (True, True), 270: (False, True)}[rotate]
    assert (x > width / 2, y > height / 2) == expected
    assert word.turn == rotate


def test_lines_and_pictures_are_found(tmp_path: Path) -> None:
    marks = [Ruled(x0=50, y0=100, x1=300, y1=100), Filled(x0=100, y0=200, x1=300, y1=400), Placed(text="a", x=9, y=9)]
    content = read_pdf_page(write_pdf(tmp_path / "a.pdf", marks), 1)
    assert content.rules == ((50, 100, 300, 100),)
    assert [picture.box for picture in content.pictures] == [(100, 200, 300, 400)]


def test_a_page_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "a.pdf", [])
    with pytest.raises(UserError, match="cannot read page 2 of"):
        read_pdf_page(path, 2)


def test_a_layer_with_text_is_good_and_an_empty_page_too(tmp_path: Path) -> None:
    good = write_pdf(tmp_path / "a.pdf", paragraph(SENTENCES, x=72, y=100, width=400))
    empty = write_pdf(tmp_path / "b.pdf", [])
    assert why_refused(read_pdf_page(good, 1)) is None
    assert why_refused(read_pdf_page(empty, 1)) is None


def test_scans_and_hidden_layers_are_refused(tmp_path: Path) -> None:
    scan = Filled(x0=0, y0=0, x1=612, y1=792)
    hidden = [Placed(text=SENTENCES[:60], x=50, y=90, is_hidden=True)]
    stamp = [Placed(text="Received 12 March", x=50, y=20)]
    for number, (marks, reason) in enumerate([
        ([scan], "it has no text"),
        ([scan, *hidden], "its text is invisible"),
        ([scan, *stamp], "a picture covers the page, and there are 15 characters"),
    ]):  # fmt: skip
        refused = why_refused(read_pdf_page(write_pdf(tmp_path / f"{number}.pdf", marks), 1))
        assert refused is not None
        assert reason in refused


def test_text_over_a_background_is_good(tmp_path: Path) -> None:
    marks = [Filled(x0=0, y0=0, x1=612, y1=792), *paragraph(SENTENCES, x=72, y=100, width=400)]
    assert why_refused(read_pdf_page(write_pdf(tmp_path / "a.pdf", marks), 1)) is None


def words(*texts: str) -> tuple[Word, ...]:
    return tuple(Word(text=text, box=(0, 0, 1, 1), size_pt=10) for text in texts)


@pytest.mark.parametrize(("num_unknown", "is_good"), [(0, True), (5, True), (6, False), (100, False)])
def test_characters_without_a_meaning_make_a_layer_bad(num_unknown: int, is_good: bool) -> None:
    content = PdfContent(size_pt=(612, 792), counts=LayerCounts(num_chars=100, num_unknown=num_unknown))
    assert (why_refused(content) is None) == is_good


def test_letters_that_are_mapped_wrongly_make_a_layer_bad() -> None:
    plain = SENTENCES.split()
    shifted = ["".join(chr(ord(letter) + 1) if letter.isalpha() else letter for letter in word) for word in plain]
    counts = LayerCounts(num_chars=200)
    assert why_refused(PdfContent(size_pt=(612, 792), words=words(*plain), counts=counts)) is None
    refused = why_refused(PdfContent(size_pt=(612, 792), words=words(*shifted), counts=counts))
    assert refused is not None
    assert "have no vowel" in refused
    few = PdfContent(size_pt=(612, 792), words=words("HTTP", "XHTML", "Straße", "ÉTÉ"), counts=counts)
    assert why_refused(few) is None
