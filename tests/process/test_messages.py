from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vl2.errors import UserError
from vl2.process.conversation import ImageRef, Turn
from vl2.process.messages import to_turns

A, B = b"a", b"b"  # stand for pictures; nothing is opened here


def user(*parts: object) -> dict[str, object]:
    return {"role": "user", "content": list(parts)}


def text(value: str) -> dict[str, object]:
    return {"type": "text", "text": value}


def image(value: object = A) -> dict[str, object]:
    return {"type": "image", "image": value}


def flat(turn: Turn) -> str:
    """The turn with images shown as [..]."""
    return "".join(piece if isinstance(piece, str) else f"[{piece.source.decode()}]" for piece in turn.pieces)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([text("hi")], "hi"),
        ([image(), text("hi")], "[a]\nhi"),
        ([image(), text("\nhi")], "[a]\nhi"),
        ([image(), text(" hi")], "[a] hi"),
        ([text("hi"), image()], "hi\n[a]"),
        ([text("look: "), image()], "look: [a]"),
        ([image(), image(B), text("hi")], "[a]\n[b]\nhi"),
        ([image(), text(""), image(B)], "[a]\n[b]"),
        ([text("one"), text("two")], "one\ntwo"),
        ([text("  one "), text("two  ")], "one two"),
        ([text("  "), image()], "[a]"),
        ([text("a <image> b"), image()], "a <image> b\n[a]"),
        ([], ""),
    ],
)
def test_openai_parts_are_laid_out_as_the_released_prompts(parts, expected):
    (turn,) = to_turns([user(*parts)])
    assert flat(turn) == expected
    assert turn.specials == "grounding"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "x.png"},
        {"type": "image_url", "image_url": {"url": "x.png", "detail": "high"}},
        {"type": "image_url", "image_url": "x.png"},
        {"type": "input_image", "image_url": "x.png"},
    ],
)
def test_images_are_known_in_every_openai_spelling(part):
    (turn,) = to_turns([user(part, {"type": "input_text", "text": "hi"})])
    assert turn.pieces == (ImageRef(source="x.png"), "\nhi")


@pytest.mark.parametrize("source", ["p", Path("p"), b"p", bytearray(b"p"), memoryview(b"p"), Image.new("L", (1, 1))])
def test_any_image_source_is_carried_as_it_is(source):
    (turn,) = to_turns([user(image(source))])
    assert turn.images[0] is source


def test_the_released_form_puts_images_at_their_placeholders():
    turns = to_turns(
        [
            {"role": "<|User|>", "content": " <image>\nA <image> b ", "images": [A, B]},
            {"role": "<|Assistant|>", "content": " yes "},
        ]
    )
    assert [flat(turn) for turn in turns] == ["[a]\nA [b] b", "yes"]
    assert [turn.role for turn in turns] == ["user", "assistant"]
    assert {turn.specials for turn in turns} == {"all"}


def test_an_images_key_alone_marks_the_released_form():
    (turn,) = to_turns([{"role": "user", "content": "<image>hi", "images": [A]}])
    assert flat(turn) == "[a]hi"
    (turn,) = to_turns([{"role": "user", "content": "<image>hi", "images": None}])
    assert flat(turn) == "<image>hi"


def test_neighbouring_user_turns_are_joined_by_a_newline():
    turns = to_turns([user(text("one")), user(image(), text("two")), {"role": "user", "content": "three"}])
    assert [flat(turn) for turn in turns] == ["one\n[a]\ntwo\nthree"]


def test_system_messages_come_first_and_are_joined():
    turns = to_turns([{"role": "system", "content": "x "}, {"role": "system", "content": "y"}, user(text("hi"))])
    assert [(turn.role, flat(turn)) for turn in turns] == [("system", "x \ny"), ("user", "hi")]


def released(content: object, **more: object) -> dict[str, object]:
    return {"role": "<|User|>", "content": content, **more}


def test_an_assistants_text_may_come_in_parts():
    turns = to_turns([user(text("q")), {"role": "assistant", "content": [text("a"), text("b")]}])
    assert flat(turns[1]) == "a\nb"


