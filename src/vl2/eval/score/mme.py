"""MME: per category the accuracy over questions plus that over images whose two questions are both right, in percent.

Perception is the sum over ten categories, cognition (VLMEvalKit: reasoning) over four; the figure that is published is
the sum of both, at most 2,800.

Golden: tests/golden/scorers/mme.json.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def mme_scores(answers: Iterable[tuple[str, str, float]]) -> dict[str, float]:
    """Return the score of every category from (category, image, 0 or 1), then perception, cognition and their sum."""
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
