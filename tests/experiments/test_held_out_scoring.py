"""Free answers to the held-out questions are read as a person would read them."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.nano.held_out.scoring import (
    admits,
    bare_name,
    numbers_of,
    score_count,
    score_date,
    score_lines,
    score_name,
    score_near_number,
    score_number,
    score_one_of,
    score_receipt_line,
    score_words,
)
from vl2.eval.task import Item


def item(gold: Any, question: str = "?", **notes: Any) -> Item:
    return Item(id="1", question=question, gold=gold, notes=notes)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("RM 34.80", [34.8]), ("1,234.50", [1234.5]), ("7,95", [7.95]), ("12,000", [12000.0]), ("none", []),
        ("3 of 4", [3.0, 4.0]), ("$8.20.", [8.2]), ("-5", [-5.0]),
    ],
)  # fmt: skip
def test_numbers_are_read(text: str, numbers: list[float]) -> None:
    assert numbers_of(text) == numbers


@pytest.mark.parametrize(
    ("answer", "score"),
    [("35", 1), ("35.0", 1), ("It is 35.", 1), ("35 or 36", 0), ("350", 0), ("", 0), ("In 2019 it was 35", 1)],
)
def test_a_number_counts_if_it_is_the_only_one(answer: str, score: int) -> None:
    assert score_number(item("35", "How much in 2019?"), answer).value == score


@pytest.mark.parametrize(("answer", "score"), [("95", 1), ("105", 1), ("94.9", 0), ("105.1", 0), ("100 or 101", 0)])
def test_a_value_without_a_label_may_be_off_by_a_twentieth(answer: str, score: int) -> None:
    assert score_near_number(item("100"), answer).value == score


@pytest.mark.parametrize(
    ("answer", "score"),
    [("4", 1), ("Four.", 1), ("There are four stars", 1), ("四个", 1), ("5", 0), ("four or five", 0), ("", 0)],
)
def test_a_count_may_be_a_word(answer: str, score: int) -> None:
    assert score_count(item(4), answer).value == score


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("Goat.", "goat"), ("This is a goat.", "goat"), ("It is an old key", "old key"), ("这是山羊。", "山羊"),
        ("the moon", "moon"), ("这是一只狗", "狗"), ("Some cherries", "cherries"), ("a", "a"),
    ],
)  # fmt: skip
def test_a_name_is_taken_out_of_a_sentence(answer: str, name: str) -> None:
    assert bare_name(answer) == name
    assert score_name(item([name]), answer).value == 1
    assert score_name(item(["something else"]), answer).value == 0


@pytest.mark.parametrize(("answer", "score"), [("Oslo", 1), ("It is Oslo.", 1), ("Oslo and Bern", 0), ("Oslow", 0)])
def test_one_of_the_names_must_be_said_alone(answer: str, score: int) -> None:
    assert score_one_of(item("Oslo", names=["Oslo", "Bern"]), answer).value == score


@pytest.mark.parametrize(
    ("answer", "score"), [("one\ntwo", 1), ("one", 0.5), ("two\none", 0), ("one\ntwo\nthree", 2 / 3), ("One\n two", 1)]
)
def test_lines_are_scored_in_their_order(answer: str, score: float) -> None:
    assert score_lines(item(["one", "two"]), answer).value == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        ("22/12/2017", "22/12/2017", 1), ("22-12-2017", "22/12/2017", 1), ("Date: 22/12/2017 8:13 PM", "22/12/2017", 1),
        ("12 mar 2018", "12 MAR 2018", 1), ("2/12/2017", "22/12/2017", 0), ("22/12/2017", "2/12/2017", 0),
        ("", "1/2/2018", 0),
    ],
)  # fmt: skip
def test_dates_are_compared_part_by_part(answer: str, gold: str, score: int) -> None:
    assert score_date(item(gold), answer).value == score


def test_a_line_of_a_receipt_is_its_words() -> None:
    assert score_receipt_line(item("ROC NO. : (1072825-A)"), "Roc No: (1072825 - A)").value == 1
    assert score_receipt_line(item("GOODS SOLD"), "goodssold").value == 0


def test_words_may_stand_in_a_sentence() -> None:
    assert score_words(item("Station"), "The sign says Station.").value == 1
    assert score_words(item("Station"), "Statoin").value == 0


@pytest.mark.parametrize(
    "answer",
    ["I cannot tell.", "I can't tell from the picture.", "The picture does not say.", "I don't know.", "Not shown.",
     "There is no dog.", "无法得知。", "看不出来。", "Unknown", "I'm not sure", "It is impossible to say."],
)  # fmt: skip
def test_an_admission_is_understood(answer: str) -> None:
    assert admits(answer)


@pytest.mark.parametrize("answer", ["A goat.", "1906", "No.", "Yes.", "canteen", "knot", "星期一", "Anna Notley"])
def test_an_answer_is_no_admission(answer: str) -> None:
    assert not admits(answer)
