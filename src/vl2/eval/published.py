"""Look up the figures of the paper's tables, and which of the released sizes a model has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files

from vl2.config import ModelConfig, preset

SIZES = ("tiny", "small", "base")
_PARAMETERS = {"tiny": 3.371e9, "small": 16.148e9, "base": 27.480e9}  # all parameters of the checkpoint


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One model of the paper's tables."""

    model: str
    activated: str  # activated parameters, as printed; "" if the table does not give them
    figures: Mapping[str, float]


@lru_cache(maxsize=1)
def rows() -> tuple[PublishedRow, ...]:
    """Return all rows, DeepSeek-VL2's three sizes first."""
    content = json.loads(files("vl2.eval").joinpath("published.json").read_text(encoding="utf-8"))
    return tuple(PublishedRow(**row) for row in content["rows"])


def released_size(config: ModelConfig) -> str | None:
    """Return the released size whose computation a configuration has in common; None if there is none.

    Fields that only training uses, and the maximum context, may differ, so a fine-tuned model keeps its size.
    """
    if config.kind != "DeepSeek-VL2":
        return None
    return next((size for size in SIZES if _computation_config(preset(size)) == _computation_config(config)), None)


def size_of_count(num_parameters: int) -> str | None:
    """Return the released size with this number of parameters, to within 1 %; None if there is none."""
    return next((s for s, count in _PARAMETERS.items() if abs(num_parameters - count) <= count / 100), None)


def _computation_config(config: ModelConfig) -> ModelConfig:
    given = config.language_config
    language = replace(
        given,
        num_key_value_heads=given.num_kv_heads,
        n_group=given.n_group or 1,
        topk_group=given.topk_group or 1,
        aux_loss_alpha=0.0,
        seq_aux=True,
        initializer_range=0.0,
        max_position_embeddings=1,
    )
    return replace(config, language_config=language, vision_config=replace(config.siglip, global_pool=""))


def published(column: str, model: str) -> float | None:
    """Return the figure of a model in a column, or None if the paper has none."""
    return next((row.figures.get(column) for row in rows() if row.model == model), None)


def column(name: str) -> list[tuple[PublishedRow, float]]:
    """Return the figures of all models in a column."""
    return [(row, row.figures[name]) for row in rows() if name in row.figures]
