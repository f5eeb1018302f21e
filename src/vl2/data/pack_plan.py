"""Plan which samples form which pack of which step. The plan follows from the seed, so every rank computes the same.

The token axis of the mixture is split into windows. Each window is drawn, packed and ordered independently from
(seed, window), so any window can be planned without the ones before it. A step takes the next packs and may cross the
border of two windows. A position in the plan is therefore two integers. It does not depend on the number of ranks,
which only divide the packs of a step among themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from vl2.data.index import LostRecord, SourceIndex, too_long
from vl2.data.mixture import Draw, Mixture, MixtureSampler, epoch_order
from vl2.data.pack import Members, Packing, balance, even_order, make_packs
from vl2.errors import UserError

_KEPT_WINDOWS = 2  # a step may use packs of two windows
_DIGEST_RECORDS = 2**20  # converted at a time


@dataclass(frozen=True, kw_only=True)
class PackEntry:
    """One sample of a pack: the number of its record in the store, and the record's counts in the index."""

    source: str  # name of the store
    record: int
    num_tokens: int
    num_tiles: int


@dataclass(frozen=True, kw_only=True)
class Pack:
    """The samples of one packed sequence."""

    entries: tuple[PackEntry, ...]

    @cached_property
    def num_tokens(self) -> int:
        return sum(entry.num_tokens for entry in self.entries)

    @cached_property
    def num_tiles(self) -> int:
        return sum(entry.num_tiles for entry in self.entries)


@dataclass(frozen=True, kw_only=True)
class Position:
    """A position in the plan: the window of the next pack, and the pack's number in it."""

    window: int = 0
    pack: int = 0

    def __post_init__(self) -> None:
        if self.window < 0 or self.pack < 0:
            raise UserError(f"a position must not be negative, got window {self.window}, pack {self.pack}")


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """The packs of one global batch; they do not depend on the number of ranks."""

    packs: tuple[Pack, ...]
    start: Position
    end: Position

    def divide(self, num_ranks: int) -> Division:
        """Divide the packs among ranks.

        Every rank computes the whole division, so each knows which ranks have no image or no pack in a round.
        """
        tiles = [pack.num_tiles for pack in self.packs]
        ranks = balance(tiles, [pack.num_tokens for pack in self.packs], num_ranks)
        return Division(
            ranks=tuple(tuple(rank) for rank in ranks),
            num_tiles=tuple(tuple(tiles[pack] for pack in rank) for rank in ranks),
        )


@dataclass(frozen=True, kw_only=True)
class Division:
    """The packs of one step by rank, in the order in which each rank runs them."""

    ranks: tuple[tuple[int, ...], ...]  # numbers of packs
    num_tiles: tuple[tuple[int, ...], ...]  # tiles of the same packs

    @property
    def num_rounds(self) -> int:
        """The largest number of packs of any rank. Ranks differ by at most one, so some may skip the last round."""
        return max(len(rank) for rank in self.ranks)

    def most_tiles(self, round_: int) -> int:
        """Return the largest number of tiles of any rank in a round, to which all pad if shapes must be equal."""
        return max((tiles[round_] for tiles in self.num_tiles if round_ < len(tiles)), default=0)


def tile_bucket(num_tiles: int, width: int = 4) -> int:
    """Round a number of tiles up to a multiple of `width`, so that a run has few distinct shapes. 0 stays 0."""
    return -(-num_tiles // width) * width


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """The settings of a plan, besides the data and the mixture."""

    packs_per_step: int  # global batch in sequences; the paper uses 256 (alignment), 2304 or 3360, and 64 (SFT)
    seed: int = 0
    packing: Packing = field(default_factory=Packing)
    window_packs: int = 512  # larger windows leave less padding, but reorder records more

    def __post_init__(self) -> None:
        if self.packs_per_step < 1 or self.window_packs < 1:
            raise UserError(
                f"packs_per_step and window_packs must be at least 1, got {self.packs_per_step} and {self.window_packs}"
            )

    @property
    def window_tokens(self) -> int:
        """The length of one window on the token axis."""
        return self.window_packs * self.packing.seq_len


class PackPlan:
    """The endless sequence of packs of a mixture. Records longer than a sequence are left out; see `excluded`."""

    def __init__(self, sources: Sequence[SourceIndex], mixture: Mixture, options: PlanOptions) -> None:
        """Raise UserError if the sources do not match the mixture, or if no record of a source fits a sequence."""
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
        """A checksum of everything that the plan depends on, to recognize the state of another plan."""
        # The options' class names are part of the digest. Renaming them would make older checkpoints unresumable.
        digest = hashlib.sha256(repr((self.options, self.shares)).encode())
        for source in self.sources:
            digest.update(source.key.encode())
            for values in (source.records, source.num_tokens, source.num_tiles):
                for start in range(0, len(values), _DIGEST_RECORDS):
                    digest.update(values[start : start + _DIGEST_RECORDS].astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def window(self, number: int) -> tuple[Pack, ...]:
        """Return the packs of one window, in an order in which every run of packs has about the mixture's shares."""
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
                raise UserError(f"window {window} has {len(here)} packs, so there is no position {offset} in it")
            taken = here[offset : offset + self.options.packs_per_step - len(packs)]
            packs += taken
            offset += len(taken)
            if len(packs) == self.options.packs_per_step:
                return StepPlan(packs=tuple(packs), start=start, end=Position(window=window, pack=offset))
            window, offset = window + 1, 0

    def steps(self, start: Position | None = None) -> Iterator[StepPlan]:
        """Yield the steps from a position on, endlessly."""
        position = start or Position()
        while True:
            step = self.step(position)
            yield step
            position = step.end

    def fill(self, window: int) -> float:
        """Return the fraction of a window's positions that are not padding.

        It is low if the tile budget is close to the mean number of tiles of a full pack.
        """
        packs = self.window(window)
        return sum(pack.num_tokens for pack in packs) / max(len(packs) * self.options.packing.seq_len, 1)

    def epochs(self, position: Position) -> dict[str, float]:
        """Return the number of epochs of each source before the position's window."""
        return self._sampler.epochs(position.window * self.options.window_tokens)

    def _make_window(self, number: int) -> tuple[Pack, ...]:
        size = self.options.window_tokens
        draw = self._sampler.draw(number * size, (number + 1) * size)
        chosen = make_packs(draw.num_tokens, draw.num_tiles, self.options.packing)
        entries = self._entries(draw)
        return tuple(
            Pack(entries=tuple(entries[i] for i in chosen[pack])) for pack in self._pack_order(number, draw, chosen)
        )

    def _pack_order(self, number: int, draw: Draw, chosen: list[Members]) -> list[int]:
        """Return the order of a window's packs: shuffled, then evened out in tiles and in each source's tokens."""
        if not self.options.packing.is_packed:
            return list(range(len(chosen)))  # the drawn order is already shuffled and even
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
