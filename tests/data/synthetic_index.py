"""Indices of sources that do not exist, with lengths and tiles like those of real ones."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from vl2.data.index import SourceIndex
from vl2.grid import num_tiles, num_visual_tokens
from vl2.process.tiling import candidate_canvases

SIDE = 14  # visual tokens along a tile, as released
GRIDS = candidate_canvases(1, 9)

# Median tokens of text, their spread (of the logarithm), images of a sample.
SHAPES = {
    "caption": (180, 0.4, (1,)),
    "interleaved": (700, 0.6, (1, 3, 4)),
    "ocr": (250, 0.9, (1,)),
    "vqa": (120, 0.7, (1,)),
    "document": (500, 0.7, (1, 2)),
    "text": (450, 1.0, (0,)),
}
OTHER = (300, 0.7, (1,))


def make_source(category: str, num_records: int = 4000, seed: int = 0, name: str | None = None) -> SourceIndex:
    """Draw lengths and grids for a source; a few records are longer than 4,096 tokens."""
    rng = np.random.default_rng([seed, *category.encode()])
    median, spread, images = SHAPES.get(category, OTHER)
    text = np.clip(rng.lognormal(np.log(median), spread, num_records), 8, 5000).astype(np.int64)
    tiles, visual = np.zeros(num_records, dtype=np.int64), np.zeros(num_records, dtype=np.int64)
    # Most pictures are near square or 3 : 2, thin ones are rare.
    weights = np.array([1 / max(c, r) * min(c, r) for c, r in GRIDS])
    for record in range(num_records):
        count = int(rng.choice(images))
        chosen = rng.choice(len(GRIDS), count, p=weights / weights.sum())
        grids = [GRIDS[i] for i in chosen] if count <= 2 else [(1, 1)] * count
        tiles[record] = sum(map(num_tiles, grids))
        visual[record] = sum(num_visual_tokens(grid, SIDE) for grid in grids)
    return SourceIndex(
        name=name or f"some-{category}",
        category=category,
        records=np.arange(num_records),
        num_tokens=text + visual,
        num_trained=text // 2,
        num_tiles=tiles,
    )


def make_sources(categories: Iterable[str], num_records: int = 4000) -> list[SourceIndex]:
    return [make_source(category, num_records) for category in sorted(categories)]
