"""Mixtures: the share of training tokens that each source gets, and the order of each source's records.

A mixture divides tokens, not samples; visual tokens count too. The paper gives one number, about 70 : 30 of
vision-language to text in pretraining, and no share of any category (arXiv 2412.10302, section 3). The shares inside
`STAGE_MIXTURES` are therefore our choice, and this file is the only place that defines them.

The sampler works on a token axis shared by all sources. After T tokens of the whole run, a source with share s has
contributed s * T tokens, to within one sample. Any interval of the axis can be drawn without its past: an epoch of a
source has the same number of tokens in any order, so a division finds the epoch and the offset in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from vl2.data.index import Counts, Ints, SourceIndex
from vl2.data.record import CATEGORIES
from vl2.errors import UserError

_SHARE_BITS = 40  # shares are whole multiples of 2**-40, so that places on the axis are exact integers


@dataclass(frozen=True, kw_only=True)
class Group:
    """Categories that share one part of all tokens."""

    share: float
    categories: Mapping[str, float]  # relative weights inside the group

    def __post_init__(self) -> None:
        if not self.share > 0 or not self.categories or not all(w > 0 for w in self.categories.values()):
            raise UserError("the share of a group and the weights of its categories must be positive")
        for category in self.categories:
            if category not in CATEGORIES:
                raise UserError(f"category must be one of {', '.join(CATEGORIES)}, got {category!r}")


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Shares of tokens by group, by category inside a group, and by source inside a category.

    The weight of a source in its category is its number of tokens to the power 1 / temperature: at 1 all sources are
    repeated equally often, higher values favor the small ones. `sources` overrides the weights, keyed by
    "name/category"; it must name all sources of a category or none.
    """

    groups: tuple[Group, ...]
    temperature: float = 1.0
    sources: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.groups:
            raise UserError("a mixture must have at least one group")
        if not self.temperature > 0 or not all(weight > 0 for weight in self.sources.values()):
            raise UserError("the temperature and the weights of a mixture must be positive")
        named = [category for group in self.groups for category in group.categories]
        if len(set(named)) != len(named):
            raise UserError(f"a category may stand in one group only, got {', '.join(sorted(named))}")

    @property
    def categories(self) -> frozenset[str]:
        return frozenset(category for group in self.groups for category in group.categories)

    def only(self, categories: Iterable[str]) -> Mixture:
        """Return the mixture restricted to these categories. Groups keep their shares; empty groups are dropped."""
        kept = set(categories)
        inside = [(group, {c: w for c, w in group.categories.items() if c in kept}) for group in self.groups]
        groups = tuple(replace(group, categories=weights) for group, weights in inside if weights)
        if not groups:
            raise UserError(f"the mixture has none of the categories {', '.join(sorted(kept))}")
        return replace(self, groups=groups)

    def shares(self, sources: Sequence[SourceIndex]) -> tuple[float, ...]:
        """Return each source's share of all tokens; the shares add up to 1.

        Raise UserError if a category has no source or a source's category is not in the mixture, so that neither is
        dropped silently.
        """
        self._check(sources)
        total = sum(group.share for group in self.groups)
        of_category = {
            category: group.share / total * weight / sum(group.categories.values())
            for group in self.groups
            for category, weight in group.categories.items()
        }
        weights = [self._weight(source) for source in sources]
        sums = dict.fromkeys(of_category, 0.0)
        for source, weight in zip(sources, weights, strict=True):
            sums[source.category] += weight
        return tuple(
            of_category[source.category] * weight / sums[source.category]
            for source, weight in zip(sources, weights, strict=True)
        )

    def _weight(self, source: SourceIndex) -> float:
        given = self.sources.get(source.key)
        return float(source.num_tokens.sum()) ** (1 / self.temperature) if given is None else given

    def _check(self, sources: Sequence[SourceIndex]) -> None:
        keys = [source.key for source in sources]
        if len(set(keys)) != len(keys):
            raise UserError(f"sources must differ in name or category, got {', '.join(keys)}")
        empty = [source.key for source in sources if not len(source)]
        if empty:
            raise UserError(f"a source must have at least one record that fits, {empty[0]} has none")
        held = {source.category for source in sources}
        if self.categories != held:
            odd = sorted(self.categories ^ held)[0]
            where = "no place in the mixture" if odd in held else "no source"
            raise UserError(f"category {odd!r} has {where}; Mixture.only() keeps just the categories that have data")
        unknown = self.sources.keys() - set(keys)
        if unknown:
            raise UserError(f"the mixture weighs {sorted(unknown)[0]!r}, the sources are {', '.join(keys)}")
        for category in held:
            weighed = {s.key in self.sources for s in sources if s.category == category}
            if len(weighed) > 1:
                raise UserError(f"the mixture must weigh all sources of category {category!r} or none")


VISION_LANGUAGE_SHARE, TEXT_SHARE = 0.7, 0.3  # arXiv 2412.10302, pretraining: "around" 70 : 30

# Alignment uses ShareGPT4V only: captions and conversations about images, both in category "caption".
ALIGNMENT = Mixture(groups=(Group(share=1.0, categories={"caption": 1.0}),))

# 70 : 30 is from the paper, the shares inside are our choice: captions and interleaved documents are the most diverse.
PRETRAINING = Mixture(
    groups=(
        Group(
            share=VISION_LANGUAGE_SHARE,
            categories={
                "caption": 0.30,
                "interleaved": 0.20,
                "ocr": 0.15,
                "vqa": 0.06,
                "document": 0.04,
                "table_chart": 0.06,
                "web_to_code": 0.03,
                "plot_to_code": 0.02,
                "visual_prompt": 0.02,
                "grounding": 0.08,
                "grounded_conversation": 0.04,
            },
        ),
        Group(share=TEXT_SHARE, categories={"text": 1.0}),
    )
)

