"""Rules that compare an answer with gold texts: exact, relaxed, by edit distance, by containing."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

# Exact match without case, outer space and a final full stop: the rule of the tasks that are this project's own.

_FINAL = ".。!！"


def plain(text: str) -> str:
    """Return a text in one form: compatibility characters unified, no case, single blanks, no final full stop."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(_FINAL).strip()


def exact_match(answer: str, golds: Sequence[str]) -> float:
    return float(plain(answer) in {plain(gold) for gold in golds})


# Relaxed accuracy of ChartQA, 0 or 1: a number may be off by 5 % of the gold value, a text must match without case.
#
# `45%` reads as 0.45. A gold value of zero is compared as a text. Commas, currencies and units are not understood.
# VLMEvalKit strips the answer first, lmms-eval does not.
#
# Golden: tests/golden/scorers/relaxed_accuracy.json.

MAX_RELATIVE_ERROR = 0.05


def relaxed_accuracy(answer: str, gold: str, *, is_stripped: bool = True) -> float:
    """Score one answer; `is_stripped` follows VLMEvalKit, without it lmms-eval."""
    answer = answer.strip() if is_stripped else answer
    value, gold_value = _number_in_percent(answer), _number_in_percent(gold)
    if value is None or not gold_value:
        return float(answer.lower() == gold.lower())
    return float(abs(value - gold_value) / abs(gold_value) <= MAX_RELATIVE_ERROR)


def _number_in_percent(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


# The edit distance of two texts: insertions, deletions and substitutions, one each (Levenshtein).


def edit_distance(a: str, b: str) -> int:
    if len(a) < len(b):
        a, b = b, a
    row = list(range(len(b) + 1))
    for i, char in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, start=1):
            cost = min(row[j] + 1, row[j - 1] + 1, diagonal + (char != other))
            diagonal, row[j] = row[j], cost
    return row[-1]


# ANLS, the normalized Levenshtein similarity of DocVQA and InfoVQA, 0..1.
#
# Case is ignored and white space collapsed for the distance. The length that divides it is that of the raw texts in
# upper case in lmms-eval 0.7, and in VLMEvalKit until commit e8e78f05 (2026-08-18) at least; since commit 0a04a1d2
# VLMEvalKit divides by that of the cleaned ones. The two differ only where white space or the length of the case does.
# A similarity below 0.5 counts as 0. The best of several gold answers counts.
#
# Golden: tests/golden/scorers/anls.json, tests/golden/scorers/anls_harnesses.json.

MIN_SIMILARITY = 0.5


def anls(answer: str, golds: Sequence[str], *, divides_cleaned: bool = False) -> float:
    best = max((_similarity(answer, gold, divides_cleaned=divides_cleaned) for gold in golds), default=0.0)
    return best if best >= MIN_SIMILARITY else 0.0


def _similarity(answer: str, gold: str, *, divides_cleaned: bool) -> float:
    cleaned = _spaced(answer), _spaced(gold)
    longest = max(map(len, cleaned if divides_cleaned else (answer.upper(), gold.upper())))
    if longest == 0:
        return 1.0
    return 1.0 - edit_distance(*cleaned) / longest


def _spaced(text: str) -> str:
    return " ".join(text.lower().split())


# OCRBench: one point when a gold text is part of the answer.
#
# Handwritten formulas are compared without blanks and with case, everything else without case and line breaks. lmms-
# eval folds full-width ASCII to plain ASCII, VLMEvalKit does not.
#
# Golden: tests/golden/scorers/ocrbench.json.

FORMULAS = "Handwritten Mathematical Expression Recognition"  # the question type

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}


def ocrbench_point(answer: str, golds: Sequence[str], question_type: str, *, folds_width: bool = False) -> float:
    """Score one answer, 0 or 1; `folds_width` follows lmms-eval."""
    text_form = _folded if folds_width else _one_line
    form = _without_blanks if question_type == FORMULAS else text_form
    return float(any(form(gold) in form(answer) for gold in golds))


def _without_blanks(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")


def _one_line(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _folded(text: str) -> str:
    return _one_line(text.translate(_FULL_WIDTH))
