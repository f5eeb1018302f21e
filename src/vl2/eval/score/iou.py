"""Intersection over union of boxes (x0, y0, x1, y1), and matching many boxes with many.

Golden: tests/golden/scorers/iou_pairs.json.
"""

from __future__ import annotations

from collections.abc import Sequence

Box = Sequence[float]
HIT = 0.5  # a box is found at this IoU or more


def area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def iou(a: Box, b: Box) -> float:
    """Return 0..1. A box with swapped corners or without area meets nothing."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    union = area(a) + area(b) - shared
    return shared / union if union > 0 else 0.0


def match_boxes(found: Sequence[Box], gold: Sequence[Box], threshold: float = HIT) -> int:
    """Return how many gold boxes are found, each box used once, the best pairs first."""
    pairs = sorted(
        ((iou(a, b), i, j) for i, a in enumerate(found) for j, b in enumerate(gold)), key=lambda p: (-p[0], p[1], p[2])
    )
    used_found, used_gold = set[int](), set[int]()
    for overlap, i, j in pairs:
        if overlap < threshold:
            break
        if i not in used_found and j not in used_gold:
            used_found.add(i)
            used_gold.add(j)
    return len(used_gold)


def box_f1(found: Sequence[Box], gold: Sequence[Box], threshold: float = HIT) -> float:
    """Return the harmonic mean of precision and recall at that IoU; 1 where there is nothing and nothing is said."""
    if not found and not gold:
        return 1.0
    return 2 * match_boxes(found, gold, threshold) / (len(found) + len(gold))
