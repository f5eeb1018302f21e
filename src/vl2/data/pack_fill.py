"""Tell how full packs are, and what to change where they are not. Padding is computed for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from vl2.data.index import Ints
from vl2.data.pack import Packing, make_packs

LEAST = 0.8  # below, there is a warning
_AT_LIMIT = 0.8  # share of the tile limit from which a pack counts as limited by it
_DRAWN = 2000  # records that an estimate packs


@dataclass(frozen=True, kw_only=True)
class PackFill:
    """How full some packs are on average."""

    fill: float  # share of the places that hold tokens
    mean_tiles: float
    packing: Packing

    @classmethod
    def of(cls, packs: Sequence[tuple[int, int]], packing: Packing) -> PackFill:
        """Measure packs of (tokens, tiles)."""
        assert packs, "no packs"
        tokens, tiles = (sum(column) / len(packs) for column in zip(*packs, strict=True))
        return cls(fill=tokens / packing.seq_len, mean_tiles=tiles, packing=packing)

    @classmethod
    def estimate(cls, tokens: Ints, tiles: Ints, packing: Packing, seed: int = 0) -> PackFill | None:
        """Pack random draws of records with these counts. Return None if none of them fits into a sequence."""
        fits = tokens <= packing.seq_len
        if not fits.any():
            return None
        drawn = np.random.default_rng(seed).integers(int(fits.sum()), size=_DRAWN)
        tokens, tiles = tokens[fits][drawn], tiles[fits][drawn]
        packs = make_packs(tokens, tiles, packing)
        return cls.of([(int(tokens[pack].sum()), int(tiles[pack].sum())) for pack in packs], packing)

    @property
    def is_limited_by_tiles(self) -> bool:
        return self.mean_tiles >= _AT_LIMIT * self.packing.max_tiles

    @property
    def warning(self) -> str | None:
        """One sentence that says what to change, or None if packs are full enough or records are not packed."""
        if not self.packing.is_packed or self.fill >= LEAST:
            return None
        start = f"packs of {self.packing.seq_len:,} tokens are only {self.fill:.0%} full"
        if self.is_limited_by_tiles:
            # With twice the tiles a pack is twice as full, as long as tiles are the limit.
            wanted = ceil(self.packing.max_tiles / self.fill)
            return (
                f"{start}, because they have the most tiles that are allowed, {self.packing.max_tiles}: set "
                f"stage.max_tiles_per_pack to about {wanted}"
            )
        return (
            f"{start}, because few records fit together: raise data.window_packs, from which records are chosen, or "
            f"set stage.seq_len to about {max(1, round(self.fill * self.packing.seq_len)):,}"
        )
