"""Compute the size of a model: total and active parameters, bytes of each part, KV cache per token.

Everything is counted from the configuration on the meta device, so no weight is read. `vl2.checkpoint.memory_plan`
computes what a model needs to run. Golden: parameter totals of the released files, in tests/checkpoint/test_size.py.
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
from vl2.model.int8_cache import Int8Cache
from vl2.quant.quantize_model import Scheme, scheme_named

POOL, VISION, PROJECTOR = BESIDE_LANGUAGE = ("attention pool (unused)", "vision encoder", "projector")
TABLE, EXPERTS = "token table", "routed experts"
# Substrings of the names in the state dict. The first part that matches a name counts.
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
UNREAD = (TABLE, POOL)  # not read for a token: a lookup reads one row of the table, and nothing reads the pool


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Number of parameters of each part, and numbers derived from them."""

    config: ModelConfig
    vision: int
    attention_pool: int  # stored in the files, but never used
    projector: int  # includes the image newline and the view separator
    language: int
    language_active: int  # read for one token: K of the E routed experts, and nothing of the token table
    cache_values_per_token: int
    int8_cache_bytes_per_token: int  # codes and scales

    @classmethod
    def of(cls, config: ModelConfig) -> ModelSize:
        parts = parameters(config)
        in_language = {part: count for part, count in parts.items() if part not in BESIDE_LANGUAGE}
        active = sum(round(count * share_at_work(config, part)) for part, count in in_language.items())
        meta = torch.device("meta")
        cache = Cache.allocate(config.language_config, 1, 1, dtype=torch.int8, device=meta)
        return cls(
            config=config,
            vision=parts[VISION],
            attention_pool=parts.get(POOL, 0),
            projector=parts[PROJECTOR],
            language=sum(in_language.values()),
            language_active=active,
            cache_values_per_token=cache.nbytes,
            int8_cache_bytes_per_token=Int8Cache.empty(config.language_config, 1, 1, device=meta).nbytes,
        )

    @property
    def parameters(self) -> int:
        return self.vision + self.attention_pool + self.projector + self.language

    @property
    def active(self) -> int:
        """Active parameters of the whole model: encoder, projector, and what the language model reads per token."""
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
                "int8": self.int8_cache_bytes_per_token,
            },
        }


def weight_bytes(config: ModelConfig, weights: str | Scheme, dtype: torch.dtype | None = None) -> dict[str, int]:
    """Return the bytes of each part of a model whose weights are held in a format or by a quantization scheme.

    `dtype` is the type of weights that the scheme does not quantize; None is the checkpoint's own type.
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
    """Return the total number of parameters, independent of how they are quantized."""
    return sum(parameter.numel() for parameter in build_empty(config).parameters())


def share_at_work(config: ModelConfig, part: str) -> float:
    """Return the fraction of a part's parameters that are active for one token."""
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
