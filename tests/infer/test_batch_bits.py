"""The answers of a batch in bfloat16 are those of one by one, token by token, also where two tokens nearly tie."""

from __future__ import annotations

import pytest

import vl2
from vl2.infer.sequence import Limits
from vl2.kernels import load_kernels

QUESTIONS = [
    "What is this?",
    "Add 3 and 4.",
    "Name a colour.",
    "Who are you, and what can you read?",
    "好",
    "Tell a tale.",
]


@pytest.mark.skipif(load_kernels() is None, reason="no compiler here, and no kernels were built before")
@pytest.mark.parametrize("cache", ["auto", "int8"])
@pytest.mark.parametrize("weights", ["auto", "int8", "int4"])
def test_a_batch_in_bfloat16_answers_as_one_by_one(weights: str, cache: str) -> None:
    limits = Limits(max_num_seqs=4)
    vlm = vl2.load("nano", device="cpu", dtype="bfloat16", weights=weights, cache=cache, limits=limits)
    messages = [[{"role": "user", "content": question}] for question in QUESTIONS]
    together = vlm.batch(messages, max_new_tokens=24)
    alone = [vlm.generate(turns, max_new_tokens=24) for turns in messages]
    assert [reply.token_ids for reply in together] == [reply.token_ids for reply in alone]
    assert len({reply.token_ids for reply in alone}) > 1
