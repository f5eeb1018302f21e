"""Textbook pages: the answer is solved again here, and it is one of four options that differ."""

from __future__ import annotations

import random
import re
from fractions import Fraction

import pytest

from vl2.errors import UserError
from vl2.synth.exercises import COMPOUNDS, EXERCISES, MASSES
from vl2.synth.source import generate
from vl2.synth.textbook import Textbook, _options


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("task", sorted(EXERCISES))
def test_the_answer_is_among_four_options_and_ends_the_steps(task: str, language: str) -> None:
    for seed in range(60):
        exercise = EXERCISES[task](random.Random(seed), language)
        assert len(set(_options(exercise, random.Random(seed)))) == 4
        assert re.findall(r"-?[\d/]+%?", exercise.steps[-1])[-1] == exercise.answer


def numbers(text: str) -> list[int]:
    return [int(found) for found in re.findall(r"-?\d+", text)]


def test_every_answer_can_be_solved_again() -> None:
    for seed in range(60):
        made = {task: EXERCISES[task](random.Random(seed), "en") for task in EXERCISES}
        r1, r2, *_ = numbers(made["circuit"].steps[0])
        side, r3, _ = numbers(made["circuit"].steps[1].split(":")[1])
        assert Fraction(r1 * r2, r1 + r2) == side
        assert str(side + r3) == made["circuit"].answer
        a, d, b, c = numbers(made["determinant"].steps[0].replace(" - ", " "))
        assert str(a * d - b * c) == made["determinant"].answer
        a, b, c, k = (numbers(made["derivative"].question)[i] for i in range(4))
        slope = 3 * a * k * k + 2 * b * k + c
        assert str(slope) == made["derivative"].answer
        a, b, c, d = numbers(made["market"].question.replace("- ", ""))
        assert Fraction(a - c, b + d) == int(made["market"].answer)
        first, second, asked = re.findall(r"\b[Aa]{2}\b", made["genetics"].question)
        born = ["".join(sorted((x, y))) for x in first for y in second]
        assert made["genetics"].answer == f"{25 * born.count(asked)}%"
    masses = {sum(MASSES[e] * n for e, n in compound.items()) for compound in COMPOUNDS}
    assert {18, 44, 46, 98, 100, 180} <= masses


def test_the_concise_form_is_a_letter_and_the_worked_one_ends_with_it() -> None:
    for record in generate(Textbook(form="concise"), 10):
        assert record.messages[1].parts[0].text in ("A", "B", "C", "D")
        assert record.category == "academic"
    for record in generate(Textbook(form="worked", languages=("en",)), 10):
        assert re.search(r"\nThe answer is [ABCD]\.$", record.messages[1].parts[0].text or "")
    with pytest.raises(UserError, match="form of textbook is one of mixed, worked, concise, got 'brief'"):
        Textbook(form="brief")
