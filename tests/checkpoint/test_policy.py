"""What is refused for want of memory, before a weight is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.reference import CHECKPOINTS
from vl2.checkpoint.memory_plan import MemoryPlan
from vl2.checkpoint.model_size import weight_bytes
from vl2.checkpoint.policy import memory_bytes
from vl2.config import ModelConfig, preset
from vl2.errors import UserError
from vl2.infer.prefill import Reuse
from vl2.infer.vlm import load

FOLDER = CHECKPOINTS / "tiny"
CONFIG = ModelConfig.from_file(FOLDER / "config.json")
CONTEXT = CONFIG.language_config.max_position_embeddings


@pytest.fixture(autouse=True)
def nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("vl2.checkpoint.load.read_model", refuse)


@pytest.mark.parametrize("memory", ["0GB", 0, -1])
def test_no_memory_at_all_is_no_bound(memory: str | int) -> None:
    with pytest.raises(UserError, match=f"memory must be above 0, got {memory}"):
        memory_bytes(memory, torch.device("cpu"))


def test_an_adapter_needs_the_plain_weights_whatever_is_made_of_them() -> None:
    plain, int4 = (MemoryPlan.of(CONFIG, form, CONTEXT).total for form in ("float32", "int4"))
    assert int4 < plain
    with pytest.raises(UserError, match=r"in float32, .*: an adapter is added into plain weights"):
        load(FOLDER, device="cpu", dtype="float32", weights="int4", adapter=Path("any"), memory=plain - 1)


def test_the_cache_of_several_conversations_is_counted() -> None:
    total = MemoryPlan.of(CONFIG, "float32", CONTEXT).total
    with pytest.raises(UserError, match=r"GB are allowed"):
        load(FOLDER, device="cpu", dtype="float32", memory=total, cache_tokens=4 * CONTEXT)


def test_what_is_kept_of_images_and_prompts_is_counted_as_far_as_it_is_kept() -> None:
    plan = MemoryPlan.of(CONFIG, "float32", CONTEXT)
    assert plan.reuse == Reuse().max_bytes == 192 << 20
    with pytest.raises(UserError, match=r"GB are allowed"):
        load(FOLDER, device="cpu", dtype="float32", memory=plan.total - 1)
    none = Reuse(encoder_bytes=0, prefix_bytes=0)
    with pytest.raises(AssertionError, match="weights were read"):
        load(FOLDER, device="cpu", dtype="float32", memory=plan.total - plan.reuse, reuse=none)


def test_what_is_not_quantized_counts_in_the_type_that_it_is_held_in() -> None:
    config = preset("tiny")
    own, wide = (MemoryPlan.of(config, "int4", 4096, dtype=dtype) for dtype in (None, torch.float32))
    assert wide.cache == 2 * own.cache
    assert wide.activations > 1.4 * own.activations
    assert sum(weight_bytes(config, "int4", torch.float32).values()) == wide.weight_bytes > own.weight_bytes
    assert MemoryPlan.of(config, "bfloat16", 4096, dtype=torch.float32) == MemoryPlan.of(config, "bfloat16", 4096)
