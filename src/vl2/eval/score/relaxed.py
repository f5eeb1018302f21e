"""Relaxed accuracy of ChartQA, 0 or 1: a number may be off by 5 % of the gold value, a text must match without case.

`45%` reads as 0.45. A gold value of zero is compared as a text. Commas, currencies and units are not understood.
VLMEvalKit strips the answer first, lmms-eval does not.

Golden: tests/golden/scorers/relaxed_accuracy.json.
"""

from __future__ import annotations

MAX_RELATIVE_ERROR = 0.05


def relaxed_accuracy(answer: str, gold: str, *, is_stripped: bool = True) -> float:
    """Score one answer; `is_stripped` follows VLMEvalKit, without it lmms-eval."""
    answer = answer.strip() if is_stripped else answer
    value, gold_value = _number(answer), _number(gold)
    if value is None or not gold_value:
        return float(answer.lower() == gold.lower())
    return float(abs(value - gold_value) / abs(gold_value) <= MAX_RELATIVE_ERROR)


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
