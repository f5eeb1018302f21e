"""Which samples make which pack of which step, from the seed alone: every rank computes the same plan.

The token axis of the mixture is cut into windows. A window is drawn, packed and ordered by itself, from
(seed, window), so that any of them can be planned without the ones before. A step takes the next packs, over the
border of windows where it must. So a place in the plan is two integers, and it knows no ranks: they only divide
the packs of a step among them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from vl2.data.index import LostRecord, SourceIndex, too_long
from vl2.data.mixture import Draw, Mixture, MixtureSampler, epoch_order
from vl2.data.pack import Chosen, Packing, balance, even_order, make_packs
from vl2.errors import UserError

_KEPT_WINDOWS = 2  # a step may reach from one into the next


@dataclass(frozen=True, kw_only=True)
class PackEntry:
    """One sample of a pack: a record by its place in the store, and what the index says of it."""

    source: str  # name of the store
    record: int
    num_tokens: int
    num_tiles: int


@dataclass(frozen=True, kw_only=True)
class Pack:
    """The samples of one sequence."""

    entries: tuple[PackEntry, ...]

    @cached_property
    def num_tokens(self) -> int:
        return sum(entry.num_tokens for entry in self.entries)

    @cached_property
    def num_tiles(self) -> int:
        return sum(entry.num_tiles for entry in self.entries)


@dataclass(frozen=True, kw_only=True)
class Position:
    """A place in the plan: the next pack to use, by its window and its number there."""

    window: int = 0
    pack: int = 0

    def __post_init__(self) -> None:
        if self.window < 0 or self.pack < 0:
            raise UserError(f"a position must not be negative, got window {self.window}, pack {self.pack}")


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """The packs of one global batch, the same ones on any number of ranks."""

    packs: tuple[Pack, ...]
    start: Position
    end: Position

    def divide(self, num_ranks: int) -> Division:
        """Return who takes which pack. Every rank computes all of it, and so knows who has no image or no pack."""
        tiles = [pack.num_tiles for pack in self.packs]
        ranks = balance(tiles, [pack.num_tokens for pack in self.packs], num_ranks)
        return Division(
            ranks=tuple(tuple(rank) for rank in ranks),
            num_tiles=tuple(tuple(tiles[pack] for pack in rank) for rank in ranks),
        )


@dataclass(frozen=True, kw_only=True)
class Division:
    """One step's packs by rank, each rank's in the order in which it runs them."""

    ranks: tuple[tuple[int, ...], ...]  # numbers of packs
    num_tiles: tuple[tuple[int, ...], ...]  # tiles of the same packs

    @property
    def num_rounds(self) -> int:
        """The most packs that any rank has; counts differ by at most one, so some may sit the last round out."""
        return max(len(rank) for rank in self.ranks)

    def most_tiles(self, turn: int) -> int:
        """Return the most tiles that any rank has in a round: what all must pad to where shapes must agree."""
        return max((tiles[turn] for tiles in self.num_tiles if turn < len(tiles)), default=0)


def tile_bucket(num_tiles: int, width: int = 4) -> int:
    """Round a number of tiles up to a multiple, so that a run meets few shapes. 0 stays 0."""
    return -(-num_tiles // width) * width


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What the plan depends on beside the data and the mixture."""

    packs_per_step: int  # global batch, in sequences; the paper has 256, 2304 or 3360, and 64
    seed: int = 0
    packing: Packing = field(default_factory=Packing)
    window_packs: int = 512  # larger windows fill better, and hold more records out of order

    def __post_init__(self) -> None:
        if self.packs_per_step < 1 or self.window_packs < 1:
            raise UserError(
                f"packs_per_step and window_packs must be at least 1, got {self.packs_per_step} and {self.window_packs}"
            )

    @property
    def window_tokens(self) -> int:
        """How much of the token axis is planned at a time."""
        return self.window_packs * self.packing.seq_len


