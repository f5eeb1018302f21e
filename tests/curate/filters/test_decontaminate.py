"""Decontamination: an evaluation set's images and questions are found, and common wording is not taken for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.curate.filters.examples import encoded, record, scene
from vl2.curate.filters.decontaminate import Decontaminate, EvaluationIndex
from vl2.data.record import StoredImage
from vl2.errors import UserError

QUESTION = "In which year did the number of passengers at the northern station first exceed two million?"
WORDING = "Answer the question with one word or one short phrase and nothing more than that."


@pytest.fixture
def index() -> EvaluationIndex:
    index = EvaluationIndex()
    questions = [QUESTION, "What is the total?", *(f"{WORDING} Item {number}" for number in range(30))]
    index.add_all([encoded(scene(0)), encoded(scene(1))], questions)
    return index


@pytest.mark.parametrize("saved", [False, True])
def test_images_and_questions_of_the_sets_are_dropped(index: EvaluationIndex, saved: bool, tmp_path: Path) -> None:
    if saved:
        index.save(tmp_path / "eval.npz")
        index = EvaluationIndex.load(tmp_path / "eval.npz")
    check = Decontaminate(index)
    assert check(record("a", scene(0))).why == "image 0 is in the evaluation sets"
    smaller = scene(1).resize((160, 120))
    assert check(record("b", scene(2), smaller)).why == "image 1 looks like one of the evaluation sets"
    assert "of a question's 8-grams" in check(record("c", question=f"Please tell: {QUESTION.upper()}")).why
    assert check(record("d", scene(3))).kept
    assert check(record("e", question="What is the total?")).kept
    assert check(record("f", question=WORDING)).kept
    broken = StoredImage(data=b"broken", width=9, height=9)
    assert "cannot read image" in check(record("g", broken)).why


def test_a_file_that_is_no_index_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no evaluation index at"):
        EvaluationIndex.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    np.savez(tmp_path / "other.npz", format=np.zeros(3))
    np.savez(tmp_path / "objects.npz", format=np.array([{}], dtype=object))
    for name in ("text", "other", "objects"):
        with pytest.raises(UserError, match="is not an evaluation index"):
            EvaluationIndex.load(tmp_path / f"{name}.npz")


def test_a_blank_page_in_a_set_is_found_only_exactly(index: EvaluationIndex) -> None:
    blank = Image.new("RGB", (90, 90), "white")
    index.add_image(encoded(blank))
    check = Decontaminate(index)
    assert not check(record("a", blank)).kept
    assert check(record("b", Image.new("RGB", (80, 90), "white"))).kept


def test_an_empty_index_drops_nothing_and_can_be_saved(tmp_path: Path) -> None:
    EvaluationIndex().save(tmp_path / "eval.npz")
    check = Decontaminate(EvaluationIndex.load(tmp_path / "eval.npz"))
    assert check(record("a", scene(0), question=QUESTION)).kept
