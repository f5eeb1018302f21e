"""Formulas: every one that the grammar makes can be typeset, and its text is what was drawn."""

from __future__ import annotations

import random

import pytest

from vl2.synth.formula import FONT_SETS, Formula, draw_formula, expression

matplotlib = pytest.importorskip("matplotlib")


def test_every_expression_can_be_typeset_in_every_font() -> None:
    from matplotlib.mathtext import MathTextParser

    parser = MathTextParser("agg")
    rng = random.Random(0)
    seen = set()
    for number in range(300):
        latex = expression(rng, number % 4)
        with matplotlib.rc_context({"mathtext.fontset": FONT_SETS[number % len(FONT_SETS)]}):
            parser.parse(f"${latex}$")
        seen.add(latex)
    assert len(seen) > 250


def test_nothing_is_cut_off_at_the_edge() -> None:
    for latex in (r"\frac{x^{2}}{y}", r"\sum_{k = 0}^{n} \sqrt{x}", r"\int_{0}^{\infty} x \, dx"):
        image = draw_formula(latex, font="cm", size_pt=24, ink="#000000", paper="#ffffff").convert("L")
        width, height = image.size
        edge = [image.getpixel((x, y)) for x in range(width) for y in (0, height - 1)]
        edge += [image.getpixel((x, y)) for y in range(height) for x in (0, width - 1)]
        assert min(edge) == 255
        assert image.getextrema()[0] < 60


def test_the_answer_is_the_formula_between_dollars() -> None:
    record = Formula(tasks=("equation",)).make(0, 0)
    answer = record.messages[-1].parts[0].text
    assert answer is not None
    assert answer.startswith("$")
    assert answer.endswith("$")
    assert answer.count("{") == answer.count("}")
