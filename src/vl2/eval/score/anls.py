"""ANLS, the normalised Levenshtein similarity of DocVQA and InfoVQA, 0..1.

Case is ignored and white space collapsed for the distance. The length that divides it is that of the raw texts in upper
case in lmms-eval 0.7, and in VLMEvalKit until commit e8e78f05 (2026-08-18) at least; since commit 0a04a1d2 VLMEvalKit
divides by that of the cleaned ones. The two differ only where white space or the length of the case does.
A similarity below 0.5 counts as 0. The best of several gold answers counts.

Golden: tests/golden/scorers/anls.json, tests/golden/scorers/anls_harnesses.json.
"""

from __future__ import annotations

from collections.abc import Sequence

from vl2.eval.score.edit_distance import edit_distance

THRESHOLD = 0.5


def anls(answer: str, golds: Sequence[str], *, divides_cleaned: bool = False) -> float:
    best = max((_similarity(answer, gold, divides_cleaned=divides_cleaned) for gold in golds), default=0.0)
    return best if best >= THRESHOLD else 0.0


def _similarity(answer: str, gold: str, *, divides_cleaned: bool) -> float:
    cleaned = _plain(answer), _plain(gold)
    longest = max(map(len, cleaned if divides_cleaned else (answer.upper(), gold.upper())))
    if longest == 0:
        return 1.0
    return 1.0 - edit_distance(*cleaned) / longest


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
