"""Which items a limited run asks: a sample spread over the parts of a benchmark, the same on every machine.

The items are put into one order, of which a limit takes the beginning: so a larger limit asks all that a smaller one
asked, and every part (a half of ChartQA, a subject of MMMU) has its share at any limit, to within one item.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vl2.eval.task import Item

SEED = 0  # of every sample, so that two runs with one limit can be compared


@dataclass(frozen=True, kw_only=True)
class Key:
    """What the order of an item depends on."""

    id: str
    part: str
    cluster: str

    @classmethod
    def of(cls, item: Item) -> Key:
        return cls(id=item.id, part=item.part, cluster=item.cluster)


def sample(keys: Sequence[Key], limit: int, *, keeps_clusters: bool = False) -> frozenset[str]:
    """Return the ids of at most `limit` items.

    With `keeps_clusters` a cluster is taken whole or not at all, and at least one is taken however large it is: where
    a figure counts a question as right only if all its items are, a part of them would count for too much.
    """
    units: dict[tuple[str, str], list[Key]] = defaultdict(list)
    for key in keys:
        units[("cluster", key.cluster) if keeps_clusters and key.cluster else ("id", key.id)].append(key)
    taken: list[str] = []
    for unit in _spread(units.values()):
        if taken and len(taken) + len(unit) > limit:
            break
        taken += [key.id for key in unit]
    return frozenset(taken)


def _spread(units: Iterable[list[Key]]) -> list[list[Key]]:
    """Return units in an order in which every part is spread evenly from the beginning to the end."""
    by_part: dict[str, list[list[Key]]] = defaultdict(list)
    for unit in units:
        by_part[unit[0].part].append(unit)
    places: list[tuple[float, bytes, list[Key]]] = []
    for members in by_part.values():
        shuffled = sorted((_draw(unit), unit) for unit in members)
        places += [((n + 0.5) / len(shuffled), draw, unit) for n, (draw, unit) in enumerate(shuffled)]
    return [unit for *_, unit in sorted(places, key=lambda place: place[:2])]


def _draw(unit: list[Key]) -> bytes:
    """Return a number that depends on the seed and the unit alone."""
    return hashlib.sha256(f"{SEED}/{unit[0].part}/{unit[0].id}".encode("utf-8", "surrogatepass")).digest()
