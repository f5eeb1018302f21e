"""Small configurations of every kind, made from a golden checkpoint's."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import torch

from tests.reference import CHECKPOINTS
from vl2.config import ModelConfig
from vl2.model import VL2, init_weights


@cache
def _raw(size: str) -> dict[str, Any]:
    return json.loads((CHECKPOINTS / size / "config.json").read_text(encoding="utf-8"))


def small_config(size: str = "base", **language: Any) -> ModelConfig:
    raw = _raw(size)
    return ModelConfig.from_dict({**raw, "language_config": {**raw["language_config"], **language}})


def small_model(size: str = "base", seed: int = 0, **language: Any) -> VL2:
    """A random model whose weights are large enough for every layer to matter."""
    model = VL2(small_config(size, initializer_range=0.2, **language))
    init_weights(model, seed)
    bias_generator = torch.Generator().manual_seed(seed)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(0, 0.1, generator=bias_generator)
    return model.eval()
