"""ANLS, the normalised Levenshtein similarity of DocVQA and InfoVQA, 0..1; both harnesses agree on it.

Case is ignored and white space collapsed for the distance, while the length that divides it is that of the raw texts.
A similarity below 0.5 counts as 0. The best of several gold answers counts.

Golden: tests/golden/scorers/anls.json.
"""

from __future__ import annotations

from collections.abc import Sequence

from vl2.eval.score.edit_distance import edit_distance

THRESHOLD = 0.5


def anls(answer: str, golds: Sequence[str]) -> float:
    best = max((_similarity(answer, gold) for gold in golds), default=0.0)
    return best if best >= THRESHOLD else 0.0


def _similarity(answer: str, gold: str) -> float:
    longest = max(len(answer), len(gold))
    if longest == 0:
        return 1.0
    return 1.0 - edit_distance(_plain(answer), _plain(gold)) / longest


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
