"""Samples into packs: sequences that are full of tokens and hold about as many tiles as each other.

Best fit over the samples of one window, large ones first by size, then the small ones as they were drawn: sorted too,
they would share packs with their like, and a step of few packs would hold one kind of sample alone. There are two
budgets. That of tokens is hard and a sample is never cut. That of tiles makes packs cost the vision encoder alike; a
sample with more tiles than that on its own is no reason to lose it, so it gets a pack which only samples without images
may share.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from vl2.data.index import Ints
from vl2.errors import UserError

LARGE = 1 / 8  # of a pack; smaller samples fill what is left in any order
_SCALE = 16
_TAKEN = 2**62  # more than any distance

Chosen = list[int]  # numbers of the samples in one pack, in the order in which they were drawn


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How samples share a sequence. The defaults are the paper's length and packing, and our cap of tiles."""

    seq_len: int = 4096
    max_tiles: int = 16
    is_packed: bool = True  # False: one sample per sequence, as in the paper's first stage

    def __post_init__(self) -> None:
        if self.seq_len < 1 or self.max_tiles < 1:
            raise UserError(f"seq_len and max_tiles must be at least 1, got {self.seq_len} and {self.max_tiles}")


class _Shelf:
    """Open packs by what is left in them: for each number of tiles left, a set of numbers of tokens left.

    A set is the bits of one integer, so that the tightest fit is found by shifting, not by searching.
    """

    def __init__(self, max_tiles: int) -> None:
        self._lefts = [0] * (max_tiles + 1)
        self._packs: dict[tuple[int, int], list[int]] = defaultdict(list)

    def put(self, pack: int, tokens_left: int, tiles_left: int) -> None:
        self._packs[tiles_left, tokens_left].append(pack)
        self._lefts[tiles_left] |= 1 << tokens_left

    def take(self, num_tokens: int, num_tiles: int) -> tuple[int, int, int] | None:
        """Remove and return (pack, tokens left, tiles left) of the tightest fit; fewest tiles left among equals."""
        fitting = 0
        for left in self._lefts[num_tiles:]:
            fitting |= left
        fitting >>= num_tokens
        if not fitting:
            return None
        tokens_left = num_tokens + (fitting & -fitting).bit_length() - 1
        bit = 1 << tokens_left
        tiles_left = next(i for i in range(num_tiles, len(self._lefts)) if self._lefts[i] & bit)
        packs = self._packs[tiles_left, tokens_left]
        pack = packs.pop()
        if not packs:
            self._lefts[tiles_left] ^= bit
        return pack, tokens_left, tiles_left


def make_packs(num_tokens: Ints, num_tiles: Ints, packing: Packing) -> list[Chosen]:
    """Divide samples into packs, every sample into exactly one. The result depends on the arguments alone.

    Every sample must fit a sequence.
    """
    assert not len(num_tokens) or int(num_tokens.max()) <= packing.seq_len, "a sample is longer than a sequence"
    if not packing.is_packed:
        return [[number] for number in range(len(num_tokens))]
    size = np.maximum(num_tokens / packing.seq_len, np.minimum(num_tiles / packing.max_tiles, 1))
    packs: list[Chosen] = []
    shelf = _Shelf(packing.max_tiles)
    tokens, tiles = num_tokens.tolist(), num_tiles.tolist()
    for number in np.argsort(-np.where(size > LARGE, size, 0), kind="stable").tolist():
        wanted = min(tiles[number], packing.max_tiles)  # more than the cap fills a pack as much as the cap does
        found = shelf.take(tokens[number], wanted)
        if found is None:
            found = len(packs), packing.seq_len, packing.max_tiles
            packs.append([])
        pack, tokens_left, tiles_left = found
        packs[pack].append(number)
        shelf.put(pack, tokens_left - tokens[number], tiles_left - wanted)
    return [sorted(pack) for pack in packs]


def even_order(contents: Ints, order: Ints) -> Ints:
    """Reorder packs so that any run of them holds about the mean of every column of `contents`, [packs, columns].

    Each next pack is the one that brings the sums closest to what they should be by then, every column relative to
    its own mean; ties go to the earlier in `order`. Integers only, so that all machines agree.
    """
    if not len(order):
        return order
    mean = contents.mean(axis=0)
    used = mean > 0
    # In units in which a column counts by its variance if it were drawn at random: sum of squares over mean.
    scaled = np.rint(contents[order][:, used] * (_SCALE / np.sqrt(mean[used]))).astype(np.int64)
    target = np.rint(scaled.mean(axis=0)).astype(np.int64)
    squares = (scaled * scaled).sum(axis=1)
    off = np.zeros_like(target)
    chosen = np.empty_like(order)
    for turn in range(len(order)):
        # |off - target + row| squared, without the part that is the same for every row
        best = int(np.argmin(squares + 2 * (scaled @ (off - target))))
        off += scaled[best] - target
        squares[best] = _TAKEN
        scaled[best] = 0
        chosen[turn] = order[best]
    return chosen


def balance(num_tiles: list[int], num_tokens: list[int], num_ranks: int) -> list[list[int]]:
    """Deal packs to ranks so that the ranks have about as many tiles, then tokens: largest first to the least loaded.

    Counts of packs differ by at most one. Within a rank the packs with most tiles come first, so that what the ranks
    do at the same time costs alike as well.
    """
    if num_ranks < 1:
        raise UserError(f"there must be at least one rank, got {num_ranks}")
    least, num_larger = divmod(len(num_tiles), num_ranks)
    ranks: list[list[int]] = [[] for _ in range(num_ranks)]
    least_loaded = [(0, 0, rank) for rank in range(num_ranks)]  # tiles, tokens: a heap
    for pack in sorted(range(len(num_tiles)), key=lambda i: (-num_tiles[i], -num_tokens[i], i)):
        tiles, tokens, rank = heappop(least_loaded)
        # Full ranks leave the heap; once all that may have one pack more have it, the others are full one earlier.
        while len(ranks[rank]) >= least + (num_larger > 0):
            tiles, tokens, rank = heappop(least_loaded)
        ranks[rank].append(pack)
        num_larger -= len(ranks[rank]) == least + 1
        heappush(least_loaded, (tiles + num_tiles[pack], tokens + num_tokens[pack], rank))
    return ranks
