"""The guard against loops: what is one and what is not, and an answer that it ends."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import reference_vlm
from vl2.errors import UserError
from vl2.infer.constraint_boxes import WellFormedBoxes
from vl2.infer.repetition import MAX_PERIOD, MIN_LOOP, ends_in_loop
from vl2.infer.sampling import GenerateOptions
from vl2.infer.sequence import start_sequence, step_sequence
from vl2.process.conversation import user_turn
from vl2.process.grounding import parse_strict
from vl2.process.tokenizer import Tokenizer


@given(
    st.lists(st.integers(0, 3), max_size=30),
    st.lists(st.integers(0, 50), min_size=1, max_size=40),
    st.integers(2, 8),
    st.integers(0, 9),
)
def test_a_passage_that_comes_again_and_again_is_found_where_it_becomes_one(start, passage, repeats, more):
    times = max(repeats, -(-MIN_LOOP // len(passage)))
    assert ends_in_loop([*start, *passage * times], repeats)
    assert ends_in_loop([*start, *passage * times, *passage[: more % len(passage)]], repeats) in (True, False)
    assert not ends_in_loop([*start, *passage * times, -1], repeats)


@given(st.lists(st.integers(0, 10**6), unique=True, max_size=300), st.integers(2, 8))
def test_ids_that_are_all_different_are_no_loop(ids, repeats):
    assert not ends_in_loop(ids, repeats)


def test_short_rows_of_the_same_are_no_loop():
    assert not ends_in_loop([7] * (MIN_LOOP - 1), 2)
    assert ends_in_loop([7] * MIN_LOOP, 2)
    assert not ends_in_loop(list(range(MAX_PERIOD + 1)) * 5, 2)


class AlwaysThese:
    """A constraint that lets the same few ids come round and round."""

    num_to_finish = 0

    def __init__(self, ids: list[int], size: int = 0) -> None:
        self.ids, self.size, self.count = ids, size, 0

    def start(self, tokenizer: Tokenizer, max_new_tokens: int) -> AlwaysThese:
        return AlwaysThese(self.ids, tokenizer.num_ids)

    def allowed(self, num_left: int) -> torch.Tensor:
        mask = torch.zeros(self.size, dtype=torch.bool)
        mask[self.ids[self.count % len(self.ids)]] = True
        return mask

    def advance(self, token_id: int) -> None:
        self.count += 1


def test_a_looping_answer_is_ended_and_says_why():
    vlm = reference_vlm("base")
    looping = {"max_new_tokens": 60, "constraint": AlwaysThese([200, 201, 202, 203, 204])}
    assert vlm.chat("hello", **looping).finish_reason == "length"
    reply = vlm.chat("hello", max_repeats=4, **looping)
    assert reply.finish_reason == "repetition"
    assert len(reply.token_ids) == 35  # the first whole number of passages of at least MIN_LOOP tokens


def test_boxes_that_loop_are_ended_whole():
    processor = reference_vlm("base").processor
    tokenizer = processor.tokenizer
    options = GenerateOptions(max_new_tokens=2000, max_repeats=4, constraint=WellFormedBoxes())
    sequence = start_sequence(0, processor.encode([user_turn("Where?", ())]), options, 2000, tokenizer)
    wanted = tokenizer.encode("<|ref|>cup<|/ref|><|det|>[[1, 2, 30, 4" + "], [1, 2, 30, 4" * 100)
    for token_id in wanted:
        event = step_sequence(
            sequence, torch.nn.functional.one_hot(torch.tensor(token_id), tokenizer.num_ids).float(), tokenizer.eos_id
        )
        if event.finish_reason is not None:
            break
    assert event.finish_reason == "repetition"
    (cups,) = parse_strict(tokenizer.decode(sequence.new_ids))
    assert (cups.label, cups.boxes[0]) == ("cup", (1, 2, 30, 4))
    assert 4 <= len(cups.boxes) < 12


def test_one_repeat_is_refused():
    with pytest.raises(UserError, match="max_repeats must be at least 2"):
        GenerateOptions(max_repeats=1)
