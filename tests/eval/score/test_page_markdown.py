"""A perfect reading of a page scores 1, and each kind of damage lowers its own score."""

from __future__ import annotations

import pytest

from vl2.eval.score.page_markdown import cut_page, score_boxes, score_page

for _library in ("bs4", "lxml", "rapidfuzz", "scipy"):
    pytest.importorskip(_library)

TABLE = "<table><tr><td>City</td><td>Visitors</td></tr><tr><td>Oslo</td><td>12</td></tr></table>"
LEFT = ["# A title", "The boat crossed the bay before sunrise.", "Iron expands when it is heated."]
RIGHT = ["## A heading", "- milk\n- brown bread", "Turn left at the old mill.", TABLE]
GOLD = cut_page("\n\n".join([*LEFT, *RIGHT]))


def scores(*blocks: str, joint: str = "\n\n") -> dict[str, float]:
    return score_page(GOLD, cut_page(joint.join(blocks)), ["Page 7"])


def test_the_gold_page_scores_one() -> None:
    assert scores(*LEFT, *RIGHT) == {"text": 1.0, "order": 1.0, "tables": 1.0}


def test_the_form_of_the_markdown_does_not_matter() -> None:
    table = "| City | Visitors |\n|---|---:|\n| Oslo | 12 |"
    items = ["* milk", "* brown  bread"]
    wrapped = LEFT[1].replace(" bay", "\nbay")
    whole = [LEFT[0].replace("#", "###"), wrapped, f"**{LEFT[2]}**", RIGHT[0], *items, RIGHT[2], table]
    assert scores(*whole) == {"text": 1.0, "order": 1.0, "tables": 1.0}
    assert scores(*LEFT, *RIGHT, joint="\n") == {"text": 1.0, "order": 1.0, "tables": 1.0}
    assert scores(*LEFT, *RIGHT[:3], TABLE.replace("td>", "th>", 2)) == {"text": 1.0, "order": 1.0, "tables": 1.0}


def test_a_running_footer_may_be_given_or_left_out() -> None:
    assert scores(*LEFT, *RIGHT, "Page 7")["text"] == 1.0
    assert scores(*LEFT, *RIGHT, "Something else")["text"] < 1.0


def test_a_dropped_line_costs_its_text() -> None:
    found = scores(*LEFT[:2], *RIGHT)
    length = sum(map(len, GOLD.texts))
    assert found["text"] == pytest.approx(1 - len(LEFT[2]) / length)
    assert (found["order"], found["tables"]) == (pytest.approx(6 / 7), 1.0)


def test_wrong_characters_cost_their_number() -> None:
    found = scores(LEFT[0], LEFT[1].replace("bay", "day"), *LEFT[2:], *RIGHT)
    assert found["text"] == pytest.approx(1 - 1 / sum(map(len, GOLD.texts)))
    assert (found["order"], found["tables"]) == (1.0, 1.0)


def test_swapped_columns_cost_order_alone() -> None:
    found = scores(*RIGHT, *LEFT)
    assert (found["text"], found["tables"]) == (1.0, 1.0)
    assert found["order"] == pytest.approx(1 - 6 / 7)  # three blocks leave the front and come back at the end


def test_a_broken_table_costs_its_teds_alone() -> None:
    found = scores(*LEFT, *RIGHT[:3], TABLE.replace("<tr><td>Oslo</td><td>12</td></tr>", ""))
    assert (found["text"], found["order"]) == (1.0, 1.0)
    assert found["tables"] == 0.5  # a row and two cells of six elements
    assert scores(*LEFT, *RIGHT[:3])["tables"] == 0.0
    assert scores(*LEFT, *RIGHT, TABLE)["tables"] == 0.5


def test_an_empty_answer_scores_nothing() -> None:
    assert scores("") == {"text": 0.0, "order": 0.0, "tables": 0.0}


def test_boxes_are_matched_one_to_one() -> None:
    gold = [(0, 0, 10, 10), (20, 0, 30, 10)]
    assert score_boxes(gold, [gold[1], gold[0]]) == 1.0
    assert score_boxes(gold, [gold[0]]) == 0.5
    assert score_boxes(gold, [gold[0], gold[0]]) == 0.5
    assert score_boxes(gold, [(0, 0, 10, 5), (20, 0, 30, 10)]) == 0.75


def test_spaces_beside_chinese_and_marks_of_boxes_are_equal() -> None:
    gold = cut_page("语言：☑ 英语 ☐ 汉语")
    assert score_page(gold, cut_page("语言: [x]英语 [ ]汉语"))["text"] == 1.0
    assert score_page(gold, cut_page("语言：☐ 英语 ☑ 汉语"))["text"] < 1.0
