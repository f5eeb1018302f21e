"""The paper's figures, and which of its sizes a model has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files

from vl2.config import ModelConfig, preset

SIZES = ("tiny", "small", "base")
_PARAMETERS = {"tiny": 3.371e9, "small": 16.148e9, "base": 27.480e9}  # all of the checkpoint's


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One model of the paper's tables."""

    model: str
    activated: str  # parameters, as printed; "" where the table does not say
    figures: Mapping[str, float]


@lru_cache(maxsize=1)
def rows() -> tuple[PublishedRow, ...]:
    """Return all rows, this model's three sizes first."""
    content = json.loads(files("vl2.eval").joinpath("published.json").read_text(encoding="utf-8"))
    return tuple(PublishedRow(**row) for row in content["rows"])


def released_size(config: ModelConfig) -> str | None:
    """Return the released size that a configuration is of, by all that its arithmetic depends on; None for others.

    What only training reads, and the longest conversation, may differ: a fine-tuned model has the size that it had.
    """
    return next((size for size in SIZES if _arithmetic_of(preset(size)) == _arithmetic_of(config)), None)


def size_of_count(num_parameters: int) -> str | None:
    """Return the released size with this number of parameters, to a hundredth; None for another number."""
    return next((s for s, count in _PARAMETERS.items() if abs(num_parameters - count) <= count / 100), None)


def _arithmetic_of(config: ModelConfig) -> ModelConfig:
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
    """Return the figure of a model in a column, None where the paper has none."""
    return next((row.figures.get(column) for row in rows() if row.model == model), None)


def column(name: str) -> list[tuple[PublishedRow, float]]:
    """Return every model's figure of a column."""
    return [(row, row.figures[name]) for row in rows() if name in row.figures]
