"""Find the hashes within a few bits of another one, without comparing it with all.

Multi-index hashing (Norouzi, Punjani, Fleet 2012): a hash is cut into 13 blocks of 19 or 20 bits. If two hashes differ
in at most 25 bits, then in at least one block they differ in at most one, so only hashes that nearly share a block are
compared: of random ones, 1 in 3,000. Nothing within the distance is missed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from vl2.curate.filters.image_hash import HASH_BITS, distance
from vl2.errors import UserError

_BLOCKS = 13
_STARTS = [round(HASH_BITS * block / _BLOCKS) for block in range(_BLOCKS + 1)]
_WIDTHS = [end - start for start, end in pairwise(_STARTS)]
MAX_DISTANCE = 2 * _BLOCKS - 1  # one flipped bit per block; two would mean 211 look-ups a block


class HammingIndex:
    """The hashes added so far, numbered in order. `comparisons` counts how many were looked at in full."""

    def __init__(self, max_distance: int) -> None:
        if not 0 <= max_distance <= MAX_DISTANCE:
            raise UserError(f"max_distance must be in 0..{MAX_DISTANCE} bits of {HASH_BITS}, got {max_distance}")
        self.max_distance = max_distance
        self.comparisons = 0
        self.hashes: list[int] = []
        self._buckets: dict[int, list[int]] = defaultdict(list)
        self._flips = max_distance >= _BLOCKS  # otherwise one block at least is equal

    def __len__(self) -> int:
        return len(self.hashes)

    def add(self, image_hash: int) -> int:
        """Remember a hash; return its number."""
        number = len(self.hashes)
        self.hashes.append(image_hash)
        for key in self._keys(image_hash):
            self._buckets[key].append(number)
        return number

    def near(self, image_hash: int) -> list[int]:
        """Return the numbers of all hashes within `max_distance` bits, the nearest first, then the oldest."""
        found: set[int] = set()
        for key, width in zip(self._keys(image_hash), _WIDTHS, strict=True):
            found.update(self._buckets.get(key, ()))
            for bit in range(width if self._flips else 0):
                found.update(self._buckets.get(key ^ (1 << bit), ()))
        self.comparisons += len(found)
        distances = {number: distance(image_hash, self.hashes[number]) for number in found}
        close = [number for number in found if distances[number] <= self.max_distance]
        return sorted(close, key=lambda number: (distances[number], number))

    @staticmethod
    def _keys(image_hash: int) -> Iterator[int]:
        """Yield each block with its number above its bits, so that one table serves all blocks."""
        for block, (start, width) in enumerate(zip(_STARTS, _WIDTHS, strict=False)):
            bits = (image_hash >> start) & ((1 << width) - 1)
            yield (block << max(_WIDTHS)) | bits
