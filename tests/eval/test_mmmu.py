"""MMMU's prompts under both protocols."""

from __future__ import annotations

import pytest
from PIL import Image

from vl2.errors import UserError
from vl2.eval.tasks.mmmu import PUBLISHED_PROTOCOL, Question, read_answer, turns_of
from vl2.process.conversation import Turn

QUESTION = Question(
    text="Which part of <image 1> matches <image 2>?",
    options=["the left", "the right", "<image 2>"],
    images=[Image.new("RGB", (300, 200)), Image.new("RGB", (90, 60))],
)


def written(turn: Turn) -> str:
    """The turn in the released form."""
    assert turn.is_released
    return "".join(piece if isinstance(piece, str) else "<image>" for piece in turn.pieces)


def test_the_published_protocol_puts_images_first_and_doubles_the_first() -> None:
    assert PUBLISHED_PROTOCOL == "vlmevalkit"
    asked = turns_of(QUESTION)[0]
    assert written(asked) == (
        "<image><image>\n Which part of <image 1> matches <image 2>?\nA. the left\nB. the right\nC. <image 2>\n"
        "Answer with the option's letter from the given choices directly. "
        "Answer the question using a single word or phrase.\n\n"
    )
    assert [image.size for image in asked.images] == [(600, 400), (90, 60)]
    assert QUESTION.images[0].size == (300, 200)


def test_the_plain_protocol_puts_images_where_they_are_named() -> None:
    asked = turns_of(QUESTION, "plain")[0]
    assert written(asked).startswith("Question: Which part of <image>\n matches <image>\n?\nOptions:\nA. the left")
    assert [image.size for image in asked.images] == [(300, 200), (90, 60), (90, 60)]


def test_a_mark_without_its_image_is_an_error() -> None:
    with pytest.raises(UserError, match="refers to image 2, but it has 1"):
        turns_of(Question(text="<image 2>", options=[], images=QUESTION.images[:1]), "plain")


def test_an_unknown_protocol_is_an_error_that_lists_them() -> None:
    with pytest.raises(UserError, match="vlmevalkit, plain, got lmms"):
        turns_of(QUESTION, "lmms")  # type: ignore[arg-type]


def test_trailing_full_stops_are_dropped_from_the_answer() -> None:
    assert read_answer("B.") == "B"
    assert read_answer("about 3.5") == "about 3.5"
