"""Read and write `quantization_config` in config.json, which marks a folder's weights as quantized.

    {"quant_method": "vl2", "version": 1, "weights": "int4", "group_size": 32,
     "parts": {"layers": "int4", "head": "int4", "vision": "int8", "projector": "int8"}}

Readers use `parts`, not the name in `weights`, because a later version may give that name to another choice of parts.
`vl2.quant.formats` describes the layout of the formats in memory, which is also the layout in the files. Any change of
it needs a new version number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vl2.config import Json, ModelConfig
from vl2.errors import UserError
from vl2.quant.formats import GROUP, KINDS
from vl2.quant.quantize_model import Scheme, scheme_named

QUANTIZED = "quantization_config"  # the key of config.json
METHOD, VERSION = "vl2", 1


@dataclass(frozen=True, kw_only=True)
class QuantizationConfig:
    """The content of `quantization_config` in config.json."""

    weights: str  # the name of the scheme
    scheme: Scheme

    @classmethod
    def named(cls, weights: str) -> QuantizationConfig:
        """Return the configuration of the scheme with this name. Raise UserError if there is none."""
        return cls(weights=weights, scheme=scheme_named(weights))

    @classmethod
    def of(cls, config: ModelConfig, folder: Path) -> QuantizationConfig | None:
        """Return the quantization that config.json describes; None for plain weights.

        Raise UserError if it is a method, version or group size that this package cannot read.
        """
        values = config.source.get(QUANTIZED)
        if values is None:
            return None
        if not isinstance(values, Mapping) or values.get("quant_method") != METHOD:
            method = values.get("quant_method") if isinstance(values, Mapping) else values
            raise UserError(f"{folder} is quantized by {method!r}, which is not read here: take the plain checkpoint")
        if values.get("version") != VERSION or values.get("group_size") != GROUP:
            raise UserError(
                f"{folder} is quantized in version {values.get('version')} with groups of {values.get('group_size')}, "
                f"and this program reads version {VERSION} with groups of {GROUP}: quantize the plain checkpoint anew"
            )
        return cls(weights=str(values.get("weights")), scheme=_scheme(values.get("parts"), folder))

    def to_dict(self) -> Json:
        parts = dataclasses.asdict(self.scheme)
        return {
            "quant_method": METHOD,
            "version": VERSION,
            "weights": self.weights,
            "group_size": GROUP,
            "parts": parts,
        }


def _scheme(parts: Any, folder: Path) -> Scheme:
    names = [field.name for field in dataclasses.fields(Scheme)]
    if not isinstance(parts, Mapping) or sorted(parts) != sorted(names):
        raise UserError(f"{folder}: config.json must say for each of {', '.join(names)} how it is quantized")
    wrong = {name: kind for name, kind in parts.items() if kind is not None and kind not in KINDS}
    if wrong:
        name, kind = next(iter(wrong.items()))
        raise UserError(f"{folder}: config.json must hold {', '.join(KINDS)} or null for {name}, got {kind!r}")
    return Scheme(**parts)
