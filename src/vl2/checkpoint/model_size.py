"""The size of a model: parameters in all and per token, bytes of each part, cache per token.

Counted from the configuration on the meta device; no weight is read. What a model needs to run is in
`vl2.checkpoint.memory_plan`. Golden: the parameter totals of the released files, in tests/checkpoint/test_size.py.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from vl2.checkpoint.empty_model import build_empty
from vl2.config import ModelConfig
from vl2.dtypes import DTYPES
from vl2.model import Cache
from vl2.quant.quantize_model import Scheme, scheme_named

POOL, VISION, PROJECTOR = BESIDE_LANGUAGE = ("attention pool (unused)", "vision encoder", "projector")
TABLE, EXPERTS = "token table", "routed experts"
# Parts of the names in the state dict, the first that fits.
PARTS = {
    POOL: ("vision.attn_pool.",),
    VISION: ("vision.",),
    PROJECTOR: ("projector.", "image_newline", "view_separator"),
    TABLE: (".embed_tokens.",),
    EXPERTS: (".mlp.experts.",),
    "shared experts": (".shared_experts.",),
    "attention": (".self_attn.",),
    "routers and norms": (".gate.", "norm."),
    "dense layers": (".mlp.",),
    "head": (".lm_head.",),
}
UNREAD = (TABLE, POOL)  # of the table one row, of the pool nothing


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Parameter counts of the parts, and what follows from them."""

    config: ModelConfig
    vision: int
    attention_pool: int  # in the files, never used
    projector: int  # with newline and separator
    language: int
    language_active: int  # read for one token: routed experts counted K of E, the token table not at all
    cache_values_per_token: int

    @classmethod
    def of(cls, config: ModelConfig) -> ModelSize:
        parts = parameters(config)
        in_language = {part: count for part, count in parts.items() if part not in BESIDE_LANGUAGE}
        active = sum(round(count * share_at_work(config, part)) for part, count in in_language.items())
        cache = Cache.allocate(config.language_config, 1, 1, dtype=torch.int8, device=torch.device("meta"))
        return cls(
            config=config,
            vision=parts[VISION],
            attention_pool=parts.get(POOL, 0),
            projector=parts[PROJECTOR],
            language=sum(in_language.values()),
            language_active=active,
            cache_values_per_token=cache.nbytes,
        )

    @property
    def parameters(self) -> int:
        return self.vision + self.attention_pool + self.projector + self.language

    @property
    def active(self) -> int:
        """Parameters at work for one token of an image and its text: encoder, projector and active language model."""
        return self.vision + self.projector + self.language_active

    def to_dict(self) -> dict[str, Any]:
        language = self.config.language_config
        return {
            "parameters": self.parameters,
            "active": self.active,
            "vision": self.vision,
            "attention_pool": self.attention_pool,
            "projector": self.projector,
            "language": self.language,
            "language_active": self.language_active,
            "layers": language.num_hidden_layers,
            "hidden_size": language.hidden_size,
            "experts": language.n_routed_experts,
            "experts_per_token": language.num_experts_per_tok,
            "attention": "latent" if language.use_mla else "multi-head",
            "vocabulary": language.vocab_size,
            "context": language.max_position_embeddings,
            "tile_px": self.config.vision_config.image_size,
            "cache_bytes_per_token": {
                "float32": self.cache_values_per_token * 4,
                "bfloat16": self.cache_values_per_token * 2,
            },
        }


def weight_bytes(config: ModelConfig, weights: str | Scheme, dtype: torch.dtype | None = None) -> dict[str, int]:
    """Return the bytes of each part of a model whose weights are held in one of the formats, or by a scheme.

    `dtype` is of what a scheme leaves as it is, None for the checkpoint's own.
    """
    if isinstance(weights, str) and weights in DTYPES:
        model = build_empty(config, dtype=DTYPES[weights])
    else:
        scheme = scheme_named(weights) if isinstance(weights, str) else weights
        model = build_empty(config, scheme, dtype or getattr(torch, config.torch_dtype))
    return _by_part({name: tensor.nbytes for name, tensor in model.state_dict().items()})


def parameters(config: ModelConfig) -> dict[str, int]:
    """Return the number of parameters of each part."""
    return _by_part({name: tensor.numel() for name, tensor in build_empty(config).state_dict().items()})


def count_parameters(config: ModelConfig) -> int:
    """Return the number of parameters, however they are held."""
    return sum(parameter.numel() for parameter in build_empty(config).parameters())


def share_at_work(config: ModelConfig, part: str) -> float:
    """Return how much of a part works for one token of an image and its text."""
    language = config.language_config
    if part == EXPERTS:
        return (language.num_experts_per_tok or 0) / (language.n_routed_experts or 1)
    return 0.0 if part in UNREAD else 1.0


def _by_part(counts: dict[str, int]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for name, count in counts.items():
        part = next(part for part, marks in PARTS.items() if any(mark in name for mark in marks))
        total[part] += count
    return {part: total[part] for part in PARTS if total[part]}
