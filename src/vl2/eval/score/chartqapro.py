"""The relaxed accuracy of ChartQAPro, 0..1: a mean over the listed answers, in order.

A number may be off by 5 % of the gold value, and per cent signs are ignored. A year must match exactly without case.
Other text scores its normalized Levenshtein similarity if that is above 0.5, else 0.
Extra and missing answers of a list score 0.

Source: vis-nlp/ChartQAPro, `evaluate_predictions.py` (commit 4b422c65), with the text score of the package `anls`.
Golden: tests/golden/scorers/chartqapro.json.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from itertools import zip_longest

from vl2.eval.score.text_rules import MAX_RELATIVE_ERROR, edit_distance

MAX_DISTANCE = 0.5  # exclusive, unlike the bound of DocVQA's ANLS

# Quotes the bare words of a list. Two words without a comma become two texts side by side, which Python then joins.
_BARE_WORD = re.compile(r"(?<!['\w])(\w[^,]*?)(?!['\w])")


def relaxed_correctness(gold: str, answer: str, years: Sequence[str], *, is_exact: bool = False) -> float:
    """Score an answer, a list in brackets or one value. `years` says "YES" for each gold value that is a year."""
    golds = _list_of(_quoted(gold)) or [gold]
    said = _list_of(answer) or [answer]
    flags = list(years) * len(golds) if len(years) < len(golds) else list(years)
    scores = []
    for index, (one, other) in enumerate(zip_longest(golds, said)):
        if one is None or other is None:
            scores.append(0.0)
        elif is_exact or (index < len(flags) and flags[index].upper() == "YES"):
            scores.append(float(one.strip().lower() == other.strip().lower()))
        else:
            scores.append(_score_value(one, other))
    return sum(scores) / len(scores)


def _quoted(gold: str) -> str:
    """Put quotes around the bare words of a gold list, if Python can then read it as a list."""
    inside = re.match(r"^\[(.*)\]$", gold.strip())
    if inside is None:
        return gold
    words = _BARE_WORD.sub(r"'\1'", inside[1])
    quoted = f"[{words}]"
    return quoted if _literal(quoted) is not None else gold


def _list_of(text: str) -> list[str] | None:
    found = _literal(text)
    return [str(value).strip(" '") for value in found] if isinstance(found, list) else None


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)  # literals only, no names and no calls
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _score_value(gold: str, answer: str) -> float:
    one, other = (text.strip().strip("%").strip() for text in (gold, answer))
    value, said = _number(one), _number(other)
    if value is not None and said is not None:
        if value == 0:
            return float(said == 0)
        return float(abs(said - value) / abs(value) <= MAX_RELATIVE_ERROR)
    one, other = (" ".join(text.lower().split()) for text in (one, other))
    longest = max(len(one.upper()), len(other.upper()))
    distance = edit_distance(one, other) / longest if longest else 0.0
    return 1 - distance if distance < MAX_DISTANCE else 0.0


def _number(text: str) -> float | None:
    try:
        return float(text.strip("%"))
    except ValueError:
        return None
