"""Text layers to blocks: the order of columns, paragraphs, headings, lists, code, tables and figures."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.documents.pages import SENTENCES, layer_pages, texts, write_pdf
from tests.pdf_files import Filled, Mark, Placed, Ruled, paragraph
from vl2.documents.columns import reading_order
from vl2.documents.join import join_pages
from vl2.documents.table import read_table

pytest.importorskip("pypdfium2")
FIRST, SECOND, THIRD = (f"{sentence.strip()}." for sentence in SENTENCES.strip(".").split(". "))


def read(tmp_path: Path, *marks: Mark) -> list[tuple[str, str]]:
    return texts(join_pages(layer_pages(write_pdf(tmp_path / "a.pdf", marks))))


def test_two_columns_are_read_one_after_the_other(tmp_path: Path) -> None:
    left = paragraph(f"{FIRST} {SECOND}", x=72, y=150, width=220)
    right = paragraph(f"{THIRD} {FIRST}", x=310, y=150, width=220)
    both = [mark for pair in zip(left, right, strict=False) for mark in pair]  # in the file they alternate
    rest = [*left[len(right) :], *right[len(left) :]]
    wide = paragraph(SENTENCES, x=72, y=330, width=458)
    title = Placed(text="A title over both columns", x=180, y=110, size=16)
    found = read(tmp_path, title, *both, *rest, *wide)
    assert found == [
        ("heading", "A title over both columns"),
        ("paragraph", f"{FIRST} {SECOND}"),
        ("paragraph", f"{THIRD} {FIRST}"),
        ("paragraph", SENTENCES),
    ]


def test_the_order_of_columns_does_not_depend_on_the_order_in_the_file() -> None:
    boxes = [(x + 20 * word, 12 * line, x + 20 * word + 17, 12 * line + 10) for x in (0, 200, 400) for line in range(9)
             for word in range(8)]  # fmt: skip
    order = list(range(len(boxes)))
    random.Random(1).shuffle(order)
    groups = reading_order([boxes[index] for index in order], 10)
    assert [{boxes[order[index]][0] // 200 for index in group} for group in groups] == [{0}, {1}, {2}]
    assert sorted(index for group in groups for index in group) == list(range(len(boxes)))


def test_paragraphs_end_at_gaps_indents_and_short_lines(tmp_path: Path) -> None:
    by_gap = [*paragraph(FIRST, x=72, y=100, width=300), *paragraph(SECOND, x=72, y=140, width=300)]
    short = paragraph(THIRD, x=72, y=by_gap[-1].y + 12, width=300)
    indented = paragraph(FIRST, x=72, y=short[-1].y + 12, width=280)
    indented[0] = Placed(text=indented[0].text, x=92, y=indented[0].y)
    found = read(tmp_path, *by_gap, *short, *indented)
    assert found == [("paragraph", text) for text in (FIRST, SECOND, THIRD, FIRST)]


def test_words_that_a_line_cut_are_joined(tmp_path: Path) -> None:
    lines = ["the cattle are in the mead-", "ows, well-known and well-", "known since 1902"]
    marks = [Placed(text=text, x=72, y=100 + 12 * number) for number, text in enumerate(lines)]
    ((_, text),) = read(tmp_path, *marks)
    assert text == "the cattle are in the meadows, well-known and well-known since 1902"


def test_headings_lists_and_code(tmp_path: Path) -> None:
    marks = [
        Placed(text="1 Rivers", x=72, y=80, size=14, font="bold"),
        *paragraph(SENTENCES, x=72, y=110, width=400),
        Placed(text="1.1 Fords", x=72, y=180, font="bold"),
        Placed(text="\x95 shallow", x=80, y=205),
        Placed(text="\x95 deep, which", x=80, y=220),
        Placed(text="1. first", x=72, y=245),
        Placed(text="2. second", x=72, y=257),
        Placed(text="def cross(river):", x=72, y=290, font="mono"),
        Placed(text="    return 'wet'", x=72, y=302, font="mono"),
    ]
    blocks = join_pages(layer_pages(write_pdf(tmp_path / "a.pdf", marks)))
    assert [(b.type, b.level, b.marker, b.text) for b in blocks] == [
        ("heading", 1, "", "1 Rivers"),
        ("paragraph", None, "", SENTENCES),
        ("heading", 2, "", "1.1 Fords"),
        ("list_item", 1, "", "shallow"),
        ("list_item", 1, "", "deep, which"),
        ("list_item", 1, "1.", "first"),
        ("list_item", 1, "2.", "second"),
        ("code", None, "", "def cross(river):\n    return 'wet'"),
    ]


def grid(xs: list[int], ys: list[int]) -> list[Mark]:
    return [
        *(Ruled(x0=xs[0], y0=y, x1=xs[-1], y1=y) for y in ys),
        *(Ruled(x0=x, y0=ys[0], x1=x, y1=ys[-1]) for x in xs),
    ]


def test_a_table_in_lines_keeps_its_cells(tmp_path: Path) -> None:
    lines = grid([72, 200, 300], [100, 120, 150, 170])
    cells = [
        Placed(text="Stream", x=76, y=114, font="bold"), Placed(text="Length", x=204, y=114, font="bold"),
        Placed(text="Upper", x=76, y=132), Placed(text="Ouse", x=76, y=144), Placed(text="12 km", x=204, y=138),
        Placed(text="Lea", x=76, y=164), Placed(text="7 km", x=204, y=164),
    ]  # fmt: skip
    ((kind, html),) = read(tmp_path, *lines, *cells)
    table = read_table(html)
    assert kind == "table"
    assert table is not None
    assert table.texts() == (("Stream", "Length"), ("Upper Ouse", "12 km"), ("Lea", "7 km"))
    assert [cell.is_header for cell in table.rows[0]] == [True, True]
    assert not table.rows[1][0].is_header


def test_cells_without_a_line_between_are_one(tmp_path: Path) -> None:
    marks = [m for m in grid([72, 172, 272], [100, 120, 140]) if not (isinstance(m, Ruled) and m.x0 == m.x1 == 172)]
    marks += [Ruled(x0=172, y0=120, x1=172, y1=140), Placed(text="over both", x=80, y=114),
              Placed(text="a", x=80, y=134), Placed(text="b", x=180, y=134)]  # fmt: skip
    ((_, html),) = read(tmp_path, *marks)
    table = read_table(html)
    assert table is not None
    assert [(cell.text, cell.num_columns) for row in table.rows for cell in row] == [
        ("over both", 2),
        ("a", 1),
        ("b", 1),
    ]


def test_rows_between_two_lines_are_split_where_no_text_is_broken(tmp_path: Path) -> None:
    marks: list[Mark] = grid([72, 250, 400], [100, 160])
    rows = [("byte", "int"), ("long", "int32"), ("float, double", "float"), ("text", "string")]
    for number, (left, right) in enumerate(rows):
        marks += [Placed(text=left, x=76, y=112 + 13 * number), Placed(text=right, x=254, y=112 + 13 * number)]
    ((_, html),) = read(tmp_path, *marks)
    table = read_table(html)
    assert table is not None
    assert table.texts() == tuple(rows)


def test_tables_of_rules_and_of_aligned_text(tmp_path: Path) -> None:
    rows = [("Year", "Boats", "Days"), ("1901", "12", "31"), ("1902", "9", "28"), ("1903", "11", "30")]
    cells = [Placed(text=text, x=72 + 120 * column, y=112 + 16 * number)
             for number, row in enumerate(rows) for column, text in enumerate(row)]  # fmt: skip
    rules = [Ruled(x0=70, y0=y, x1=360, y1=y) for y in (98, 118, 168)]
    for marks in ([*cells, *rules], cells):
        ((kind, html),) = read(tmp_path, *marks)
        table = read_table(html)
        assert kind == "table"
        assert table is not None
        assert table.texts() == tuple(rows)


def test_a_frame_around_text_is_no_table(tmp_path: Path) -> None:
    marks = [*grid([60, 480], [80, 150]), *paragraph(SENTENCES, x=72, y=100, width=390)]
    assert read(tmp_path, *marks) == [("paragraph", SENTENCES)]


def test_a_list_is_no_table(tmp_path: Path) -> None:
    marks = [
        Placed(text=text, x=x, y=100 + 14 * number) for number in range(4) for x, text in ((72, "-"), (110, "item"))
    ]
    assert read(tmp_path, *marks) == [("list_item", "item")] * 4


def test_a_figure_stands_where_it_is_with_its_caption(tmp_path: Path) -> None:
    marks = [
        *paragraph(FIRST, x=72, y=100, width=400),
        Filled(x0=100, y0=150, x1=300, y1=300),
        Placed(text="Figure 3: The ferry", x=100, y=315),
        *paragraph(SECOND, x=72, y=350, width=400),
    ]
    (page,) = layer_pages(write_pdf(tmp_path / "a.pdf", marks))
    assert texts(page.blocks) == [
        ("paragraph", FIRST),
        ("figure", ""),
        ("caption", "Figure 3: The ferry"),
        ("paragraph", SECOND),
    ]
    assert page.blocks[1].places[0].box_px == (200, 300, 600, 600)
    assert all(block.confidence is None for block in page.blocks)


def test_entries_of_a_table_of_contents_stay_apart(tmp_path: Path) -> None:
    marks = [Placed(text=f"{number} Title {'. ' * 40}{number}", x=72, y=100 + 12 * number) for number in range(1, 4)]
    assert read(tmp_path, *marks) == [("list_item", f"{number} Title ... {number}") for number in range(1, 4)]


def test_sideways_text_is_read_after_the_rest(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "a.pdf", paragraph(SENTENCES, x=72, y=100, width=400), rotate=90)
    (page,) = layer_pages(path)
    assert texts(page.blocks) == [("paragraph", SENTENCES)]
    box = page.blocks[0].places[0].box_px
    assert box is not None
    assert box[3] - box[1] > box[2] - box[0]  # as shown, the lines run down
