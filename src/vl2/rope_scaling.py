"""The configuration of YaRN, which stretches rotary angles over a longer context, as DeepSeek-V2-Lite has it.

Field names are the keys of `rope_scaling` in config.json. Source: arXiv 2309.00071; released DeepSeek-V2 code.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vl2.errors import UserError


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How frequencies, rotated channels and attention scores change with a longer context."""

    type: str
    factor: float  # how many times longer the context became
    original_max_position_embeddings: int  # before it was stretched
    beta_fast: float  # channels with more turns than this in the original context keep their frequency
    beta_slow: float  # channels with fewer turns have it divided by the factor
    mscale: float
    mscale_all_dim: float

    def __post_init__(self) -> None:
        if self.type != "yarn":
            raise UserError(f"language_config.rope_scaling.type must be 'yarn', got {self.type!r}")
        for name in ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise UserError(f"language_config.rope_scaling.{name} must be a positive number, got {value!r}")

    @classmethod
    def from_dict(cls, values: Any) -> RopeScaling:
        """Read the keys of config.json, all of them and no others."""
        names = [f.name for f in dataclasses.fields(cls)]
        if not isinstance(values, Mapping) or set(names) != set(values):
            raise UserError(f"language_config.rope_scaling must be null or have {', '.join(names)}, got {values!r}")
        return cls(**{name: values[name] for name in names})

    @property
    def rotated_scale(self) -> float:
        """The factor of rotated queries and keys."""
        return self._growth(self.mscale) / self._growth(self.mscale_all_dim)

    @property
    def softmax_scale(self) -> float:
        """The factor of attention scores, beside the usual root of the width."""
        return self._growth(self.mscale_all_dim) ** 2

    def _growth(self, weight: float) -> float:
        return 0.1 * weight * math.log(self.factor) + 1 if self.factor > 1 else 1.0
