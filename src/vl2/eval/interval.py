"""How sure a figure is: the bootstrap over items, or over clusters of items that share a picture or a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vl2.eval.task import Metric, Result, mean_score

DRAWS = 2000
SLOW_DRAWS = 300  # of a metric that is no mean and must be computed anew each time
LEVEL = 0.95
SEED = 0

Interval = tuple[float, float]


def clusters(results: Sequence[Result]) -> list[list[Result]]:
    """Return the results that are drawn together, in order."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.cluster or f"id {result.id}", []).append(result)
    return list(found.values())


def headline(metric: Metric, results: Sequence[Result]) -> float:
    return next(iter(metric(results).values()))


def bootstrap(metric: Metric, results: Sequence[Result]) -> Interval:
    """Return the 95 % interval of the first figure of a metric. The same results give the same interval."""
    groups = clusters(results)
    rng = np.random.default_rng(SEED)
    if (score := results[0].score) in (0.0, 1.0) and all(r.score == score for r in results):
        best = headline(metric, [replace(r, score=1.0) for r in results])
        if headline(metric, results) == best * score and best > 0:
            return _all_alike(score, len(groups), best)
    if metric is mean_score:
        sums = np.array([sum(r.score for r in group) for group in groups])
        sizes = np.array([len(group) for group in groups])
        weights = rng.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=DRAWS)
        figures = 100 * (weights @ sums) / (weights @ sizes)
    else:
        drawn = (rng.integers(len(groups), size=len(groups)) for _ in range(SLOW_DRAWS))
        figures = np.array([headline(metric, [r for i in draw for r in groups[i]]) for draw in drawn])
    low, high = np.quantile(figures, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _all_alike(score: float, count: int, best: float) -> Interval:
    """Return the exact interval of a share, up to `best`, where the bootstrap knows of no other outcome."""
    unseen = best * (1 - ((1 - LEVEL) / 2) ** (1 / count))
    return (0.0, unseen) if score == 0 else (best - unseen, best)
