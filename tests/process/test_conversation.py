"""Turns that are made directly are what the same messages are read as."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vl2.errors import UserError
from vl2.process.conversation import ImageRef, Piece, Turn, arrange, one_question, user_turn
from vl2.process.messages import to_messages, to_turns

PIECES = st.lists(
    st.one_of(st.text(alphabet="a \n<", max_size=4), st.builds(ImageRef, source=st.sampled_from(["p", b"q"]))),
    max_size=5,
).map(tuple)


@st.composite
def conversations(draw: st.DrawFn) -> list[Turn]:
    """Turns in an order that the template has, in parts as they are said or in the released form."""
    is_released = draw(st.booleans())

    def text(role: str) -> Turn:
        said = draw(st.text(alphabet="a \n", max_size=4))
        return Turn(role=role, pieces=(said,), is_released=is_released)  # type: ignore[arg-type]

    def asked() -> list[Turn]:
        return [Turn(role="user", pieces=p, is_released=is_released) for p in draw(st.lists(PIECES, min_size=1))]

    turns = [text("system") for _ in range(draw(st.integers(0, 2)))]
    for _ in range(draw(st.integers(0, 2))):
        turns += [*asked(), text("assistant")]
    return [*turns, *asked()]


@given(conversations())
def test_what_is_arranged_stays_the_same(turns: list[Turn]) -> None:
    arranged = arrange(turns)
    assert arrange(arranged) == arranged == to_turns(arranged)


@given(conversations())
def test_turns_survive_being_written_as_messages(turns: list[Turn]) -> None:
    if not any(turn.is_released for turn in turns):
        assert to_turns(to_messages(turns)) == arrange(turns)


def test_one_question_is_the_images_then_the_text() -> None:
    system, asked = to_turns(one_question("What? ", ["a.png", b"b"], " Be brief. "))
    assert (system.role, system.text) == ("system", "Be brief.")
    assert asked.pieces == (ImageRef(source="a.png"), "\n", ImageRef(source=b"b"), "\nWhat?")
    assert asked.images == ("a.png", b"b")


def test_images_can_be_exchanged_in_their_places() -> None:
    turn = user_turn("What?", ["a.png", "b.png"]).map_images(lambda source: f"folder/{source}")
    assert turn == user_turn("What?", ["folder/a.png", "folder/b.png"])


def test_images_come_first_and_keep_their_order() -> None:
    a, b = ImageRef(source="a.png"), ImageRef(source="b.png")
    assert _turn("user", "Compare", a, "with", b).images_first() == _turn("user", a, b, "Compare", "with")


def _turn(role: str, *pieces: object) -> Turn:
    return Turn(role=role, pieces=pieces)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: ImageRef(source=3), "an image must be a path, .* got a int"),  # type: ignore[arg-type]
        (lambda: user_turn("hi", [None]), "an image must be a path, .* got nothing"),  # type: ignore[list-item]
        (lambda: user_turn(None), "a text must be a string, got nothing"),  # type: ignore[arg-type]
        (lambda: _turn("tool", "x"), "role must be one of system, user, .* got 'tool'"),
        (lambda: _turn("assistant", ImageRef(source="a")), "images belong into user messages, not into one of the as"),
        (lambda: arrange([]), "at least one message"),
        (lambda: arrange([_turn("system", "x")]), "at least one user message"),
        (lambda: arrange([user_turn("x"), _turn("document", "y"), user_turn("z")]), "the only message, got 3 messages"),
        (lambda: arrange([_turn("assistant", "x")]), "message 0: an assistant message must follow a user message"),
        (lambda: to_turns([user_turn("x"), {"role": "user", "content": "y"}]), "message 0 must be a mapping"),
    ],
)
def test_what_cannot_be_a_conversation_is_refused(make: object, why: str) -> None:
    with pytest.raises(UserError, match=why):
        make()  # type: ignore[operator]


def test_a_piece_is_a_text_or_an_image() -> None:
    pieces: tuple[Piece, ...] = ("a", ImageRef(source="p"), "b")
    assert _turn("user", *pieces).text == "ab"