HI = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        (None, "must be a list of messages, got nothing"),
        ("hi", "must be a list of messages, got a str"),
        (b"hi", "got a bytes"),
        ({"role": "user"}, "got a dict"),
        (3, "got a int"),
        ([], "empty list"),
        ([None], "message 0 must be a mapping .* got nothing"),
        ([[HI]], "message 0 must be a mapping .* got a list"),
        ([HI, "hi"], "message 1 must be a mapping"),
        ([{}], "message 0: role must be user, assistant or system .* got nothing"),
        ([{"role": "tool", "content": "x"}], "role must be user, assistant or system .* got 'tool'"),
        ([{"role": ["user"], "content": "x"}], "role must be"),
        ([{"role": 3, "content": "x"}], "role must be"),
        ([{"role": "user"}], "content must be a string or a list of parts, got nothing"),
        ([{"role": "user", "content": 3}], "content must be .* got a int"),
        ([{"role": "user", "content": {"type": "text"}}], "content must be .* got a dict"),
        ([user(None)], "message 0, part 0 must be a mapping"),
        ([user("hi")], "message 0, part 0 must be a mapping .* got a str"),
        ([user([text("x")])], "message 0, part 0 must be a mapping .* got a list"),
        ([user({"type": "video"})], "type must be one of text, input_text, image, .* got 'video'"),
        ([user({"type": None})], "type must be one of .* got nothing"),
        ([user({"type": ["text"], "text": "x"})], "type must be one of"),
        ([user({"type": "text"})], "text must be a string, got nothing"),
        ([user({"type": "text", "text": 3})], "text must be a string, got a int"),
        ([user({"type": "image"})], "image must be a path, .* got nothing"),
        ([user(image(0))], "image must be a path, .* got a int"),
        ([user({"type": "image_url", "image_url": None})], "image_url must be a string"),
        ([user({"type": "image_url", "image_url": {"url": 3}})], "image_url.url must be a string, got a int"),
        ([user({"type": "image_url", "image_url": {}})], "image_url.url must be a string"),
        ([{"role": "user", "content": "hi", "image": A}], "'image' belongs into a part"),
        ([{"role": "assistant", "content": "x"}], "message 0: an assistant message must follow a user message"),
        ([HI, {"role": "assistant", "content": "x"}, {"role": "assistant", "content": "y"}], "message 2: an assistant"),
        ([{"role": "system", "content": "x"}], "at least one user message"),
        ([HI, {"role": "system", "content": "x"}], "message 1: a system message must come before"),
        ([HI, {"role": "assistant", "content": [image()]}], "message 1: images belong into user messages"),
        ([{"role": "system", "content": [image()]}, HI], "message 0: images belong into user messages"),
        ([released("<image>", images=[])], "message 0: 1 <image> in the text, but 0 images"),
        ([released("<image><image>", images=[A])], "message 0: 2 <image> in the text, but 1 images"),
        ([released("x", images=[A])], "message 0: 0 <image> in the text, but 1 images"),
        ([released("x"), released("<image>")], "message 1: 1 <image> in the text, but 0 images"),
        ([released("<image>", images="a.png")], "images must be a list, got a str"),
        ([released("<image>", images=[3])], "image 0 must be a path"),
        ([released([text("x")])], "content must be a string beside"),
        ([released("x"), {"role": "<|Assistant|>", "content": "<image>"}], "message 1: images belong into user"),
    ],
)  # fmt: skip
def test_malformed_messages_are_refused_with_their_place(messages, why):
    with pytest.raises(UserError, match=why) as caught:
        to_turns(messages)
    assert "\n" not in str(caught.value)


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.sampled_from(["user", "text"])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "image", "images", "image_url", "url"]),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


@given(JSON)
def test_no_shape_of_json_crashes(messages):
    try:
        turns = to_turns(messages)
    except UserError:
        return
    assert all(isinstance(turn, Turn) for turn in turns)
