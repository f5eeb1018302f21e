"""Constrained decoding: random answers under a constraint are what it promises, and a real model holds to it."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import IMAGES, reference_vlm
from vl2.errors import UserError
from vl2.infer.constraint import Constraint, JsonSchema, keep_allowed
from vl2.infer.constraint_boxes import ALPHABET, ONE_GROUP, SHORTEST, BoxListState, WellFormedBoxes
from vl2.infer.sampling import GenerateOptions, choose_token
from vl2.infer.vlm import Request
from vl2.process.grounding import LabeledBoxes, format_boxes, parse_strict

TOKENIZER = reference_vlm("base").processor.tokenizer
SQUARE = str(IMAGES / "square384.png")
RECEIPT = {
    "type": "object",
    "properties": {
        "shop": {"type": "string", "maxLength": 8},
        "total": {"type": "number"},
        "paid": {"type": "boolean"},
        "items": {"type": "array", "items": {"enum": ["tea", "coffee"]}, "maxItems": 3},
    },
    "required": ["shop", "total", "paid", "items"],
    "additionalProperties": False,
}


TAGS = set(TOKENIZER.special_ids.values())


def random_answer(constraint: Constraint, seed: int, max_new_tokens: int) -> tuple[str, bool]:
    """Return a text drawn from what is allowed, often a tag or the end, and whether it ended by itself."""
    state = constraint.start(TOKENIZER, max_new_tokens)
    rng = random.Random(seed)
    ids: list[int] = []
    for left in range(max_new_tokens, 0, -1):
        allowed = state.allowed(left).nonzero().flatten().tolist()
        assert allowed
        tags = [i for i in allowed if i in TAGS]
        token_id = rng.choice(tags if tags and rng.random() < 0.2 else allowed)
        if token_id == TOKENIZER.eos_id:
            return TOKENIZER.decode(ids), True
        ids.append(token_id)
        state.advance(token_id)
    return TOKENIZER.decode(ids), False


def is_ordered(entries: list[LabeledBoxes]) -> bool:
    return all(x0 <= x1 and y0 <= y1 for entry in entries for x0, y0, x1, y1 in entry.boxes)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 120))
def test_any_answer_with_well_formed_boxes_is_read_by_the_strict_parser(seed: int, max_new_tokens: int) -> None:
    text, _ = random_answer(WellFormedBoxes(), seed, max_new_tokens)
    assert is_ordered(parse_strict(text))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(ONE_GROUP, 150))
def test_an_answer_of_boxes_only_has_one_and_nothing_else(seed: int, max_new_tokens: int) -> None:
    text, _ = random_answer(WellFormedBoxes(only_boxes=True), seed, max_new_tokens)
    entries = parse_strict(text)
    assert entries
    assert is_ordered(entries)
    assert "".join(format_boxes(entry.label, entry.boxes) for entry in entries) == text


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 100), st.booleans())
def test_from_anywhere_the_promised_number_of_tokens_ends_an_answer(seed: int, before: int, only_boxes: bool) -> None:
    state = WellFormedBoxes(only_boxes=only_boxes).start(TOKENIZER, 1000)
    rng = random.Random(seed)
    ids: list[int] = []

    def draw(num_left: int) -> bool:
        allowed = [i for i in state.allowed(num_left).nonzero().flatten().tolist() if i != TOKENIZER.eos_id]
        if not allowed:
            return False
        tags = [i for i in allowed if i in TAGS]
        ids.append(rng.choice(tags if tags and rng.random() < 0.2 else allowed))
        state.advance(ids[-1])
        return True

    for left in range(1000, 1000 - before, -1):
        assert draw(left)
    for left in range(state.num_to_finish, 0, -1):
        if not draw(left):
            break
    assert is_ordered(parse_strict(TOKENIZER.decode(ids)))


def test_random_answers_reach_boxes_labels_and_free_text() -> None:
    texts = [random_answer(WellFormedBoxes(), seed, 120)[0] for seed in range(30)]
    found = [parse_strict(text) for text in texts]
    assert sum(map(len, found)) > 10
    assert any(len(entry.boxes) > 1 for entries in found for entry in entries)
    assert any("<|ref|>" in text and not text.startswith("<|ref|>") for text in texts)


def test_boxes_only_need_room_for_a_box() -> None:
    with pytest.raises(UserError, match=f"at least {ONE_GROUP} "):
        WellFormedBoxes(only_boxes=True).start(TOKENIZER, ONE_GROUP - 1)


@given(st.text("".join(sorted(ALPHABET)), max_size=40))
def test_a_list_state_takes_exactly_the_characters_that_can_be_finished(text: str) -> None:
    state = BoxListState()
    for char in text:
        after = state.push(char)
        if after is None:
            continue
        assert after.num_chars_left <= SHORTEST + 1
        state = after
    # From anywhere, the shortest way on ends within the promised number of characters.
    for _ in range(state.num_chars_left):
        if state.is_end:
            break
        state = next(s for c in "],[ 9" if (s := state.push(c)) and s.num_chars_left < state.num_chars_left)
    assert state.is_end


@pytest.mark.parametrize(
    "text", ["[[1, 2, 3, 4]]", "[[0, 0, 0, 0]]", "[[5, 6, 999, 77], [100, 20, 100, 20]]", "[[9, 9, 10, 10]]"]
)
def test_lists_as_they_were_trained_are_taken(text: str) -> None:
    end = BoxListState().push(text)
    assert end is not None
    assert end.is_end


@pytest.mark.parametrize(
    "text",
    ["[]", "[[1000", "[[01", "[[1,2", "[[1, 2]", "[[10, 2, 3,", "[[1, 20, 3, 19]", "[[1, 2, 3, 4, 5", "[[1, 2, 3, 4]],",
     "[[١", "[[-1", "[[1, 2, 3, 4],["],
)  # fmt: skip
def test_what_is_no_list_is_refused(text: str) -> None:
    assert BoxListState().push(text) is None


def test_a_tag_cannot_be_spelled_out_of_ordinary_tokens() -> None:
    state = WellFormedBoxes().start(TOKENIZER, 100)
    ids = TOKENIZER.encode("<|det|>", specials="none")
    assert len(ids) > 1
    for token_id in ids[:-1]:
        assert state.allowed(50)[token_id]
        state.advance(token_id)
    assert not state.allowed(50)[ids[-1]]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_any_finished_answer_fits_its_schema(seed: int) -> None:
    text, has_ended = random_answer(JsonSchema(RECEIPT), seed, 400)
    if has_ended:
        jsonschema.validate(json.loads(text), RECEIPT)


def test_random_answers_do_finish_a_schema() -> None:
    assert any(random_answer(JsonSchema(RECEIPT), seed, 400)[1] for seed in range(10))


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "foo"}, "Invalid type"),
        ({"not": {"type": "string"}}, "Unimplemented"),
        ({"$ref": "http://example.com/x"}, "does not fetch"),
        ({"$ref": "#/definitions/missing"}, "does not exist"),
        ({"type": "string", "pattern": "(?=x)"}, "look-around"),
        ({"enum": [float("nan")]}, "not JSON"),
        ({"description": "x" * 100_001}, "at most 100000 characters"),
        ([], "must be an object"),
        ("object", "must be an object"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused(schema: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        JsonSchema(schema)


def test_a_schema_nested_too_deep_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(5000):
        schema = {"items": schema}
    with pytest.raises(UserError, match="nested"):
        JsonSchema(schema)


def test_a_model_answers_within_its_constraint_beside_others_that_have_none() -> None:
    vlm = reference_vlm("base")
    messages = [{"role": "user", "content": [{"type": "image", "image": SQUARE}, {"type": "text", "text": "Tea?"}]}]
    options = [
        GenerateOptions(max_new_tokens=200, constraint=JsonSchema(RECEIPT), no_repeat_ngram_size=2),
        GenerateOptions(max_new_tokens=60, constraint=WellFormedBoxes(only_boxes=True)),
        GenerateOptions(max_new_tokens=20),
    ]
    form, boxes, free = vlm.batch([Request(messages=messages, options=o) for o in options])
    assert form.finish_reason == "stop"
    jsonschema.validate(json.loads(form.text), RECEIPT)
    assert parse_strict(boxes.text)
    assert free.token_ids == vlm.generate(messages, max_new_tokens=20).token_ids


def test_more_logits_than_ids_are_forbidden_and_the_guard_yields_to_the_constraint() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, 3.0])
    allowed = torch.tensor([True, False, True])
    assert keep_allowed(logits, allowed).isfinite().tolist() == [True, False, True, False]
    options = GenerateOptions(no_repeat_ngram_size=1)
    generator = torch.Generator()
    only_zero = torch.tensor([True, False, False])
    assert choose_token(logits, options, seen_ids={0}, new_ids=[0], generator=generator, allowed_V=only_zero) == 0


@given(st.lists(st.integers(0, 999), max_size=3), st.sampled_from(["", "0", "1", "12", "999"]))
def test_what_was_written_before_the_open_number_changes_nothing_but_its_least_value(numbers, digits) -> None:
    state = BoxListState("number", tuple(numbers), digits)
    forgetful = state.without_past()
    for text in (*map(str, range(0, 1000, 7)), ",", "]", "]]", "],", ", ", "x"):
        after, same = state.push(text), forgetful.push(text)
        assert (after is None) == (same is None)
        assert after is None or same is None or after.num_chars_left == same.num_chars_left


def test_a_box_list_shrinks_with_every_digit() -> None:
    states = [BoxListState().push("[[" + digits) for digits in ("", "1", "12", "123")]
    assert all(a and b and a.num_chars_left > b.num_chars_left for a, b in pairwise(states))
