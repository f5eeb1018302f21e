"""POPE: accuracy, precision, recall and F1 in percent. An unclear answer is wrong, and counts as no for F1.

Follows VLMEvalKit, which reports F1 as the overall figure. Golden: tests/golden/scorers/pope.json.
"""

from __future__ import annotations

from collections.abc import Sequence


def pope_scores(marks: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Return the four figures from pairs (said, gold) of "yes", "no" and, for what was said, ""."""
    hits = sum(said == gold for said, gold in marks)
    true_yes = sum(said == gold == "yes" for said, gold in marks)
    said_yes, gold_yes = (sum(pair[i] == "yes" for pair in marks) for i in (0, 1))
    precision = true_yes / said_yes if said_yes else 0.0
    recall = true_yes / gold_yes if gold_yes else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    accuracy = hits / len(marks) if marks else 0.0
    return {"f1": 100 * f1, "accuracy": 100 * accuracy, "precision": 100 * precision, "recall": 100 * recall}
