"""Greedy generation against the released implementation: alone, penalised, chunked, cached, and in a batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.reference import (
    CASES,
    SIZES,
    assert_near,
    case_of,
    messages_of,
    model_goldens,
    reference_vlm,
    sample_of,
    tensors_of,
)
from vl2.infer.image_tokens import embed_prompt
from vl2.infer.prefill import prefill
from vl2.infer.vlm import VLM
from vl2.model import Cache
from vl2.process.sample import collate
from vl2.runtime import choose_runner

NEW_TOKENS = 24


def with_limits(vlm: VLM, **changes: Any) -> VLM:
    return VLM(vlm.model, vlm.processor, folder=vlm.folder, limits=replace(vlm.limits, **changes))


def empty_cache(size: str, capacity: int, rows: int = 1) -> Cache:
    model = reference_vlm(size).model
    return Cache.allocate(model.config.language_config, rows, capacity, dtype=model.dtype, device=model.device)


@pytest.mark.parametrize(("size", "case"), CASES)
def test_greedy_tokens_are_the_released_ones(size: str, case: str) -> None:
    reply = reference_vlm(size).generate(messages_of(size, case), max_new_tokens=NEW_TOKENS)
    assert list(reply.token_ids) == case_of(size, case)["generate"]["ids"]
    assert reply.finish_reason == "length"


@pytest.mark.parametrize(("size", "case"), CASES)
def test_the_repetition_penalty_covers_the_prompt_as_released(size: str, case: str) -> None:
    golden = case_of(size, case)["generate_repetition_penalty_1.1"]
    reply = reference_vlm(size).generate(messages_of(size, case), max_new_tokens=NEW_TOKENS, repetition_penalty=1.1)
    assert list(reply.token_ids) == golden["ids"]


@pytest.mark.parametrize(("size", "case"), [c for c in CASES if "generate_logits" in tensors_of(*c)])
def test_the_logits_of_every_greedy_step_are_the_released_ones(size: str, case: str) -> None:
    model, sample, golden = reference_vlm(size).model, sample_of(size, case), tensors_of(size, case)["generate_logits"]
    cache = empty_cache(size, len(sample.input_ids) + len(golden))
    with torch.no_grad():
        runner = choose_runner(model)
        logits = prefill(runner, embed_prompt(runner, sample), cache)
        for step, expected in enumerate(golden):
            assert_near(logits, expected)
            if step + 1 < len(golden):
                logits = runner.decode([int(logits.argmax())], [cache], 1)[0]


@pytest.mark.parametrize("chunk", [1, 7, 64, 1024])
@pytest.mark.parametrize(("size", "case"), [c for c in CASES if case_of(*c).get("incremental_prefilling")])
def test_chunked_prefill_answers_as_a_whole_one(size: str, case: str, chunk: int) -> None:
    vlm = reference_vlm(size)
    sample = sample_of(size, case)
    whole, parts = (empty_cache(size, len(sample.input_ids)) for _ in range(2))
    with torch.no_grad():
        expected = prefill(vlm.runner, embed_prompt(vlm.runner, sample), whole)
        last = prefill(vlm.runner, embed_prompt(vlm.runner, sample), parts, chunk)
    assert_near(last, expected)
    for ours, theirs in zip(parts.layers, whole.layers, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert_near(a, b)
    if chunk == 64 and "incremental64_last_logits" in tensors_of(size, case):
        assert_near(last, tensors_of(size, case)["incremental64_last_logits"])
    reply = with_limits(vlm, prefill_chunk=chunk).generate(messages_of(size, case), max_new_tokens=NEW_TOKENS)
    assert list(reply.token_ids) == case_of(size, case)["generate"]["ids"]


@pytest.mark.parametrize(("size", "case"), CASES)
def test_cached_tokens_are_those_of_one_uncached_pass(size: str, case: str) -> None:
    vlm, sample = reference_vlm(size), sample_of(size, case)
    new = torch.tensor(case_of(size, case)["generate"]["ids"])
    longer = replace(
        sample,
        input_ids=torch.cat((sample.input_ids, new)),
        labels=torch.cat((sample.labels, new)),
        image_mask=torch.cat((sample.image_mask, torch.zeros(len(new), dtype=torch.bool))),
    )
    with torch.no_grad():
        logits = vlm.model(collate([longer])).logits[0, len(sample.input_ids) - 1 : -1]
    assert logits.argmax(-1).tolist() == new.tolist()


@pytest.mark.parametrize("max_num_seqs", [1, 2, 8])
@pytest.mark.parametrize("size", SIZES)
def test_a_batch_of_unequal_prompts_answers_as_one_by_one(size: str, max_num_seqs: int) -> None:
    golden = model_goldens(size)["left_padded_batch"]
    requests = [messages_of(size, case) for case in golden["cases"]]
    replies = with_limits(reference_vlm(size), max_num_seqs=max_num_seqs).batch(requests, max_new_tokens=NEW_TOKENS)
    assert [list(reply.token_ids) for reply in replies] == [row["ids"] for row in golden["rows"]]
