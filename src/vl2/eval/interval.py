"""How sure a figure is: exact where items are right or wrong each by itself, else the bootstrap over clusters.

Items that share a picture or a sentence are no independent ones, so the bootstrap draws them together. It knows only of
what it has seen: where every draw gives the same figure, the interval is widened by the share of items that could be
otherwise and still not be seen once in forty times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from vl2.eval.task import Metric, Result, mean_score

DRAWS = 2000
SLOW_DRAWS = 300  # of a metric that is no mean and must be computed anew each time
LEVEL = 0.95
TAIL = (1 - LEVEL) / 2
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


def is_binary(results: Sequence[Result]) -> bool:
    """Tell whether every item is right or wrong, and none shares a cluster with another."""
    return len(clusters(results)) == len(results) and all(r.score in (0.0, 1.0) for r in results)


def bootstrap(metric: Metric, results: Sequence[Result], *, scale: float = 100.0, is_mean: bool = False) -> Interval:
    """Return the 95 % interval of the first figure of a metric, within 0 and `scale`.

    `is_mean`: that figure is the mean score in percent, as that of `mean_score` is. The same results give the same
    interval.
    """
    is_mean = is_mean or metric is mean_score
    if is_mean and is_binary(results):
        return clopper_pearson(sum(r.score == 1 for r in results), len(results))
    groups = clusters(results)
    rng = np.random.default_rng(SEED)
    if is_mean:
        sums = np.array([sum(r.score for r in group) for group in groups])
        sizes = np.array([len(group) for group in groups])
        weights = rng.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=DRAWS)
        figures = 100 * (weights @ sums) / (weights @ sizes)
    else:
        drawn = (rng.integers(len(groups), size=len(groups)) for _ in range(SLOW_DRAWS))
        figures = np.array([headline(metric, [r for i in draw for r in groups[i]]) for draw in drawn])
    best = 100.0 if is_mean else min(scale, _best(metric, results, scale))
    return widened(figures, len(groups), 0.0, best)


def _best(metric: Metric, results: Sequence[Result], scale: float) -> float:
    """Return the figure of all right, where the metric reads scores; `scale` where it reads something else."""
    best = headline(metric, [replace(r, score=1.0) for r in results])
    return best if best > headline(metric, [replace(r, score=0.0) for r in results]) else scale


def widened(figures: np.ndarray[tuple[int], np.dtype[np.float64]], count: int, worst: float, best: float) -> Interval:
    """Return the quantiles of figures drawn from `count` clusters; wider where the draws know of one figure only."""
    low, high = (float(q) for q in np.quantile(figures, [TAIL, 1 - TAIL]))
    if float(np.ptp(figures)) > 1e-9 * max(1.0, abs(best)):
        return low, high
    unseen = unseen_share(count)
    return low + unseen * (worst - low), high + unseen * (best - high)


def unseen_share(count: int) -> float:
    """Return the largest share of otherwise clusters of which `count` show none with a chance of one in forty."""
    return float(1 - TAIL ** (1 / count))


def clopper_pearson(right: int, count: int) -> Interval:
    """Return the exact 95 % interval of a share, in percent.

    Source: Clopper and Pearson 1934. The limits are those at which one in forty runs is as good, or as bad.
    """
    low = 0.0 if right == 0 else _solve(lambda share: binomial_tail(right, count, share) - TAIL)
    high = 1.0 if right == count else _solve(lambda share: TAIL - binomial_tail(count - right, count, 1 - share))
    return 100 * low, 100 * high


def binomial_tail(least: int, count: int, share: float) -> float:
    """Return the chance of at least `least` successes of `count`."""
    if share in (0.0, 1.0):
        return float(share == 1.0 or least == 0)
    k = np.arange(least, count + 1)
    factorials = _log_factorials(count)
    protocols = factorials[count] - factorials[k] - factorials[count - k]
    return float(np.exp(protocols + k * np.log(share) + (count - k) * np.log1p(-share)).sum())


@lru_cache(maxsize=8)
def _log_factorials(count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, count + 1)))))


def _solve(rising: Callable[[float], float], low: float = 0.0, high: float = 1.0) -> float:
    """Return where a rising function is 0."""
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2


def paired_difference(better: int, worse: int, count: int) -> Interval:
    """Return the 95 % interval, in percent, of the difference of two shares on the same items.

    `better` items are right in the second run alone, `worse` in the first alone. The limits are the differences that
    the score test rejects with p 0.05: so few items give a wide interval also where none differs. It is widened to the
    exact limits for so many items that differ, and so holds 0 wherever McNemar's exact p is above 0.05.
    Source: Tango 1998, Statistics in Medicine 17, 891-908.
    """
    found, changed = (better - worse) / count, better + worse
    low = _solve(lambda d: Z - _score(better, worse, count, d), -1.0, found)
    high = _solve(lambda d: -Z - _score(better, worse, count, d), found, 1.0)
    if changed:
        fewest, most = ((2 * share / 100 - 1) * changed / count for share in clopper_pearson(better, changed))
        low, high = min(low, fewest), max(high, most)
    return 100 * low, 100 * high


Z = 1.959963984540054  # of 95 %, two-sided


def _score(better: int, worse: int, count: int, difference: float) -> float:
    """Return Tango's statistic, which falls as the difference rises."""
    a = 2 * count
    b = -better - worse + (2 * count - better + worse) * difference
    c = -worse * difference * (1 - difference)
    # The likeliest share of `worse` if the difference were this one.
    share = (np.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = count * (2 * share + difference * (1 - difference))
    lead = better - worse - count * difference
    if variance <= 0:
        return float(np.sign(lead)) * float("inf") if lead else 0.0
    return float(lead / np.sqrt(variance))
