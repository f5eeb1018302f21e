"""The step that never moves gives what the plain step gives; as a graph it needs a card."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.model.configs import small_model
from tests.reference import assert_near, messages_of, reference_vlm
from vl2.infer.decode_graph import DecodeGraphs, FixedStep
from vl2.infer.generate import decode_plainly
from vl2.infer.prefill import prefill
from vl2.infer.vlm import VLM
from vl2.model import VL2, Cache
from vl2.model.moe import has_grouped_kernel

LENGTHS = (7, 3, 11)


def filled_cache(model: VL2, capacity: int = 24) -> Cache:
    """Rows of unequal length, each read from a prompt of its own."""
    config = model.config.language_config
    cache = Cache.allocate(config, len(LENGTHS), capacity, dtype=model.dtype, device=model.device)
    generator = torch.Generator().manual_seed(0)
    for row, length in enumerate(LENGTHS):
        ids = torch.randint(0, config.vocab_size, (1, length), generator=generator).to(model.device)
        prefill(model, model.language.embed(ids), cache.rows(row, row + 1))
    cache.lengths = list(LENGTHS)
    return cache


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
@torch.inference_mode()
def test_a_step_that_never_moves_is_the_plain_step(size: str) -> None:
    model = small_model(size)
    plain, fixed = filled_cache(model), filled_cache(model)
    step = FixedStep(model, fixed)
    for ids in ([5, 6, 7], [1, 2, 3]):
        step.fill(ids, fixed.lengths)
        step.run()
        ours = step.run()  # again: it writes the same to the same places
        fixed.advance(1)
        assert_near(ours, decode_plainly(model, ids, plain))
    for mine, theirs in zip(fixed.layers, plain.layers, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert_near(a, b)


def test_graphs_are_for_cards_alone() -> None:
    assert not DecodeGraphs.applies(small_model("tiny").to(torch.bfloat16))


@pytest.mark.parametrize(
    ("capability", "hip", "applies"),
    [
        ((8, 0), None, False),
        ((8, 9), None, False),
        ((9, 0), None, True),
        ((10, 3), None, True),
        ((11, 0), None, False),
        ((12, 0), None, False),
        ((9, 4), "6.4", False),
    ],
)
def test_graphs_are_for_cards_with_a_kernel_for_all_experts(
    capability: tuple[int, int], hip: str | None, applies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model("tiny").to(torch.bfloat16)
    monkeypatch.setattr(VL2, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert DecodeGraphs.applies(model) == applies


has_kernel = torch.cuda.is_available() and has_grouped_kernel(torch.cuda.get_device_capability(), torch.version.hip)


@pytest.mark.gpu
@pytest.mark.skipif(not has_kernel, reason="no CUDA device of compute capability 9 or 10")
@torch.inference_mode()
def test_a_graph_gives_what_the_plain_step_gives() -> None:
    model = small_model("base").to("cuda", torch.bfloat16)
    plain, recorded = filled_cache(model), filled_cache(model)
    graphs = DecodeGraphs(model, recorded)
    for ids in ([5, 6, 7], [1, 2, 3], [9, 8, 7]):
        ours = graphs.decode(ids, recorded)
        torch.testing.assert_close(ours, decode_plainly(model, ids, plain), atol=0.3, rtol=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not has_kernel, reason="no CUDA device of compute capability 9 or 10")
def test_a_batch_that_shrinks_is_decoded_by_graphs() -> None:
    base = reference_vlm("base")
    vlm = VLM(copy.deepcopy(base.model).to("cuda", torch.bfloat16), base.processor, folder=base.folder)
    requests = [messages_of("base", case) for case in ("text", "single", "text")]
    replies = vlm.batch(requests, max_new_tokens=6)
    assert [len(reply.token_ids) for reply in replies] == [6, 6, 6]
