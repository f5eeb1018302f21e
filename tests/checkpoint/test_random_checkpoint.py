"""Random quantized checkpoints: written without a plain one, and usable like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vl2.checkpoint.random_checkpoint import DEVIATION, write_random_checkpoint
from vl2.infer.vlm import load
from vl2.quant.formats import KINDS, Kind
from vl2.quant.modules import QuantizedExperts, QuantizedLinear


@pytest.mark.parametrize("weights", KINDS)
def test_its_weights_are_spread_like_fresh_ones(weights: Kind, tmp_path: Path) -> None:
    write_random_checkpoint("nano", tmp_path / "out", weights=weights)
    vlm = load(tmp_path / "out", device="cpu")
    layer = vlm.model.language.model.layers[1]
    head, experts = vlm.model.language.lm_head, layer.mlp.experts
    assert isinstance(head, QuantizedLinear)
    assert isinstance(experts, QuantizedExperts)
    assert vlm.weights == weights
    for weight in (head.dequantize(torch.float32), experts.dequantize("down", 3, torch.float32)):
        assert weight.std().item() == pytest.approx(DEVIATION, rel=0.05)
        assert abs(weight.mean().item()) < DEVIATION / 50
    assert layer.input_layernorm.weight.eq(1).all()
    assert vlm.chat("Hello", max_new_tokens=3).usage.completion_tokens > 0


def test_a_seed_repeats_it(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_random_checkpoint("nano", tmp_path / name, weights="int4", seed=seed)
    read = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert read[0] == read[1]
    assert read[0] != read[2]
