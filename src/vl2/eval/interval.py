"""Confidence intervals of figures: exact for independent right-or-wrong items, otherwise a bootstrap over clusters.

Items that share an image or a sentence are not independent, so the bootstrap draws them together as a cluster. If all
draws give the same figure, the interval is widened by the largest share of other clusters that the sample would miss
with a probability of one in forty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from vl2.eval.task import Metric, Result, mean_score

DRAWS = 2000
SLOW_DRAWS = 300  # for a metric that is not a mean and is recomputed for each draw
LEVEL = 0.95
TAIL = (1 - LEVEL) / 2
SEED = 0

Interval = tuple[float, float]


def clusters(results: Sequence[Result]) -> list[list[Result]]:
    """Group the results by cluster, in order. A result without a cluster is its own."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.cluster or f"id {result.id}", []).append(result)
    return list(found.values())


def headline(metric: Metric, results: Sequence[Result]) -> float:
    return next(iter(metric(results).values()))


def is_binary(results: Sequence[Result]) -> bool:
    """Return whether every score is 0 or 1 and no two items share a cluster."""
    return len(clusters(results)) == len(results) and all(r.score in (0.0, 1.0) for r in results)


def bootstrap(metric: Metric, results: Sequence[Result], *, scale: float = 100.0, is_mean: bool = False) -> Interval:
    """Return the 95 % interval of the first figure of a metric, between 0 and `scale`. It is deterministic.

    `is_mean` says that the figure is the mean score in percent, as for `mean_score`.
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
    return bootstrap_interval(figures, len(groups), 0.0, best)


def _best(metric: Metric, results: Sequence[Result], scale: float) -> float:
    """Return the figure if all scores were 1, or `scale` if the metric does not depend on scores."""
    best = headline(metric, [replace(r, score=1.0) for r in results])
    return best if best > headline(metric, [replace(r, score=0.0) for r in results]) else scale


def bootstrap_interval(
    figures: np.ndarray[tuple[int], np.dtype[np.float64]], count: int, worst: float, best: float
) -> Interval:
    """Return the interval of bootstrap figures of `count` clusters; widened if all figures are equal."""
    low, high = (float(q) for q in np.quantile(figures, [TAIL, 1 - TAIL]))
    if float(np.ptp(figures)) > 1e-9 * max(1.0, abs(best)):
        return low, high
    unseen = unseen_share(count)
    return low + unseen * (worst - low), high + unseen * (best - high)


def unseen_share(count: int) -> float:
    """Return the largest share of clusters of another kind that `count` samples miss with probability 1/40."""
    return float(1 - TAIL ** (1 / count))


def clopper_pearson(right: int, count: int) -> Interval:
    """Return the exact 95 % interval of a proportion, in percent.

    Source: Clopper and Pearson 1934. At each limit, one in forty samples would be as extreme as this one.
    """
    low = 0.0 if right == 0 else _solve(lambda share: binomial_tail(right, count, share) - TAIL)
    high = 1.0 if right == count else _solve(lambda share: TAIL - binomial_tail(count - right, count, 1 - share))
    return 100 * low, 100 * high


def binomial_tail(least: int, count: int, share: float) -> float:
    """Return the probability of at least `least` successes in `count` trials."""
    if share in (0.0, 1.0):
        return float(share == 1.0 or least == 0)
    k = np.arange(least, count + 1)
    factorials = _log_factorials(count)
    log_choose = factorials[count] - factorials[k] - factorials[count - k]
    return float(np.exp(log_choose + k * np.log(share) + (count - k) * np.log1p(-share)).sum())


@lru_cache(maxsize=8)
def _log_factorials(count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, count + 1)))))


def _solve(rising: Callable[[float], float], low: float = 0.0, high: float = 1.0) -> float:
    """Return the root of a rising function by bisection."""
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2


def paired_difference(better: int, worse: int, count: int) -> Interval:
    """Return the 95 % interval, in percent, of the difference of two proportions on the same items.

    `better` items are correct in the second run only, `worse` in the first only. The limits are the differences at
    which the score test has p = 0.05, so few items give a wide interval even if none differs. The interval is widened
    to the exact limits given the number of differing items, so it contains 0 whenever McNemar's exact p is above 0.05.
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
    # The maximum-likelihood share of `worse` items under this difference.
    share = (np.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = count * (2 * share + difference * (1 - difference))
    lead = better - worse - count * difference
    if variance <= 0:
        return float(np.sign(lead)) * float("inf") if lead else 0.0
    return float(lead / np.sqrt(variance))
