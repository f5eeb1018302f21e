"""MathVista: what can be decided without a judge. Everything else needs a language model to read the answer.

VLMEvalKit decides only answers that are right as they stand (a bare number, or a letter). lmms-eval also takes a
bare number that is wrong, an option's own text and `The answer is "...".`.

Golden: tests/golden/scorers/mathvista_rules.json.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vl2.eval.score.edit_distance import edit_distance
from vl2.eval.score.multiple_choice import vlmevalkit_letter


@dataclass(frozen=True, kw_only=True)
class MathVistaQuestion:
    """What the rules need to know of a question."""

    is_multiple_choice: bool
    answer_type: str  # integer, float, text or list
    choices: tuple[str, ...]
    precision: int  # decimals, of a float
    answer: str

    def letters(self) -> dict[str, str]:
        return {chr(ord("A") + i): choice for i, choice in enumerate(self.choices)}


def vlmevalkit_value(question: MathVistaQuestion, answer: str) -> str | int | float | None:
    """Return the letter or the number that the answer is, or None where VLMEvalKit asks its judge."""
    if question.is_multiple_choice:
        return vlmevalkit_letter(answer, question.letters()) or None
    value, gold = _number(question, answer), _number(question, question.answer)
    return value if value is not None and value == gold else None


def lmms_eval_reading(question: MathVistaQuestion, answer: str) -> str | None:
    """Return the part of the answer that counts, or None where lmms-eval asks its judge."""
    if not answer:
        return ""
    if question.is_multiple_choice and answer in question.choices:
        return answer
    value = _number(question, answer)
    if value is not None:
        return str(value)
    quoted = re.search(r'The answer is "(.*)"\.', answer)
    return quoted[1] if quoted else None


def normalize_reading(question: MathVistaQuestion, reading: str) -> str | None:
    """Return a reading (of the rules or of a judge) as the gold answer is written; None if it cannot be one."""
    if not question.is_multiple_choice:
        try:
            if question.answer_type == "integer":
                return str(int(float(reading)))
            return str(round(float(reading), question.precision)) if question.answer_type == "float" else reading
        except (ValueError, OverflowError):
            return None
    reading = reading.strip()
    in_brackets = re.search(r"\(([a-zA-Z])\)", reading)
    letter = in_brackets[1].upper() if in_brackets else reading
    return question.letters().get(letter) or _nearest(letter, question.choices)


def is_right(question: MathVistaQuestion, reading: str) -> bool:
    """Tell whether a reading, of the rules or of a judge, is the gold answer."""
    normalized = normalize_reading(question, reading)
    return normalized is not None and normalized.strip() == question.answer.strip()


def _nearest(text: str, choices: Sequence[str]) -> str:
    return min(choices, key=lambda choice: edit_distance(text, choice))


def _number(question: MathVistaQuestion, text: str) -> int | float | None:
    try:
        if question.answer_type == "integer":
            return int(text)
        return float(text) if question.answer_type == "float" else None
    except ValueError:
        return None
