"""Two runs of one task on the same items: how much they differ, and how likely chance alone would do that.

Where every score is 0 or 1 and items are independent, the p is McNemar's exact one and the interval holds 0 wherever
that is above 0.05. All others take the paired bootstrap. Runs of two different tests are refused: `check_same_test`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from vl2.errors import UserError
from vl2.eval.interval import (
    DRAWS,
    SEED,
    SLOW_DRAWS,
    Interval,
    clusters,
    headline,
    is_binary,
    paired_difference,
    widened,
)
from vl2.eval.results import RunId
from vl2.eval.task import REFUSED, Metric, Result, mean_score

Draws = np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class RunComparison:
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


# What must be the same in two runs, in words; all else is what is compared.
_SAME = {
    "task": "task",
    "protocol": "protocol",
    "scorer": "version of the scoring rules",
    "split": "split",
    "whole": "--whole",
    "limit": "--limit",
    "seed": "seed of the sample",
    "tiling": "tiling",
    "max_new_tokens": "--max-new-tokens",
    "judge": "judge",
    "data": "data (hash of the items)",
}


def check_same_test(a: RunId, b: RunId) -> None:
    """Raise UserError, which says what differs, unless two runs asked the same items in the same way."""
    different = [name for name in _SAME if getattr(a, name) != getattr(b, name)]
    if "limit" in different and len(different) > 1:
        different = [name for name in different if name not in ("data", "seed")]  # which follow from it
    if different:
        said = ", ".join(f"{_SAME[name]} {_say(getattr(a, name))} and {_say(getattr(b, name))}" for name in different)
        raise UserError(f"the two runs of {a.task} are not of one test, and cannot be compared: {said}")


def _say(value: object) -> str:
    return "none" if value is None else str(value)


def check_same_items(a: Sequence[Result], b: Sequence[Result]) -> None:
    """Raise UserError unless two lists of results are of the same items, gold answers and prompts."""
    by_id = {result.id: result for result in b}
    if len(a) != len(b) or any(result.id not in by_id for result in a):
        raise UserError(f"the runs are of different items ({len(a)} and {len(b)}): run both with the same --limit")
    changed = [r.id for r in a if r.gold != by_id[r.id].gold]
    if changed:
        raise UserError(f"the runs are of different data: the gold answer of {changed[0]} differs")
    # What a model could not be asked has no prompt of the protocol's.
    both = [r for r in a if REFUSED not in (r.finish_reason, by_id[r.id].finish_reason)]
    reworded = [r.id for r in both if r.prompt != by_id[r.id].prompt]
    if reworded:
        raise UserError(f"the runs asked otherwise, and cannot be compared: the prompt of {reworded[0]} differs")


def compare(
    metric: Metric,
    a: Sequence[Result],
    b: Sequence[Result],
    *,
    scale: float = 100.0,
    is_mean: bool = False,
    is_same_model: bool = False,
) -> RunComparison:
    """Compare two lists of results. UserError if they are not of the same items.

    `scale` is the best figure of the metric; `is_mean`: its figure is the mean score, as that of `mean_score` is. Only
    of one model, or of a list with itself, is it known that equal results differ by nothing on all other items too.
    """
    check_same_items(a, b)
    by_id = {result.id: result for result in b}
    pairs = {result.id: (result, by_id[result.id]) for result in a}
    is_mean = is_mean or metric is mean_score
    figures = _bootstrap(metric, a, by_id, is_mean=is_mean)
    # Of the resampled differences, the share on the rarer side of zero, twice; never below what the draws can tell.
    tail = min(float(np.mean(figures <= 0)), float(np.mean(figures >= 0)))
    better = tuple(id for id, (x, y) in pairs.items() if y.score > x.score)
    worse = tuple(id for id, (x, y) in pairs.items() if y.score < x.score)
    are_binary = is_binary(a) and is_binary(b)
    if (a is b or is_same_model) and list(a) == list(b):
        interval = (0.0, 0.0)
    elif are_binary and is_mean:
        interval = paired_difference(len(better), len(worse), len(a))
    else:
        interval = widened(figures, len(clusters(a)), -scale, scale)
    # Of so few clusters that differ no paired test can give a smaller p: each of them falls either way by chance.
    differing = sum(any(_outcome(r) != _outcome(by_id[r.id]) for r in group) for group in clusters(a))
    least = max(1 / len(figures), 2.0 ** (1 - min(differing, 60)))
    return RunComparison(
        items=len(a),
        figure_a=headline(metric, a),
        figure_b=headline(metric, list(by_id.values())),
        interval=interval,
        p_bootstrap=min(1.0, max(2 * tail, least)),
        p_mcnemar=mcnemar(len(better), len(worse)) if are_binary else None,
        better_in_b=better,
        worse_in_b=worse,
    )


def _outcome(result: Result) -> tuple[float, str]:
    return result.score, result.read  # some metrics read what was said, not the score


def mcnemar(better: int, worse: int) -> float:
    """Return the exact two-sided p of so many items that changed each way."""
    changed = better + worse
    if changed == 0:
        return 1.0
    tail: int = sum(comb(changed, k) for k in range(min(better, worse) + 1))
    # Whole numbers first: 2 ** changed is no float for many items.
    return min(1.0, 2 * float(tail * 10**15 // 2**changed) / 10**15)


def _bootstrap(
    metric: Metric, a: Sequence[Result], by_id: dict[str, Result], *, is_mean: bool
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return resampled differences; both runs take the same items in every draw."""
    groups = clusters(a)
    rng = np.random.default_rng(SEED)
    if is_mean:
        gains = np.array([sum(by_id[r.id].score - r.score for r in group) for group in groups])
        sizes = np.array([len(group) for group in groups])
        weights = rng.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=DRAWS)
        return np.asarray(100 * (weights @ gains) / (weights @ sizes))
    differences = []
    for _ in range(SLOW_DRAWS):
        drawn = [r for i in rng.integers(len(groups), size=len(groups)) for r in groups[i]]
        differences.append(headline(metric, [by_id[r.id] for r in drawn]) - headline(metric, drawn))
    return np.array(differences)
