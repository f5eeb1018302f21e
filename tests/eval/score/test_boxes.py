"""Overlaps are those of the harnesses, and every reader of boxes reads what theirs does."""

from __future__ import annotations

import pytest

from tests.eval.score.golden import cases, golden
from vl2.eval.score.boxes import (
    HIT,
    Box,
    box_f1,
    iou,
    lmms_eval_box,
    lmms_eval_rec_box,
    match_boxes,
    our_boxes,
    vlmevalkit_box,
)

CLOSE = 1e-6


def test_the_overlap_of_two_boxes_is_that_of_both_harnesses() -> None:
    for case in cases("iou_pairs"):
        for expected in case["expected"].values():
            assert iou(case["box_a"], case["box_b"]) == pytest.approx(expected, abs=CLOSE), case


def test_each_reader_finds_the_box_that_its_harness_finds() -> None:
    content = golden("grounding_iou")
    width, height = content["image_size"]
    gold = content["gold_box_pixels"]
    totals = dict.fromkeys(content["aggregate"], 0)
    for case in content["cases"]:
        answer, size = case["prediction"], (width, height)
        found = {
            "lmms_eval_refcoco_rec": lmms_eval_rec_box(answer, size),
            "lmms_eval_refcoco_grounding": lmms_eval_box(answer, size, gold),
            "vlmevalkit": vlmevalkit_box(answer, size),
        }
        for name, box in found.items():
            expected = case["expected"][name]
            overlap = 0.0 if box is None else iou(box, gold)
            # The harness rounds the overlap of its older task in units of the image, hence the tolerance.
            assert overlap == pytest.approx(expected["iou"], abs=1e-5), (name, case)
            assert (overlap >= HIT) == bool(expected["hit"]), (name, case)
            totals[name] += overlap >= HIT
        if case["expected"]["vlmevalkit"]["box_pixels"] is None:
            assert found["vlmevalkit"] is None
        else:
            assert found["vlmevalkit"] == pytest.approx(case["expected"]["vlmevalkit"]["box_pixels"], abs=1e-3)
    assert {name: hits / content["n"] for name, hits in totals.items()} == pytest.approx(content["aggregate"])


def test_our_own_form_is_read_on_the_scale_of_999() -> None:
    answer = "<|ref|>dog<|/ref|><|det|>[[0, 0, 999, 999], [500, 0, 999, 500]]<|/det|> and 12"
    assert our_boxes(answer, (640, 480))[0] == (0.0, 0.0, 640.0, 480.0)
    assert len(our_boxes(answer, (640, 480))) == 2


@pytest.mark.parametrize(
    ("found", "gold", "hits"),
    [
        ([(0, 0, 10, 10)], [(0, 0, 10, 10), (20, 0, 30, 10)], 1),
        # Two boxes on one thing find it once.
        ([(0, 0, 10, 10), (0, 0, 10, 9)], [(0, 0, 10, 10)], 1),
        # The best pairs first: the greedy order of the answer would lose one.
        ([(0, 0, 10, 14), (0, 0, 10, 10)], [(0, 0, 10, 10), (0, 4, 10, 14)], 2),
        ([], [(0, 0, 1, 1)], 0),
    ],
)
def test_boxes_are_matched_one_to_one_the_best_pairs_first(found: list[Box], gold: list[Box], hits: int) -> None:
    assert match_boxes(found, gold) == hits
    assert box_f1(found, gold) == pytest.approx(2 * hits / (len(found) + len(gold)))


def test_saying_nothing_about_nothing_is_right() -> None:
    assert box_f1([], []) == 1.0
