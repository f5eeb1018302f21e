"""Intervals and comparisons behave as statistics say they must."""

from __future__ import annotations

import random

import pytest

from vl2.errors import UserError
from vl2.eval.compare import compare, mcnemar
from vl2.eval.interval import bootstrap
from vl2.eval.task import Result, mean_score


def results(scores: list[float], clusters: list[str] | None = None) -> list[Result]:
    names = clusters or [""] * len(scores)
    return [
        Result(
            id=f"i{n}", part="", cluster=name, prompt="", answer="", read="", gold=["x"], score=score,
            is_undecided=False, finish_reason="stop", prompt_tokens=1, completion_tokens=1,
        )
        for n, (score, name) in enumerate(zip(scores, names, strict=True))
    ]  # fmt: skip


def test_the_interval_of_a_share_is_the_one_of_the_normal_approximation() -> None:
    low, high = bootstrap(mean_score, results([1.0] * 300 + [0.0] * 100))
    # 75 % of 400: 1.96 standard errors are 4.2 points; the quantiles of 2,000 draws scatter by a few tenths.
    assert low == pytest.approx(75 - 4.24, abs=0.6)
    assert high == pytest.approx(75 + 4.24, abs=0.6)


def test_items_of_one_cluster_count_as_one() -> None:
    scores = [float(n % 2) for n in range(40) for _ in range(10)]
    alone = bootstrap(mean_score, results(scores))
    together = bootstrap(mean_score, results(scores, [str(n) for n in range(40) for _ in range(10)]))
    assert together[1] - together[0] > 2.5 * (alone[1] - alone[0])


def test_a_perfect_or_hopeless_run_still_has_an_interval() -> None:
    assert bootstrap(mean_score, results([1.0] * 20))[1] == 100
    # Of 20 right ones, up to 16.8 % wrong would still be seen as all right once in forty times.
    assert bootstrap(mean_score, results([1.0] * 20))[0] == pytest.approx(83.2, abs=0.1)
    assert bootstrap(mean_score, results([0.0] * 20)) == pytest.approx((0, 16.8), abs=0.1)


def test_a_metric_that_is_no_mean_is_computed_anew_for_every_draw() -> None:
    given = results([1.0] * 30 + [0.0] * 10)

    def fewest(results: list[Result]) -> dict[str, float]:
        return {"share": mean_score(results)["score"] / 2}

    low, high = bootstrap(fewest, given)  # type: ignore[arg-type]
    assert 25 < low < 37.5 < high < 50


def test_the_same_results_give_the_same_interval() -> None:
    given = results([random.Random(1).random() for _ in range(50)])
    assert bootstrap(mean_score, given) == bootstrap(mean_score, given)


@pytest.mark.parametrize(
    ("better", "worse", "p"), [(0, 0, 1.0), (5, 5, 1.0), (10, 0, 2 / 1024), (8, 2, 112 / 1024), (3000, 0, 0.0)]
)
def test_mcnemar_is_the_exact_two_sided_binomial_test(better: int, worse: int, p: float) -> None:
    assert mcnemar(better, worse) == pytest.approx(p, abs=1e-12)


def test_a_clear_gain_is_significant_and_a_swap_is_not() -> None:
    a = results([1.0] * 50 + [0.0] * 50)
    gain = compare(mean_score, a, results([1.0] * 70 + [0.0] * 30))
    assert gain.difference == pytest.approx(20)
    assert gain.interval[0] > 10
    assert gain.p_bootstrap < 0.01
    assert gain.p_mcnemar is not None
    assert gain.p_mcnemar < 0.001
    assert (len(gain.better_in_b), len(gain.worse_in_b)) == (20, 0)
    swap = compare(mean_score, a, results([1.0] * 40 + [0.0] * 10 + [1.0] * 10 + [0.0] * 40))
    assert swap.difference == 0
    assert swap.p_mcnemar == 1
    assert swap.p_bootstrap > 0.5


def test_equal_runs_differ_by_nothing() -> None:
    a = results([0.5, 1.0, 0.0, 0.25])
    same = compare(mean_score, a, a)
    assert (same.difference, same.interval, same.p_bootstrap) == (0, (0, 0), 1.0)
    assert same.p_mcnemar is None  # scores between 0 and 1 are no yes or no


def test_clustered_items_have_no_mcnemar_test() -> None:
    a = results([1.0, 0.0, 1.0], ["x", "x", "y"])
    assert compare(mean_score, a, a).p_mcnemar is None


def test_runs_of_different_items_are_refused() -> None:
    with pytest.raises(UserError, match=r"different items \(3 and 2\)"):
        compare(mean_score, results([1.0] * 3), results([1.0] * 2))
