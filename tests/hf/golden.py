"""The golden checkpoints through transformers. Tests import this after `importorskip`: the extra `hf` is optional."""

from __future__ import annotations

from functools import cache

from tests.reference import CHECKPOINTS
from vl2.hf import VL2ForCausalLM, VL2Processor
from vl2.process.decode import RELEASED_OPTIONS


@cache
def hf_model(size: str) -> VL2ForCausalLM:
    """Shared: a test that changes the model loads its own."""
    return load_hf_model(size)


def load_hf_model(size: str) -> VL2ForCausalLM:
    return VL2ForCausalLM.from_pretrained(CHECKPOINTS / size)


@cache
def hf_processor(size: str) -> VL2Processor:
    return VL2Processor.from_pretrained(CHECKPOINTS / size, image_options=RELEASED_OPTIONS)
