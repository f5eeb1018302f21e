"""Pages to one document: furniture is marked, and what a page or a column cut in two is joined."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from vl2.documents.block import BlockPlace, DocumentBlock, DocumentPage
from vl2.documents.join import join_pages
from vl2.documents.table import join_tables, plain_table, read_table

SIZE = (1000, 1400)


def block(text: str, y: float = 700, *, kind: str = "paragraph", x: float = 100, **fields: object) -> DocumentBlock:
    place = BlockPlace(page=1, box_px=(x, y - 10, x + 380, y + 10))
    made = {"source": "text layer", "font_pt": 10.0, **fields}
    return DocumentBlock(type=kind, text=text, places=(place,), **made)  # type: ignore[arg-type]


def document(*pages: Sequence[DocumentBlock]) -> list[DocumentBlock]:
    made = []
    for number, blocks in enumerate(pages, start=1):
        placed = tuple(
            DocumentBlock(**{**vars(each), "places": tuple(
                BlockPlace(page=number, box_px=place.box_px) for place in each.places)})
            for each in blocks
        )  # fmt: skip
        made.append(DocumentPage(number=number, blocks=placed, source="text layer", size_px=SIZE))
    return join_pages(made)


def kinds(blocks: Sequence[DocumentBlock]) -> list[tuple[str, str]]:
    return [(each.type, each.text) for each in blocks]


BODY = [block(f"A sentence about topic {topic} which stands alone.") for topic in ("a", "b", "c", "d")]


def test_what_repeats_at_one_place_is_furniture() -> None:
    pages = [[block("Annual report 2025", 60), BODY[i], block(f"Page {i + 1} of 4", 1350)] for i in range(4)]
    found = document(*pages)
    assert [each.text for each in found if not each.is_furniture] == [each.text for each in BODY]
    assert {each.type for each in found if each.is_furniture} == {"page_header", "page_number"}


def test_running_titles_with_page_numbers_are_furniture_though_their_words_change() -> None:
    titles = ["1 Rivers 1", "2 Fords 2", "3 Ferries 3", "4 Bridges 4"]
    pages = [[block(title, 60), BODY[i]] for i, title in enumerate(titles)]
    assert {each.type for each in document(*pages) if each.text in titles} == {"page_header"}


def test_text_at_an_edge_that_does_not_repeat_stays() -> None:
    found = document(
        [block("A title of the first page", 60), BODY[0]], [block("Another text at the edge.", 60), BODY[1]]
    )
    assert not any(each.is_furniture for each in found)


def test_the_same_words_in_the_middle_of_pages_stay() -> None:
    found = document(*[[block("See the next page.", 500), BODY[i]] for i in range(4)])
    assert not any(each.is_furniture for each in found)


def test_what_the_model_calls_a_footer_is_one() -> None:
    found = document([BODY[0], block("Confidential", 700, kind="page_footer", source="model")])
    assert kinds(found)[1] == ("page_footer", "Confidential")


@pytest.mark.parametrize(
    ("before", "after", "joined"),
    [
        ("It rises in the northern mead-", "ows and turns east.", "It rises in the northern meadows and turns east."),
        ("It rises in the north and", "turns east.", "It rises in the north and turns east."),
        ("Streams, meadows,", "Farms and woods.", "Streams, meadows, Farms and woods."),
        ("河流从北部的山", "区流向东方。", "河流从北部的山区流向东方。"),
        ("It ends here.", "it starts here", None),
        ("It ends without a point", "Another one begins", None),
        ("第一段。", "第二段。", None),
    ],
)
def test_a_paragraph_that_a_page_cut_is_joined(before: str, after: str, joined: str | None) -> None:
    header = block("Header", 60)
    found = document([block(before, 1200), block("12", 1350)], [header, block(after, 200)], [header])
    body = [each for each in found if not each.is_furniture]
    if joined is None:
        assert kinds(body) == [("paragraph", before), ("paragraph", after)]
    else:
        assert kinds(body) == [("paragraph", joined)]
        assert [place.page for place in body[0].places] == [1, 2]


def test_a_paragraph_goes_on_in_the_next_column_but_not_below() -> None:
    assert len(document([block("it goes on", 1200), block("in the next column", 200, x=520)])) == 1
    assert len(document([block("it does not", 400), block("go on below", 600)])) == 2


def test_a_footnote_or_figure_between_does_not_part_a_paragraph() -> None:
    note = block("1 See there.", 1250, font_pt=7.0)
    many = [block("A paragraph of the body in its usual size.", 300)] * 3
    found = document([*many, block("the text goes", 1200), note], [block("on here.", 200)])
    assert ("paragraph", "the text goes on here.") in kinds(found)
    assert ("footnote", "1 See there.") in kinds(found)


def table(*rows: Sequence[str], has_header: bool = False) -> DocumentBlock:
    return block(plain_table(rows, has_header=has_header).to_html(), kind="table")


def test_a_table_that_goes_on_is_one_and_its_repeated_header_is_dropped() -> None:
    head = ("Year", "Boats")
    found = document(
        [table(head, ("1901", "12"), has_header=True)],
        [table(head, ("1902", "9"), has_header=True)],
        [table(("1903", "11"))],
    )
    (whole,) = found
    read = read_table(whole.text)
    assert read is not None
    assert read.texts() == (head, ("1901", "12"), ("1902", "9"), ("1903", "11"))
    assert [place.page for place in whole.places] == [1, 2, 3]


def test_tables_of_other_widths_or_with_other_headers_stay_apart() -> None:
    assert len(document([table(("a", "b"))], [table(("a", "b", "c"))])) == 2
    assert len(document([table(("a", "b"))], [table(("x", "y"), ("1", "2"), has_header=True)])) == 2
    assert len(document([table(("a", "b"))], [block("Text between."), table(("c", "d"))])) == 3


def test_spans_count_for_the_width_of_a_table() -> None:
    rows = ('<td colspan="2">a</td>', '<td rowspan="2">b</td><td>c</td>', "<td>d</td>")
    first = read_table(f"<table><tr>{'</tr><tr>'.join(rows)}</tr></table>")
    assert first is not None
    assert first.num_columns == 2
    assert [[column for column, _ in row] for row in first.placed()] == [[0], [0, 1], [1]]
    assert read_table(first.to_html()) == first
    assert join_tables(first, plain_table([("e", "f")])) is not None


@pytest.mark.parametrize("html", ["", "<table>", "<table></table>", "text", "<td>a</td>"])
def test_what_is_no_table_is_none(html: str) -> None:
    assert read_table(html) is None


def test_headings_have_levels_by_their_size() -> None:
    found = document([
        block("Rivers", 300, font_pt=18.0), block("A body text of the usual size that is long enough.", 400),
        block("Fords", 500, font_pt=14.0), block("More of the body text, in the usual size.", 600),
        block("Ferries", 700, is_bold=True), block("And more of it in the usual size.", 800),
    ])  # fmt: skip
    headings = [(each.level, each.text) for each in found if each.type == "heading"]
    assert headings == [(1, "Rivers"), (2, "Fords"), (3, "Ferries")]
