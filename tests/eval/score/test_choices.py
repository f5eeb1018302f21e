"""Letters, yes and no, MMMU's open answers and MathVista's rules are read as the harnesses read them."""

from __future__ import annotations

import pytest

from tests.eval.score.golden import cases, golden, result_of
from vl2.eval.score.multiple_choice import (
    MathVistaQuestion,
    ai2d_text,
    is_open_answer_right,
    is_right,
    lmms_eval_letter,
    lmms_eval_reading,
    mmbench_letter,
    mmmu_letter,
    normalize_reading,
    realworldqa_point,
    vlmevalkit_letter,
    vlmevalkit_value,
)
from vl2.eval.score.text_rules import plain
from vl2.eval.score.yes_no import lmms_eval_yes_no, mme_scores, pope_scores, vlmevalkit_yes_no
from vl2.eval.task_catalog import find_task


def test_letters_are_those_of_the_five_extractors() -> None:
    choices = golden("multiple_choice")["choices"]
    for case in cases("multiple_choice"):
        answer, expected = case["prediction"], case["extracted"]
        assert lmms_eval_letter(answer) == expected["lmms_eval_shared"], case
        assert mmbench_letter(answer, choices) == (expected["lmms_eval_mmbench_static"] or ""), case
        assert mmmu_letter(answer, choices) == (expected["lmms_eval_mmmu"] or ""), case
        assert ai2d_text(answer) == expected["lmms_eval_ai2d_filter"], case
        assert (vlmevalkit_letter(answer, choices) or "Z") == expected["vlmevalkit"], case


def test_an_ai2d_answer_is_compared_without_case_and_punctuation() -> None:
    from vl2.eval.score.multiple_choice import is_ai2d_right

    for case in cases("multiple_choice"):
        for gold, score in case["ai2d_exact_match_if_gold"].items():
            assert is_ai2d_right(case["prediction"], gold) == bool(score), case


def test_open_answers_of_mmmu_are_judged_as_by_its_own_parser() -> None:
    for case in cases("mmmu_open"):
        golds = case["answer"] if isinstance(case["answer"], list) else [case["answer"]]
        assert is_open_answer_right(case["prediction"], golds) == bool(case["expected"]["lmms_eval"]), case


def test_realworldqa_takes_a_letter_or_an_exact_answer() -> None:
    for case in cases("realworldqa"):
        assert realworldqa_point(case["prediction"], case["answer"]) == case["expected"]["lmms_eval"], case


def test_mathvista_is_decided_by_rules_exactly_where_the_harnesses_ask_no_judge() -> None:
    for case in cases("mathvista_rules"):
        question = MathVistaQuestion(
            is_multiple_choice=case["question_type"] == "multi_choice",
            answer_type=case["answer_type"],
            choices=tuple(case["choices"] or ()),
            precision=case["precision"] or 0,
            answer=case["answer"],
        )
        reading, expected = lmms_eval_reading(question, case["prediction"]), case["lmms_eval"]
        assert reading == expected["extraction_without_judge"], case
        if reading is not None:
            assert normalize_reading(question, reading) == expected["normalised"], case
            assert is_right(question, reading) == expected["correct"], case
        assert vlmevalkit_value(question, case["prediction"]) == case["vlmevalkit"]["prefetch_result"], case


@pytest.mark.parametrize(("harness", "read"), [("lmms_eval", lmms_eval_yes_no), ("vlmevalkit", vlmevalkit_yes_no)])
def test_mme_is_read_and_summed_as_by_the_harness(harness: str, read: object) -> None:
    assert callable(read)
    marks = []
    for case in cases("mme"):
        said = read(case["prediction"])
        parsed = case["parsed"][harness].lower()
        assert said == ("" if parsed in ("other", "unknown") else parsed), case
        score = float(said == case["answer"].lower())
        assert score == case["score"][harness], case
        marks.append((case["category"], case["image"], score))
    scores, expected = mme_scores(marks), golden("mme")["aggregate"][harness]
    if harness == "lmms_eval":
        assert scores["perception"] == pytest.approx(expected["mme_perception_score"])
        assert scores["cognition"] == pytest.approx(expected["mme_cognition_score"])
        expected = expected["per_category"]
    else:
        assert scores["cognition"] == pytest.approx(expected["reasoning"])
        expected = {name: value for name, value in expected.items() if name != "reasoning"}
    assert {name: scores[name] for name in expected} == pytest.approx(expected)
    assert scores["sum"] == scores["perception"] + scores["cognition"]


def test_pope_counts_an_unclear_answer_as_wrong_and_as_no() -> None:
    said = [vlmevalkit_yes_no(case["prediction"]) for case in cases("pope")]
    assert said == [plain(case["extracted"]).replace("unknown", "") for case in cases("pope")]
    marks = [(s, case["answer"].lower(), case["category"]) for s, case in zip(said, cases("pope"), strict=True)]
    for part, expected in golden("pope")["aggregate"]["vlmevalkit"].items():
        scores = pope_scores([(s, gold) for s, gold, category in marks if part in ("Overall", category)])
        assert scores == pytest.approx(
            {"f1": expected["Overall"], "accuracy": expected["acc"], "precision": expected["precision"],
             "recall": expected["recall"]}
        )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "harness"),
    [("lmms-eval", "lmms_eval-0.7.3"), ("vlmevalkit", "VLMEvalKit-0a04a1d2"), ("vlmevalkit", "VLMEvalKit-e8e78f05")],
)
def test_pope_is_summed_up_as_its_harness_does(name: str, harness: str) -> None:
    task = find_task("pope")
    protocol, metric = task.protocols[name], task.metric_of(name)
    for case in cases("pope_harnesses"):
        results = [result_of(protocol, said, gold.lower(), part=category) for said, gold, category in case["rows"]]
        figures = metric(results)
        for name, expected in case["expected"][harness].items():
            assert figures[name] == pytest.approx(expected, abs=1e-6), (case["case"], name)
