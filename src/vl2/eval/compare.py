"""Compare two runs of one task on the same items: the difference, its 95 % interval and p-values.

If every score is 0 or 1 and items are independent, the p-value is McNemar's exact one, and the interval contains 0
whenever that is above 0.05. Other scores use the paired bootstrap. `check_same_test` refuses runs of different tests.
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
    bootstrap_interval,
    clusters,
    headline,
    is_binary,
    paired_difference,
)
from vl2.eval.results import RunId
from vl2.eval.task import REFUSED, Metric, Result, mean_score

Draws = np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class RunComparison:
    """The comparison of runs A and B. Differences are B minus A, in the unit of the metric."""

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


# The fields that must be equal in two runs, with their names for messages. Other fields may differ.
_MUST_MATCH = {
    "task": "task",
    "protocol": "protocol",
    "scorer": "version of the scoring rules",
    "split": "split",
    "whole": "--whole",
    "limit": "--limit",
    "seed": "seed of the sample",
    "tiling_rule": "tiling",
    "max_new_tokens": "--max-new-tokens",
    "judge": "judge",
    "data": "data (hash of the items)",
}


def check_same_test(a: RunId, b: RunId) -> None:
    """Raise a UserError that says what differs unless two runs asked the same items in the same way."""
    different = [name for name in _MUST_MATCH if getattr(a, name) != getattr(b, name)]
    if "limit" in different and len(different) > 1:
        different = [name for name in different if name not in ("data", "seed")]  # these follow from the limit
    if different:
        said = ", ".join(
            f"{_MUST_MATCH[name]} {_as_text(getattr(a, name))} and {_as_text(getattr(b, name))}" for name in different
        )
        raise UserError(f"the two runs of {a.task} are different tests and cannot be compared: {said}")


def _as_text(value: object) -> str:
    return "none" if value is None else str(value)


def check_same_items(a: Sequence[Result], b: Sequence[Result]) -> None:
    """Raise UserError unless two lists of results have the same items, gold answers and prompts."""
    by_id = {result.id: result for result in b}
    if len(a) != len(b) or any(result.id not in by_id for result in a):
        raise UserError(f"the runs have different items ({len(a)} and {len(b)}): run both with the same --limit")
    changed = [r.id for r in a if r.gold != by_id[r.id].gold]
    if changed:
        raise UserError(f"the runs have different data: the gold answer of {changed[0]} differs")
    # Refused items do not have the protocol's prompt.
    both = [r for r in a if REFUSED not in (r.finish_reason, by_id[r.id].finish_reason)]
    reworded = [r.id for r in both if r.prompt != by_id[r.id].prompt]
    if reworded:
        raise UserError(f"the runs used different prompts and cannot be compared: the prompt of {reworded[0]} differs")


def compare(
    metric: Metric,
    a: Sequence[Result],
    b: Sequence[Result],
    *,
    scale: float = 100.0,
    is_mean: bool = False,
    is_same_model: bool = False,
) -> RunComparison:
    """Compare two lists of results. Raise UserError if they do not have the same items.

    `scale` is the best possible figure. `is_mean` says that the metric's figure is the mean score. With
    `is_same_model`, or for a list with itself, equal results give the interval (0, 0); for two models they do not,
    because the models may still differ on other items.
    """
    check_same_items(a, b)
    by_id = {result.id: result for result in b}
    pairs = {result.id: (result, by_id[result.id]) for result in a}
    is_mean = is_mean or metric is mean_score
    figures = _bootstrap(metric, a, by_id, is_mean=is_mean)
    # The two-sided p is twice the share of resampled differences on the rarer side of zero (see `least` below).
    tail = min(float(np.mean(figures <= 0)), float(np.mean(figures >= 0)))
    better = tuple(id for id, (x, y) in pairs.items() if y.score > x.score)
    worse = tuple(id for id, (x, y) in pairs.items() if y.score < x.score)
    are_binary = is_binary(a) and is_binary(b)
    if (a is b or is_same_model) and list(a) == list(b):
        interval = (0.0, 0.0)
    elif are_binary and is_mean:
        interval = paired_difference(len(better), len(worse), len(a))
    else:
        interval = bootstrap_interval(figures, len(clusters(a)), -scale, scale)
    # With few differing clusters no paired test can give a smaller p: each falls either way with probability 1/2.
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
    return result.score, result.read  # some metrics use the reading, not the score


def mcnemar(better: int, worse: int) -> float:
    """Return McNemar's exact two-sided p, given the numbers of items that became better and worse."""
    changed = better + worse
    if changed == 0:
        return 1.0
    tail: int = sum(comb(changed, k) for k in range(min(better, worse) + 1))
    # Divide integers, because 2 ** changed overflows a float for many items.
    return min(1.0, 2 * float(tail * 10**15 // 2**changed) / 10**15)


def _bootstrap(
    metric: Metric, a: Sequence[Result], by_id: dict[str, Result], *, is_mean: bool
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return bootstrap differences of the figure; each draw uses the same items for both runs."""
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
