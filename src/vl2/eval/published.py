"""The paper's figures, and which of its sizes is nearest to a model's."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

SIZES = {"tiny": 3.37, "small": 16.1, "base": 27.5}  # all parameters, in thousand millions


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model of the paper's tables."""

    model: str
    activated: str  # parameters, as printed; "" where the table does not say
    figures: Mapping[str, float]


@lru_cache(maxsize=1)
def rows() -> tuple[Row, ...]:
    """Return all rows, this model's three sizes first."""
    content = json.loads(files("vl2.eval").joinpath("published.json").read_text(encoding="utf-8"))
    return tuple(Row(**row) for row in content["rows"])


def nearest_size(num_parameters: int) -> str:
    """Return tiny, small or base by the number of all parameters, on a logarithmic scale."""
    billions = max(num_parameters, 1) / 1e9
    return min(SIZES, key=lambda size: abs(math.log(billions / SIZES[size])))


def published(column: str, model: str) -> float | None:
    """Return the figure of a model in a column, None where the paper has none."""
    return next((row.figures.get(column) for row in rows() if row.model == model), None)


def column(name: str) -> list[tuple[Row, float]]:
    """Return every model's figure of a column."""
    return [(row, row.figures[name]) for row in rows() if name in row.figures]
