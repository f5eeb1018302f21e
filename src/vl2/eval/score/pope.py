"""POPE: accuracy, precision, recall and F1 in percent. The two harnesses differ in answers that are neither yes nor no.

VLMEvalKit, which reports F1 as the overall figure, takes an unclear answer to a question of gold yes for a miss;
lmms-eval leaves it out of the recall, and so of F1. In both it is wrong, and no yes.
Golden: tests/golden/scorers/pope.json, tests/golden/scorers/pope_harnesses.json.
"""

from __future__ import annotations

from collections.abc import Sequence


def pope_scores(readings: Sequence[tuple[str, str]], *, unclear_is_miss: bool = True) -> dict[str, float]:
    """Return the four figures from pairs (said, gold) of "yes", "no" and, for what was said, anything else.

    `unclear_is_miss` as VLMEvalKit has it; without it recall is that of lmms-eval.
    """
    hits = sum(said == gold for said, gold in readings)
    true_yes = sum(said == gold == "yes" for said, gold in readings)
    said_yes = sum(said == "yes" for said, _ in readings)
    to_find = sum(gold == "yes" and (unclear_is_miss or said in ("yes", "no")) for said, gold in readings)
    precision = true_yes / said_yes if said_yes else 0.0
    recall = true_yes / to_find if to_find else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    accuracy = hits / len(readings) if readings else 0.0
    return {"f1": 100 * f1, "accuracy": 100 * accuracy, "precision": 100 * precision, "recall": 100 * recall}
