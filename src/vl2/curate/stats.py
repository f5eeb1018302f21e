"""What a set of records holds: text and visual tokens by category, language and source, tiles, lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from vl2.data.count import TokenCounts, count_tokens
from vl2.data.record import Record
from vl2.data.store.parse import Found, Problem
from vl2.errors import UserError
from vl2.grid import num_tiles
from vl2.process.processor import Processor


@dataclass(kw_only=True)
class Tally:
    """Sums over records."""

    records: int = 0
    images: int = 0
    tiles: int = 0
    text_tokens: int = 0
    trained_tokens: int = 0
    visual_tokens: int = 0

    def add(self, counts: TokenCounts) -> None:
        self.records += 1
        self.images += len(counts.grids)
        self.tiles += counts.tiles
        self.text_tokens += counts.text
        self.trained_tokens += counts.trained
        self.visual_tokens += counts.visual

    @property
    def tokens(self) -> int:
        return self.text_tokens + self.visual_tokens

    def to_dict(self) -> dict[str, int]:
        return {**self.__dict__, "tokens": self.tokens}


Groups = dict[str, Tally]


@dataclass(kw_only=True)
class Stats:
    """Everything that is counted over a set of records."""

    total: Tally = field(default_factory=Tally)
    by_category: Groups = field(default_factory=dict)
    by_language: Groups = field(default_factory=dict)
    by_source: Groups = field(default_factory=dict)
    tiles_per_image: Counter[int] = field(default_factory=Counter)  # tiles to images
    lengths: Counter[int] = field(default_factory=Counter)  # tokens up to a power of two to records
    skipped: int = 0  # could not be read or encoded

    def add(self, record: Record, counts: TokenCounts) -> None:
        self.total.add(counts)
        for groups, name in (
            (self.by_category, record.category),
            (self.by_language, record.language),
            (self.by_source, record.source),
        ):
            groups.setdefault(name, Tally()).add(counts)
        self.tiles_per_image.update(num_tiles(grid) for grid in counts.grids)
        self.lengths[1 << (counts.total - 1).bit_length()] += 1

    def to_dict(self) -> dict[str, Any]:
        return {
            "total": self.total.to_dict(),
            **{
                name: {key: tally.to_dict() for key, tally in largest_first(groups)}
                for name, groups in self.groups().items()
            },
            "tiles_per_image": {str(tiles): images for tiles, images in sorted(self.tiles_per_image.items())},
            "lengths": {str(bound): records for bound, records in sorted(self.lengths.items())},
            "skipped": self.skipped,
        }

    def groups(self) -> dict[str, Groups]:
        return {"by_category": self.by_category, "by_language": self.by_language, "by_source": self.by_source}


def largest_first(groups: Groups) -> list[tuple[str, Tally]]:
    """Return the groups by falling number of tokens; ties by name."""
    return sorted(groups.items(), key=lambda item: (-item[1].tokens, item[0]))


def gather(found: Iterable[Found], processor: Processor) -> Stats:
    """Count all records. Those that cannot be read or encoded are counted as skipped: `validate` says why."""
    stats = Stats()
    for item in found:
        if isinstance(item, Problem):
            stats.skipped += 1
            continue
        try:
            stats.add(item.record, count_tokens(item.record, processor))
        except UserError:
            stats.skipped += 1
    return stats
