"""The configuration of YaRN, which stretches rotary angles over a longer context. DeepSeek-V2-Lite uses it.

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
    """YaRN's changes to frequencies, rotated channels and attention scores for a longer context."""

    type: str
    factor: float  # new context length divided by the original one
    original_max_position_embeddings: int  # context length before it was stretched
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
        """Read `rope_scaling` of config.json. Raise UserError unless it has exactly the keys of this class."""
        names = [f.name for f in dataclasses.fields(cls)]
        if not isinstance(values, Mapping) or set(names) != set(values):
            raise UserError(f"language_config.rope_scaling must be null or have {', '.join(names)}, got {values!r}")
        return cls(**{name: values[name] for name in names})

    @property
    def rotated_scale(self) -> float:
        """The factor by which rotated queries and keys are multiplied."""
        return self._growth(self.mscale) / self._growth(self.mscale_all_dim)

    @property
    def softmax_scale(self) -> float:
        """The factor by which attention scores are multiplied, in addition to 1 / sqrt(width)."""
        return self._growth(self.mscale_all_dim) ** 2

    def _growth(self, weight: float) -> float:
        return 0.1 * weight * math.log(self.factor) + 1 if self.factor > 1 else 1.0
