"""Two runs of one task on the same items: how much they differ, and how likely chance alone would do that.

McNemar's exact test where every score is 0 or 1 and items are independent, and the paired bootstrap always.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from vl2.errors import UserError
from vl2.eval.interval import DRAWS, LEVEL, SEED, SLOW_DRAWS, Interval, clusters, headline
from vl2.eval.task import Metric, Result, mean_score

Draws = np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Figures are B's less A's, in the unit of the metric."""

    items: int
    figure_a: float
    figure_b: float
    interval: Interval  # 95 %, of the difference
    p_bootstrap: float  # two-sided
    p_mcnemar: float | None
    better_in_b: tuple[str, ...]  # ids
    worse_in_b: tuple[str, ...]

    @property
    def difference(self) -> float:
        return self.figure_b - self.figure_a


def compare(metric: Metric, a: Sequence[Result], b: Sequence[Result]) -> Comparison:
    """Compare two lists of results. UserError if they are not of the same items."""
    by_id = {result.id: result for result in b}
    if len(a) != len(b) or any(result.id not in by_id for result in a):
        raise UserError(f"the runs are of different items ({len(a)} and {len(b)}): run both with the same --limit")
    changed = [r.id for r in a if r.gold != by_id[r.id].gold]
    if changed:
        raise UserError(f"the runs are of different data: the gold answer of {changed[0]} differs")
    pairs = {result.id: (result, by_id[result.id]) for result in a}
    figures = _bootstrap(metric, a, by_id)
    low, high = np.quantile(figures, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    # Of the resampled differences, the share on the rarer side of zero, twice; never below what the draws can tell.
    tail = min(float(np.mean(figures <= 0)), float(np.mean(figures >= 0)))
    better = tuple(id for id, (x, y) in pairs.items() if y.score > x.score)
    worse = tuple(id for id, (x, y) in pairs.items() if y.score < x.score)
    is_binary = all(r.score in (0.0, 1.0) for r in (*a, *b))
    is_independent = len(clusters(a)) == len(a)
    return Comparison(
        items=len(a),
        figure_a=headline(metric, a),
        figure_b=headline(metric, list(by_id.values())),
        interval=(float(low), float(high)),
        p_bootstrap=min(1.0, max(2 * tail, 1 / len(figures))),
        p_mcnemar=mcnemar(len(better), len(worse)) if is_binary and is_independent else None,
        better_in_b=better,
        worse_in_b=worse,
    )


def mcnemar(better: int, worse: int) -> float:
    """Return the exact two-sided p of so many items that changed each way."""
    changed = better + worse
    if changed == 0:
        return 1.0
    tail: int = sum(comb(changed, k) for k in range(min(better, worse) + 1))
    # Whole numbers first: 2 ** changed is no float for many items.
    return min(1.0, 2 * float(tail * 10**15 // 2**changed) / 10**15)


def _bootstrap(
    metric: Metric, a: Sequence[Result], by_id: dict[str, Result]
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return resampled differences; both runs take the same items in every draw."""
    groups = clusters(a)
    rng = np.random.default_rng(SEED)
    if metric is mean_score:
        gains = np.array([sum(by_id[r.id].score - r.score for r in group) for group in groups])
        sizes = np.array([len(group) for group in groups])
        weights = rng.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=DRAWS)
        return np.asarray(100 * (weights @ gains) / (weights @ sizes))
    differences = []
    for _ in range(SLOW_DRAWS):
        drawn = [r for i in rng.integers(len(groups), size=len(groups)) for r in groups[i]]
        differences.append(headline(metric, [by_id[r.id] for r in drawn]) - headline(metric, drawn))
    return np.array(differences)
