"""OCRBench: one point when a gold text is part of the answer.

Handwritten formulas are compared without blanks and with case, everything else without case and line breaks.
lmms-eval folds full-width ASCII to plain ASCII, VLMEvalKit does not.

Golden: tests/golden/scorers/ocrbench.json.
"""

from __future__ import annotations

from collections.abc import Sequence

FORMULAS = "Handwritten Mathematical Expression Recognition"  # the question type

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}


def ocrbench_point(answer: str, golds: Sequence[str], question_type: str, *, folds_width: bool = False) -> float:
    """Score one answer, 0 or 1; `folds_width` follows lmms-eval."""
    text_form = _folded if folds_width else _plain
    form = _without_blanks if question_type == FORMULAS else text_form
    return float(any(form(gold) in form(answer) for gold in golds))


def _without_blanks(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")


def _plain(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _folded(text: str) -> str:
    return _plain(text.translate(_FULL_WIDTH))
