"""Graphs are recorded once and used again, by one call at a time, and never with weights that are gone.

On a CPU the step that would be recorded is run again in the place of its graph; all else is as on a card.
"""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.devices import CPU_AND_CARD_WITH_GRAPHS
from tests.reference import reference_vlm
from tests.runtime.recording import Shape, count_recordings
from vl2.errors import UserError
from vl2.infer.prefill import Reuse
from vl2.infer.sequence import Event, Limits
from vl2.infer.vlm import VLM
from vl2.model import Cache
from vl2.runtime.cuda import CudaGraphRunner

SHORT = "What is this?"
OTHER = "Name a colour."
LONG = "word " * 300


@pytest.fixture(params=CPU_AND_CARD_WITH_GRAPHS)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def recorded(device: str, monkeypatch: pytest.MonkeyPatch) -> list[Shape]:
    """Decode by graphs, and return what is recorded."""
    return count_recordings(device, monkeypatch)


def fresh(device: str, **limits: Any) -> VLM:
    """Return a model that nothing is kept for, neither graphs nor prompts."""
    base = reference_vlm("base")
    model = copy.deepcopy(base.model).to(device, torch.bfloat16 if device == "cuda" else torch.float32)
    reuse = Reuse(encoder_bytes=0, prefix_bytes=0)
    return VLM(model, base.processor, folder=base.folder, limits=Limits(**limits), reuse=reuse)


def kept(vlm: VLM) -> Cache | None:
    assert isinstance(vlm.runner, CudaGraphRunner)
    return None if vlm.runner._kept is None else vlm.runner._kept.cache


def ids(vlm: VLM, text: str, count: int = 6) -> tuple[int, ...]:
    return vlm.chat(text, max_new_tokens=count).token_ids