class PackPlan:
    """The endless sequence of packs of a mixture. Records that fit no sequence are left out, see `excluded`."""

    def __init__(self, sources: Sequence[SourceIndex], mixture: Mixture, options: PlanOptions) -> None:
        """UserError where sources and mixture do not agree, or where nothing of a source fits."""
        seq_len = options.packing.seq_len
        self.options = options
        self.mixture = mixture
        self.excluded: tuple[LostRecord, ...] = too_long(sources, seq_len)
        self.sources = tuple(source.take(source.is_fitting(seq_len)) for source in sources)
        self.shares = mixture.shares(self.sources)
        self._sampler = MixtureSampler(self.sources, self.shares, options.seed)
        self._windows: dict[int, tuple[Pack, ...]] = {}

    @cached_property
    def fingerprint(self) -> str:
        """A checksum of all that the plan depends on; a state of another plan is refused by it."""
        # The options' class names are part of the digest: with others no older checkpoint could be resumed.
        digest = hashlib.sha256(repr((self.options, self.shares)).encode())
        for source in self.sources:
            digest.update(source.key.encode())
            for values in (source.records, source.num_tokens, source.num_tiles):
                digest.update(values.astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def window(self, number: int) -> tuple[Pack, ...]:
        """Return the packs of one window, in an order in which any run of them has the mixture's shares."""
        packs = self._windows.get(number)
        if packs is None:
            packs = self._make_window(number)
            self._windows[number] = packs
            for old in sorted(self._windows, key=lambda n: abs(n - number))[_KEPT_WINDOWS:]:
                del self._windows[old]
        return packs

    def step(self, start: Position) -> StepPlan:
        """Return the step that begins at a position."""
        packs: list[Pack] = []
        window, offset = start.window, start.pack
        while True:
            here = self.window(window)
            if offset > len(here):
                raise UserError(f"window {window} has {len(here)} packs, there is no place {offset}")
            taken = here[offset : offset + self.options.packs_per_step - len(packs)]
            packs += taken
            offset += len(taken)
            if len(packs) == self.options.packs_per_step:
                return StepPlan(packs=tuple(packs), start=start, end=Position(window=window, pack=offset))
            window, offset = window + 1, 0

    def steps(self, start: Position | None = None) -> Iterator[StepPlan]:
        """Yield the steps from a position on, without end."""
        position = start or Position()
        while True:
            step = self.step(position)
            yield step
            position = step.end

    def fill(self, window: int) -> float:
        """Return the part of a window's places that hold a token; a cap of tiles near the mean makes it small."""
        packs = self.window(window)
        return sum(pack.num_tokens for pack in packs) / max(len(packs) * self.options.packing.seq_len, 1)

    def epochs(self, position: Position) -> dict[str, float]:
        """Return how often each source has been gone through where the position's window begins."""
        return self._sampler.epochs(position.window * self.options.window_tokens)

    def _make_window(self, number: int) -> tuple[Pack, ...]:
        size = self.options.window_tokens
        draw = self._sampler.draw(number * size, (number + 1) * size)
        chosen = make_packs(draw.num_tokens, draw.num_tiles, self.options.packing)
        entries = self._entries(draw)
        return tuple(
            Pack(entries=tuple(entries[i] for i in chosen[pack])) for pack in self._order(number, draw, chosen)
        )

    def _order(self, number: int, draw: Draw, chosen: list[Chosen]) -> list[int]:
        """Return the order of a window's packs: shuffled, and even in every source's tokens and in tiles."""
        if not self.options.packing.is_packed:
            return list(range(len(chosen)))  # as drawn, which is shuffled and even already
        pack_of = np.empty(len(draw), dtype=np.int64)
        for pack, samples in enumerate(chosen):
            pack_of[samples] = pack
        contents = np.zeros((len(chosen), len(self.sources) + 1), dtype=np.int64)
        np.add.at(contents, (pack_of, draw.sources), draw.num_tokens)
        np.add.at(contents[:, -1], pack_of, draw.num_tiles)
        shuffled = epoch_order(self.options.seed, "", number, len(chosen))
        return [int(pack) for pack in even_order(contents, shuffled)]

    def _entries(self, draw: Draw) -> list[PackEntry]:
        records = draw.rows.copy()
        for i, source in enumerate(self.sources):
            mine = draw.sources == i
            records[mine] = source.records[draw.rows[mine]]
        columns = (draw.sources, records, draw.num_tokens, draw.num_tiles)
        return [
            PackEntry(source=self.sources[source].name, record=record, num_tokens=tokens, num_tiles=tiles)
            for source, record, tokens, tiles in zip(*(column.tolist() for column in columns), strict=True)
        ]