# The paper mixes in text-only dialogue without a ratio, so 70 : 30 is kept. The shares inside are our choice.
FINE_TUNING = Mixture(
    groups=(
        Group(
            share=VISION_LANGUAGE_SHARE,
            categories={
                "vqa": 0.26,
                "ocr": 0.10,
                "document": 0.12,
                "table_chart": 0.10,
                "reasoning": 0.10,
                "academic": 0.04,
                "web_to_code": 0.03,
                "plot_to_code": 0.03,
                "visual_prompt": 0.04,
                "grounding": 0.08,
                "grounded_conversation": 0.04,
                "in_context_grounding": 0.03,
                "gui": 0.03,
            },
        ),
        Group(share=TEXT_SHARE, categories={"text": 1.0}),
    )
)

STAGE_MIXTURES: Mapping[str, Mixture] = {
    "alignment": ALIGNMENT,
    "pretraining": PRETRAINING,
    "fine-tuning": FINE_TUNING,
}


def epoch_order(seed: int, key: str, epoch: int, num_records: int) -> Ints:
    """Return the record order of one epoch of a source, a permutation that depends on the four arguments alone.

    Records are sorted by a splitmix64 hash. A library's generator would not do: its stream may change between
    versions, and ranks on different machines must agree.
    """
    text = f"{seed}\0{key}\0{epoch}".encode()
    salt = int.from_bytes(hashlib.sha256(text).digest()[:8], "little")
    with np.errstate(over="ignore"):
        mixed = np.arange(1, num_records + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            mixed ^= mixed >> np.uint64(shift)  # in place: there may be a billion of them
            mixed *= np.uint64(factor)
    return np.argsort(mixed, kind="stable")


@dataclass(frozen=True, kw_only=True, eq=False)
class Draw:
    """Samples in the order in which the mixture draws them."""

    sources: Ints  # [n], which source
    rows: Ints  # [n], which of its records
    num_tokens: Ints  # [n]
    num_tiles: Ints  # [n]

    def __len__(self) -> int:
        return len(self.sources)


class MixtureSampler:
    """Draws the samples of any interval of the token axis, deterministically.

    The record order of the last epoch used is cached for each source.
    """

    def __init__(self, sources: Sequence[SourceIndex], shares: Sequence[float], seed: int) -> None:
        self.sources = tuple(sources)
        self._seed = seed
        self._shares = [round(share * (1 << _SHARE_BITS)) for share in shares]
        self._epoch_tokens = [int(source.num_tokens.sum()) for source in sources]
        self._orders: dict[int, tuple[int, Counts, Ints]] = {}  # source -> epoch, order, tokens before each

    def tokens_before(self, source: int, token: int) -> int:
        """Return how many tokens of a source precede a position on the token axis."""
        return token * self._shares[source] >> _SHARE_BITS

    def epochs(self, token: int) -> dict[str, float]:
        """Return the number of epochs of each source before a position on the token axis."""
        return {s.key: self.tokens_before(i, token) / self._epoch_tokens[i] for i, s in enumerate(self.sources)}

    def draw(self, start: int, stop: int) -> Draw:
        """Return the samples that begin in [start, stop) of the token axis.

        The sample whose source is furthest behind its share comes first; ties go to the earlier source.
        """
        parts = [self._draw_source(number, start, stop) for number in range(len(self.sources))]
        numbers = np.concatenate([np.full(len(rows), number) for number, (rows, _) in enumerate(parts)])
        rows = np.concatenate([rows for rows, _ in parts])
        due = np.concatenate([due for _, due in parts])
        order = np.argsort(due, kind="stable")
        numbers, rows = numbers[order], rows[order]
        return Draw(
            sources=numbers,
            rows=rows,
            num_tokens=self._gather("num_tokens", numbers, rows),
            num_tiles=self._gather("num_tiles", numbers, rows),
        )

    def _draw_source(self, number: int, start: int, stop: int) -> tuple[Ints, NDArray[np.float64]]:
        """Return one source's records in the interval, and the axis position of each, relative to `start`."""
        first, last = self.tokens_before(number, start), self.tokens_before(number, stop)
        size = self._epoch_tokens[number]
        rows: list[Ints] = [np.zeros(0, dtype=np.int64)]
        begins: list[Ints] = [np.zeros(0, dtype=np.int64)]
        for epoch in range(first // size, -(-last // size)):
            order, before = self._epoch(number, epoch)
            low, high = np.searchsorted(before, (first - epoch * size, last - epoch * size))
            rows.append(order[low:high].astype(np.int64))
            begins.append(before[low:high] + (epoch * size - first))
        return np.concatenate(rows), np.concatenate(begins) / max(self._shares[number], 1)

    def _epoch(self, number: int, epoch: int) -> tuple[Counts, Ints]:
        """Return the record order of an epoch, and the number of tokens before each of its samples."""
        kept = self._orders.get(number)
        if kept is None or kept[0] != epoch:
            source = self.sources[number]
            self._orders.pop(number, None)  # before another of its size is made
            order: Counts = epoch_order(self._seed, source.key, epoch, len(source))
            if len(source) < 2**31:
                order = order.astype(np.int32)
            lengths = source.num_tokens[order]
            before = np.cumsum(lengths, dtype=np.int64)
            before -= lengths
            kept = self._orders[number] = (epoch, order, before)
        return kept[1], kept[2]

    def _gather(self, name: str, numbers: Ints, rows: Ints) -> Ints:
        out = np.zeros(len(rows), dtype=np.int64)
        for number, source in enumerate(self.sources):
            mine = numbers == number
            out[mine] = getattr(source, name)[rows[mine]]
        return out
