"""Intervals and comparisons behave as statistics say they must."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from math import comb

import numpy as np
import pytest

from vl2.errors import UserError
from vl2.eval.compare import check_same_test, compare, mcnemar
from vl2.eval.interval import bootstrap, clopper_pearson, paired_difference
from vl2.eval.results import RunId
from vl2.eval.task import Result, mean_score
from vl2.eval.tasks.pope import metric as pope_metric


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


def test_a_run_differs_by_nothing_from_itself() -> None:
    a = results([0.5, 1.0, 0.0, 0.25])
    for same in (compare(mean_score, a, a), compare(mean_score, a, list(a), is_same_model=True)):
        assert (same.difference, same.interval, same.p_bootstrap) == (0, (0, 0), 1.0)
        assert same.p_mcnemar is None  # scores between 0 and 1 are no yes or no


@pytest.mark.parametrize("scores", [[1.0] * 4, [0.0] * 4, [1.0, 0.0, 1.0, 0.0], [0.5, 1.0, 0.25, 0.0]])
def test_few_items_with_equal_scores_leave_much_open_between_two_models(scores: list[float]) -> None:
    made = compare(mean_score, results(scores), list(results(scores)))
    low, high = made.interval
    assert low < -30 < 30 < high
    assert made.p_bootstrap == 1


@pytest.mark.parametrize("count", [2, 4, 5, 6, 12])
def test_few_items_that_all_became_better_have_the_exact_p_and_an_interval_that_agrees(count: int) -> None:
    made = compare(mean_score, results([0.0] * count), results([1.0] * count))
    assert made.difference == 100
    assert made.p_mcnemar == pytest.approx(2 / 2**count)  # two sequences of coin tosses of all
    # 2,000 draws cannot tell a smaller p than one in 2,000.
    assert made.p_bootstrap == pytest.approx(max(2 / 2**count, 1 / 2000))
    assert made.interval[1] == pytest.approx(100)
    assert (made.interval[0] > 0) == (made.p_mcnemar < 0.05)
    partly = compare(mean_score, results([0.0] * count), results([0.5] * count))
    assert partly.p_mcnemar is None
    assert partly.p_bootstrap == pytest.approx(max(2 / 2**count, 1 / 2000))
    assert partly.interval[0] < 50 < partly.interval[1]


def test_the_interval_of_a_difference_holds_zero_wherever_the_exact_test_finds_nothing() -> None:
    for count in (1, 3, 8, 20):
        for better in range(count + 1):
            for worse in range(count - better + 1):
                low, high = paired_difference(better, worse, count)
                assert -100.001 <= low <= 100 * (better - worse) / count <= high <= 100.001
                if mcnemar(better, worse) > 0.05:
                    assert low <= 0 <= high, (better, worse, count)


@pytest.mark.parametrize("counts", [(0, 0, 10), (20, 2, 100), (3, 12, 40), (30, 30, 100)], ids=str)
def test_the_limits_of_a_difference_are_those_that_the_score_test_just_rejects(counts: tuple[int, int, int]) -> None:
    """Against the likelihood's maximum, searched on a fine grid of the share of items that became worse."""
    better, worse, count = counts
    found = sorted(paired_difference(better, worse, count))
    for limit, bound in zip(found, (1.959964, -1.959964), strict=True):
        d = limit / 100
        shares = np.linspace(max(0.0, -d), (1 - d) / 2, 200_001)[1:-1]
        likelihood = np.log(np.maximum(1 - 2 * shares - d, 1e-300)) * (count - better - worse)
        likelihood += (np.log(shares) * worse if worse else 0) + (np.log(shares + d) * better if better else 0)
        share = shares[np.argmax(likelihood)]
        z = (better - worse - count * d) / np.sqrt(count * (2 * share + d * (1 - d)))
        changed = better + worse
        exact = [(2 * share / 100 - 1) * 100 * changed / count for share in clopper_pearson(better, max(changed, 1))]
        # The outer one of the two: the score test's, and the exact one of the items that differ.
        assert abs(z) > 1.957
        assert z == pytest.approx(bound, abs=2e-3) or limit == pytest.approx(exact[int(bound < 0)])


def coverage(limits: Callable[[int], tuple[float, float]], count: int, share: float) -> float:
    """Return how often the interval of a run holds the true share, over all runs that there can be."""
    chances = [comb(count, right) * share**right * (1 - share) ** (count - right) for right in range(count + 1)]
    held = [low <= 100 * share <= high for low, high in map(limits, range(count + 1))]
    return sum(chance for chance, is_held in zip(chances, held, strict=True) if is_held)