def plain_ids(text: str, count: int = 6) -> tuple[int, ...]:
    """Return the answer in float32 on a CPU, layer by layer: of a type for which no graphs are made here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CudaGraphRunner, "refusal", staticmethod(lambda model: "not in this test"))
        return ids(fresh("cpu"), text, count)


def test_a_second_call_records_nothing_and_answers_as_a_first_one(device: str, recorded: list[Shape]) -> None:
    vlm = fresh(device)
    answers = [ids(vlm, text) for text in (SHORT, OTHER, SHORT)]
    assert recorded == [(1, 512)]
    assert answers[0] == answers[2] != answers[1]
    assert answers[1] == ids(fresh(device), OTHER)
    if device == "cpu":
        assert answers[:2] == [plain_ids(SHORT), plain_ids(OTHER)]


def test_a_batch_and_a_question_share_the_larger_cache(device: str, recorded: list[Shape]) -> None:
    vlm = fresh(device)
    vlm.batch([[{"role": "user", "content": text}] for text in (SHORT, OTHER, SHORT)], max_new_tokens=4)
    before = kept(vlm)
    assert before is not None
    assert len(before.lengths) == 3
    first = list(recorded)
    assert ids(vlm, OTHER) == ids(fresh(device), OTHER)
    assert kept(vlm) is before
    # Of the question alone nothing is new but, where the batch never had one row, its number of rows.
    assert set(recorded[len(first) :]) <= {(1, 512)}


def test_a_cache_that_is_too_small_goes_before_a_larger_one_is_made(
    device: str, recorded: list[Shape], monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = fresh(device)
    ids(vlm, SHORT)
    first = kept(vlm)
    assert first is not None
    gone, there, allocate = weakref.ref(first), list[bool](), Cache.allocate
    del first

    def watched(*arguments: Any, **options: Any) -> Cache:
        there.append(gone() is not None)
        return allocate(*arguments, **options)

    monkeypatch.setattr(Cache, "allocate", watched)
    ids(vlm, LONG)
    grown = kept(vlm)
    assert grown is not None
    assert there == [False]
    assert 512 < grown.capacity == 1024
    ids(vlm, SHORT)
    assert kept(vlm) is grown
    assert there == [False]
    assert recorded == [(1, 512), (1, 1024), (1, 512)]


def test_an_answer_that_outgrows_its_graph_goes_on_with_the_next(device: str, recorded: list[Shape]) -> None:
    vlm = fresh(device)
    text = "word " * 1
    while len(vlm.processor.encode([{"role": "user", "content": text}])) < 505:
        text += "word "
    answer = ids(vlm, text, 16)
    assert recorded == [(1, 512), (1, 1024)]
    assert len(answer) == 16
    if device == "cpu":
        assert answer == plain_ids(text, 16)


def test_two_at_once_have_each_a_cache_of_its_own(device: str, recorded: list[Shape]) -> None:
    vlm = fresh(device)
    alone = {text: ids(fresh(device), text, 8) for text in (SHORT, OTHER, LONG)}
    ids(vlm, OTHER)
    first = kept(vlm)
    assert first is not None
    slow = vlm.events([{"role": "user", "content": SHORT}], max_new_tokens=8)
    begun = [next(slow), next(slow)]
    assert kept(vlm) is None
    assert ids(vlm, OTHER, 8) == alone[OTHER]
    second = kept(vlm)
    assert second is not None
    assert second is not first
    begun.append(next(slow))
    assert ids(vlm, LONG, 8) == alone[LONG]
    larger = kept(vlm)
    answer = [event.token_id for event in [*begun, *slow]]
    assert tuple(answer) == alone[SHORT]
    assert larger is not None
    assert kept(vlm) is larger, "of both the larger is kept"


def closed(events: Iterator[Event]) -> None:
    events.close()  # type: ignore[attr-defined]


def abandoned(events: Iterator[Event]) -> None:
    """Leave it to its caller, who forgets it."""


def thrown_at(events: Iterator[Event]) -> None:
    with pytest.raises(KeyboardInterrupt):
        events.throw(KeyboardInterrupt())  # type: ignore[attr-defined]


@pytest.mark.parametrize("end", [closed, abandoned, thrown_at])
def test_an_answer_that_is_not_heard_out_gives_back_what_it_had(end: Any, device: str, recorded: list[Shape]) -> None:
    vlm = fresh(device)
    events = vlm.events([{"role": "user", "content": SHORT}], max_new_tokens=8)
    next(events)
    next(events)
    assert kept(vlm) is None
    end(events)
    del events
    cache = kept(vlm)
    assert cache is not None
    assert ids(vlm, OTHER) == ids(fresh(device), OTHER)
    assert kept(vlm) is cache
    assert recorded == [(1, 512)] * 2  # one is the other model's


def test_an_error_on_the_way_gives_back_what_was_lent(device: str, recorded: list[Shape]) -> None:
    vlm, checks = fresh(device), iter([False, False, False])
    with pytest.raises(RuntimeError, match="StopIteration"):
        vlm.batch([[{"role": "user", "content": SHORT}]], max_new_tokens=8, is_cancelled=lambda: next(checks))
    cache = kept(vlm)
    assert cache is not None
    assert ids(vlm, OTHER) == ids(fresh(device), OTHER)
    assert kept(vlm) is cache
    assert recorded == [(1, 512)] * 2


def test_what_an_earlier_answer_left_behind_is_not_seen(device: str, recorded: list[Shape]) -> None:
    vlm = fresh(device)
    ids(vlm, SHORT)
    cache = kept(vlm)
    assert cache is not None
    with torch.inference_mode():
        for layer in cache.layers:
            for t in layer:
                t.fill_(float("nan"))
    assert ids(vlm, OTHER) == ids(fresh(device), OTHER)
    assert kept(vlm) is cache


def test_other_weights_get_graphs_of_their_own(device: str, recorded: list[Shape]) -> None:
    vlm = fresh(device)
    ids(vlm, SHORT)
    old = kept(vlm)
    assert old is not None
    gone = weakref.ref(old)
    del old
    head = vlm.model.language.lm_head
    head.weight.data = head.weight.data.flip(0).contiguous()
    vlm.refresh()
    assert ids(vlm, SHORT) != ids(fresh(device), SHORT)
    assert gone() is None
    assert recorded == [(1, 512)] * 3
    with torch.no_grad():
        head.weight.copy_(reference_vlm("base").model.language.lm_head.weight)
    assert ids(vlm, SHORT) == ids(fresh(device), SHORT)


def test_a_model_that_was_moved_or_refreshed_or_has_gone_keeps_nothing(device: str, recorded: list[Shape]) -> None:
    vlm = fresh(device)

    def cache_after_a_call(vlm: VLM) -> weakref.ref[Cache]:
        ids(vlm, SHORT)
        cache = kept(vlm)
        assert cache is not None
        return weakref.ref(cache)

    gc.disable()  # nothing may wait for the garbage collector
    try:
        refreshed = cache_after_a_call(vlm)
        vlm.refresh()
        assert refreshed() is None
        moved, dtype = cache_after_a_call(vlm), vlm.model.dtype
        vlm.model.to("cpu", torch.bfloat16)
        vlm.refresh()
        assert not isinstance(vlm.runner, CudaGraphRunner)
        ids(vlm, SHORT)
        assert moved() is None
        vlm.model.to(device, dtype)
        vlm.refresh()
        left = cache_after_a_call(vlm)
        del vlm
        assert left() is None
    finally:
        gc.enable()


def test_a_cache_is_never_larger_than_the_context_and_a_lack_of_memory_is_said(
    device: str, recorded: list[Shape], monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = fresh(device, max_context=40)
    ids(vlm, SHORT)
    cache = kept(vlm)
    assert cache is not None
    assert cache.capacity == 40
    assert recorded == [(1, 40)]

    def refuse(*_: object, **__: object) -> Cache:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Cache, "allocate", refuse)
    vlm.limits = Limits(max_context=4096)
    with pytest.raises(UserError, match="not enough memory for a cache of 1 rows of 1024 tokens"):
        ids(vlm, LONG)
    assert kept(vlm) is None
