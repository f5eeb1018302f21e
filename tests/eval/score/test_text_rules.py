"""ANLS, relaxed accuracy, VQA accuracy and OCRBench give what the two harnesses give."""

from __future__ import annotations

import pytest

from tests.eval.score.golden import cases, golden, result_of
from vl2.eval.score.text_rules import (
    anls,
    edit_distance,
    exact_match,
    lmms_eval_form,
    ocrbench_point,
    relaxed_accuracy,
    vlmevalkit_form,
    vqa_accuracy,
)
from vl2.eval.task_catalog import find_task

CLOSE = 1e-6  # the goldens are rounded to 10 decimals


def test_anls_is_that_of_both_harnesses() -> None:
    scores = [anls(case["prediction"], case["answers"]) for case in cases("anls")]
    for harness in ("lmms_eval", "vlmevalkit"):
        assert scores == pytest.approx([case["expected"][harness] for case in cases("anls")], abs=CLOSE)
        assert sum(scores) / len(scores) == pytest.approx(golden("anls")["aggregate"][harness], abs=CLOSE)


@pytest.mark.parametrize("harness", golden("anls_harnesses")["harnesses"])
def test_anls_divides_by_the_lengths_of_the_harness_of_its_time(harness: str) -> None:
    for case in cases("anls_harnesses"):
        score = anls(case["prediction"], case["answers"], divides_cleaned=harness == "VLMEvalKit-0a04a1d2")
        assert score == pytest.approx(case["expected"][harness], abs=CLOSE), case


@pytest.mark.parametrize("task", ["docvqa", "infovqa"])
def test_the_protocol_of_vlmevalkit_gives_anls_by_both_lengths(task: str) -> None:
    found = [case for case in cases("anls_harnesses") if not case["prediction"].endswith(".") and any(case["answers"])]
    protocols = find_task(task).protocols
    marked = {
        name: [result_of(protocols[name], case["prediction"], case["answers"]) for case in found]
        for name in ("vlmevalkit", "lmms-eval")
    }
    for name, harness in (("vlmevalkit", "VLMEvalKit-0a04a1d2"), ("lmms-eval", "lmms_eval-0.7.3")):
        assert [r.score for r in marked[name]] == pytest.approx([c["expected"][harness] for c in found], abs=CLOSE)
    now, before = find_task(task).metric_of("vlmevalkit")(marked["vlmevalkit"]).values()
    for figure, harness in ((now, "VLMEvalKit-0a04a1d2"), (before, "VLMEvalKit-e8e78f05")):
        assert figure == pytest.approx(100 * sum(c["expected"][harness] for c in found) / len(found), abs=1e-4)
    assert now != pytest.approx(before, abs=1)


@pytest.mark.parametrize(("harness", "is_stripped"), [("lmms_eval", False), ("vlmevalkit", True)])
def test_relaxed_accuracy_is_that_of_the_harness(harness: str, is_stripped: bool) -> None:
    for case in cases("relaxed_accuracy"):
        score = relaxed_accuracy(case["prediction"], case["answer"], is_stripped=is_stripped)
        assert score == case["expected"][harness], case


@pytest.mark.parametrize(("harness", "form"), [("lmms_eval", lmms_eval_form), ("vlmevalkit", vlmevalkit_form)])
def test_vqa_accuracy_and_its_normal_form_are_those_of_the_harness(harness: str, form: object) -> None:
    assert callable(form)
    for case in cases("vqa_accuracy"):
        normal = case["normalised"][harness]
        assert form(case["prediction"]) == normal["prediction"], case
        assert form(case["answers"][0]) == normal["first_answer"], case
        score = vqa_accuracy(case["prediction"], case["answers"], form)
        assert score == pytest.approx(case["expected"][harness], abs=CLOSE), case


def test_a_contraction_is_the_same_answer_without_its_apostrophes() -> None:
    for said in ("couldnt've", "couldn'tve", "couldntve", "couldn't've"):
        assert vlmevalkit_form(said) == "couldn't've"


@pytest.mark.parametrize(("harness", "folds_width"), [("lmms_eval", True), ("vlmevalkit", False)])
def test_ocrbench_points_are_those_of_the_harness(harness: str, folds_width: bool) -> None:
    points = [
        ocrbench_point(case["prediction"], case["answers"], case["question_type"], folds_width=folds_width)
        for case in cases("ocrbench")
    ]
    assert points == [case["expected"][harness] for case in cases("ocrbench")]
    assert sum(points) == golden("ocrbench")["aggregate"][harness]


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2), ("北京", "南京", 1)],
)
def test_the_edit_distance_counts_single_changes(a: str, b: str, distance: int) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == distance


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [("Red car.", "red  car", 1), ("１２", "12", 1), ("有。", "有", 1), ("red", "red car", 0), ("", "a", 0)],
)
def test_an_exact_match_ignores_case_blanks_width_and_the_final_stop(answer: str, gold: str, score: float) -> None:
    assert exact_match(answer, [gold]) == score