@pytest.mark.parametrize("count", [1, 2, 4, 10, 30])
def test_the_interval_of_a_share_holds_the_truth_in_at_least_95_of_100_runs(count: int) -> None:
    def limits(right: int) -> tuple[float, float]:
        return bootstrap(mean_score, results([1.0] * right + [0.0] * (count - right)))

    for share in (0.02, 0.1, 0.3, 0.5, 0.73, 0.95):
        assert coverage(limits, count, share) >= 0.95


@pytest.mark.parametrize(("right", "count"), [(4, 4), (0, 20), (3, 10), (81, 263)])
def test_the_limits_of_a_share_are_those_of_clopper_and_pearson(right: int, count: int) -> None:
    low, high = (limit / 100 for limit in clopper_pearson(right, count))

    def at_least(least: int, share: float) -> float:
        return sum(comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(least, count + 1))

    expected = 0 if right == 0 else 0.025
    assert (low if right == 0 else at_least(right, low)) == pytest.approx(expected, rel=1e-6)
    assert (high if right == count else 1 - at_least(right + 1, high)) == pytest.approx(
        1 if right == count else 0.025, rel=1e-6
    )


def test_a_metric_that_reads_answers_has_an_interval_too_where_all_are_alike() -> None:
    for gold, figure in (("yes", 100), ("no", 0)):  # said yes to four questions
        said = [replace(r, read="yes", gold=gold) for r in results([float(gold == "yes")] * 4)]
        low, high = bootstrap(pope_metric, said)
        assert pope_metric(said)["f1"] == figure
        assert low <= figure <= high
        assert high - low == pytest.approx(100 * (1 - 0.025 ** (1 / 4)))


def run_of(**changes: object) -> RunId:
    fields = {
        "task": "chartqa", "protocol": "paper", "model": "m", "weights": "w", "data": "d", "limit": None, "split": None,
        "max_new_tokens": 128, "tiling": "paper", "arithmetic": "float32 on cpu", "parameters": 1, "judge": None,
        "version": "0", "scorer": 2,
    }  # fmt: skip
    return RunId(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"protocol": "lmms-eval"}, "protocol paper and lmms-eval"),
        ({"tiling": "per-image"}, "tiling paper and per-image"),
        ({"scorer": 1}, "version of the scoring rules 2 and 1"),
        ({"limit": 9, "data": "e", "seed": 0}, "--limit none and 9"),
        ({"data": "e"}, r"data \(hash of the items\) d and e"),
        ({"max_new_tokens": 4}, "--max-new-tokens 128 and 4"),
        ({"judge": "a model"}, "judge none and a model"),
        ({"split": "val", "data": "e"}, r"split none and val, data"),
        ({"whole": True, "data": "e"}, r"--whole False and True, data"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_runs_of_two_different_tests_are_refused_in_a_line_that_says_what_differs(
    changes: dict[str, object], says: str
) -> None:
    with pytest.raises(UserError, match=rf"the two runs of chartqa are different tests and .*: {says}") as caught:
        check_same_test(run_of(), run_of(**changes))
    assert "\n" not in str(caught.value)


def test_two_models_in_one_test_may_be_compared_whatever_else_differs() -> None:
    check_same_test(run_of(), run_of(model="n", weights="v", arithmetic="bfloat16 on cuda", parameters=2, version="1"))
    check_same_test(run_of(), run_of(tiling="paper, image scale 1.5"))  # the scale belongs to the model


def test_runs_of_several_image_scales_differ_in_their_tiling_rule_only() -> None:
    with pytest.raises(UserError, match="tiling paper and per-image"):
        check_same_test(run_of(tiling="paper, image scale 1.5"), run_of(tiling="per-image, image scale 1.5"))


def test_runs_that_asked_in_other_words_are_refused() -> None:
    a, b = results([1.0, 0.0]), results([1.0, 0.0])
    b[1] = replace(b[1], prompt="In other words?")
    with pytest.raises(UserError, match="the prompt of i1 differs"):
        compare(mean_score, a, b)
    b[1] = replace(b[1], finish_reason="refused")  # too long for the other model's context: wrong, and no other prompt
    assert compare(mean_score, a, b).items == 2


def test_clustered_items_have_no_mcnemar_test() -> None:
    a = results([1.0, 0.0, 1.0], ["x", "x", "y"])
    assert compare(mean_score, a, a).p_mcnemar is None


def test_runs_of_different_items_are_refused() -> None:
    with pytest.raises(UserError, match=r"different items \(3 and 2\)"):
        compare(mean_score, results([1.0] * 3), results([1.0] * 2))
