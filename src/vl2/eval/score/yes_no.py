"""Read yes or no from answers, and compute the figures of POPE and MME."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from vl2.eval.score.text_rules import vlmevalkit_punctuation

# Reading yes or no from an answer: VLMEvalKit searches for the words, lmms-eval checks the first four characters.
#
# Golden: `parsed` in tests/golden/scorers/mme.json, `extracted` in pope.json.


def vlmevalkit_yes_no(answer: str) -> str:
    """Return "yes" or "no" if exactly one of the two words occurs, otherwise ""."""
    words = vlmevalkit_punctuation(answer.lower()).split()
    if ("yes" in words) == ("no" in words):
        return ""
    return "yes" if "yes" in words else "no"


def lmms_eval_yes_no(answer: str) -> str:
    """Return "yes" or "no" by the first four characters of the answer, otherwise "". "Nothing" counts as "no"."""
    text = answer.lower().strip().replace(".", "")
    if len(text) == 1:
        return {"y": "yes", "n": "no"}.get(text, "")
    start = text[:4]
    return "yes" if "yes" in start else "no" if "no" in start else ""


# POPE: accuracy, precision, recall and F1 in percent. The two harnesses differ in answers that are neither yes nor no.
#
# If the gold answer is yes, VLMEvalKit (which reports F1 as the overall figure) counts an unclear answer as a miss;
# lmms-eval leaves it out of recall and F1. In both it is wrong and does not count as yes.
# Golden: tests/golden/scorers/pope.json, tests/golden/scorers/pope_harnesses.json.


def pope_scores(readings: Sequence[tuple[str, str]], *, unclear_is_miss: bool = True) -> dict[str, float]:
    """Return the four figures from pairs (answer, gold) of "yes" and "no"; other answers are unclear.

    `unclear_is_miss` computes recall as VLMEvalKit does, otherwise as lmms-eval does.
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


# MME: per category, the accuracy over questions plus the accuracy over images, in percent. An image is correct if both
# of its questions are.
#
# Perception is the sum over ten categories, cognition (VLMEvalKit: reasoning) over four. The published figure is the
# sum of both, at most 2,800.
#
# Golden: tests/golden/scorers/mme.json.

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def mme_scores(answers: Iterable[tuple[str, str, float]]) -> dict[str, float]:
    """Return the sum, perception, cognition and the score of every category, from (category, image, 0 or 1)."""
    by_category: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for category, image, score in answers:
        by_category[category][image].append(score)
    scores = {}
    for category, images in by_category.items():
        single = [score for both in images.values() for score in both]
        pairs = [float(min(both) == 1 and len(both) > 1) for both in images.values()]
        scores[category] = 100 * (sum(single) / len(single) + sum(pairs) / len(pairs))
    perception = sum(scores.get(category, 0.0) for category in PERCEPTION)
    cognition = sum(scores.get(category, 0.0) for category in COGNITION)
    return {"sum": perception + cognition, "perception": perception, "cognition": cognition, **scores}
