"""How large a model is: parameters in all and per token, cache per token. Bytes are in `vl2.infer.memory_plan`.

Counted from the configuration on the meta device; no weight is read. Golden: the parameter totals of
the released files, in tests/weights/test_size.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vl2.config import ModelConfig
from vl2.model import VL2, Cache
from vl2.model.empty import shapes_only


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
        with shapes_only():
            model = VL2(config)
        language = config.language_config
        counts = {name: tensor.numel() for name, tensor in model.state_dict().items()}

        def total(*parts: str) -> int:
            return sum(count for name, count in counts.items() if any(part in name for part in parts))

        routed = total(".mlp.experts.")
        share = (language.num_experts_per_tok or 0) / (language.n_routed_experts or 1)
        in_language = total("language.")
        pool = total("vision.attn_pool.")
        cache = Cache.allocate(language, 1, 1, dtype=torch.int8, device=torch.device("meta"))
        return cls(
            config=config,
            vision=total("vision.") - pool,
            attention_pool=pool,
            projector=total("projector.", "image_newline", "view_separator"),
            language=in_language,
            language_active=in_language - total("embed_tokens") - routed + round(routed * share),
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
