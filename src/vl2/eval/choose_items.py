"""Choose the items of a run: all items of the data, or a sample that is stratified by the parts of a benchmark.

A sample is a prefix of a fixed order of the items, which is the same on every machine. A larger limit therefore
includes the items of a smaller one, and at any limit every part (a half of ChartQA, a subject of MMMU) has its
proportional share, to within one item.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

from vl2.errors import UserError
from vl2.eval.held_out import HELD_OUT_SEED
from vl2.eval.task import DataSource, Item, LeftOut, Task

SEED = 0  # the same for every sample, so that runs with equal limits can be compared


@dataclass(frozen=True, kw_only=True)
class ItemKey:
    """The fields that determine an item's position in the order."""

    id: str
    part: str
    cluster: str

    @classmethod
    def of(cls, item: Item) -> ItemKey:
        return cls(id=item.id, part=item.part, cluster=item.cluster)


def sample_ids(keys: Sequence[ItemKey], limit: int, *, keeps_clusters: bool = False) -> frozenset[str]:
    """Return the ids of a sample of at most `limit` items.

    With `keeps_clusters`, a cluster is taken completely or not at all, and at least one is taken even if it exceeds
    the limit. This is for metrics that count a question as correct only if all its items are: a part of a cluster
    would be correct too often.
    """
    units: dict[tuple[str, str], list[ItemKey]] = defaultdict(list)
    for key in keys:
        units[("cluster", key.cluster) if keeps_clusters and key.cluster else ("id", key.id)].append(key)
    taken: list[str] = []
    for unit in _interleave_parts(units.values()):
        if taken and len(taken) + len(unit) > limit:
            break
        taken += [key.id for key in unit]
    return frozenset(taken)


def _interleave_parts(units: Iterable[list[ItemKey]]) -> list[list[ItemKey]]:
    """Return the units in an order in which the units of every part are evenly spaced."""
    by_part: dict[str, list[list[ItemKey]]] = defaultdict(list)
    for unit in units:
        by_part[unit[0].part].append(unit)
    places: list[tuple[float, bytes, list[ItemKey]]] = []
    for members in by_part.values():
        shuffled = sorted((_sort_key(unit), unit) for unit in members)
        places += [((n + 0.5) / len(shuffled), draw, unit) for n, (draw, unit) in enumerate(shuffled)]
    return [unit for *_, unit in sorted(places, key=lambda place: place[:2])]


def _sort_key(unit: list[ItemKey]) -> bytes:
    """Return a sort key that depends on the seed and the unit alone."""
    return hashlib.sha256(f"{SEED}/{unit[0].part}/{unit[0].id}".encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True, kw_only=True)
class ChosenItems:
    """The items of a run, and the numbers of items that are available and left out."""

    task: Task
    source: DataSource
    limit: int | None
    ids: frozenset[str] | None  # the sample of a limit; None for all items
    available: int | None  # the number of items without the limit; None for a drawn task, which has no end
    left_out: Mapping[LeftOut, int]

    def items(self) -> Iterator[Item]:
        """Yield the items in the order of the data."""
        if self.task.count is not None:
            return iter(_drawn(self.task, self.source, self.limit or self.task.count))
        return (item for item in self.task.items(self.source) if self.ids is None or item.id in self.ids)

    @property
    def is_subset(self) -> bool:
        """Return whether items are missing that belong to the benchmark's published figure."""
        return self.ids is not None or any(not why.is_of_other_split for why in self.left_out)

    @property
    def seed(self) -> int | None:
        if self.task.count is not None:
            return HELD_OUT_SEED
        return SEED if self.ids is not None else None

    def about_left_out(self) -> str:
        """Return a clause that says what was left out, or an empty string."""
        if not self.left_out:
            return ""
        flag = " (--whole asks all that can be asked)" if any(why.comes_with_whole for why in self.left_out) else ""
        return f"; left out: {left_out_text({why.why: n for why, n in self.left_out.items()})}{flag}"

    def tell(self) -> None:
        """Print to stderr which items are not asked."""
        if self.ids is not None:
            print(f"{self.task.name}: asks {len(self.ids)} of {self.available} items, a sample spread over all parts",
                  file=sys.stderr)  # fmt: skip
        if self.left_out:
            print(f"{self.task.name}{self.about_left_out().replace('; ', ': ', 1)}", file=sys.stderr)


def left_out_text(left_out: Mapping[str, int]) -> str:
    """Return a text that says how many items were left out for each reason."""
    return ", ".join(f"{count} {'item' if count == 1 else 'items'} {why}" for why, count in left_out.items())


def check_whole(task: Task, source: DataSource) -> None:
    """Raise UserError if --whole is given for a task that holds no items back."""
    if source.whole and not task.has_whole:
        raise UserError(f"{task.name} keeps no items for training, so --whole would change nothing: leave it out")


def choose(task: Task, source: DataSource, limit: int | None) -> ChosenItems:
    """Read a task's data once and choose the items of a run, deterministically."""
    if task.count is not None:
        return ChosenItems(task=task, source=source, limit=limit, ids=None, available=None, left_out={})
    keys: list[ItemKey] = []
    left_out: Counter[LeftOut] = Counter()
    for found in task.read(task, source):
        if isinstance(found, LeftOut):
            left_out[found] += 1
        else:
            keys.append(ItemKey.of(found))
    ids = None
    if limit is not None and limit < len(keys):
        ids = sample_ids(keys, limit, keeps_clusters=task.keeps_clusters)
    return ChosenItems(task=task, source=source, limit=limit, ids=ids, available=len(keys), left_out=left_out)


def limited(task: Task, source: DataSource, limit: int | None) -> Iterator[Item]:
    """Return the items of a run with a limit. Without a limit, a drawn task has its default number of items."""
    return choose(task, source, limit).items()


def first_item(task: Task, source: DataSource) -> Item | None:
    """Return the first item of the data, or None if there is none."""
    return next(iter(_drawn(task, source, 1)) if task.count is not None else task.items(source), None)


@lru_cache(maxsize=2)
def _drawn(task: Task, source: DataSource, count: int) -> tuple[Item, ...]:
    return tuple(islice(task.items(source), count))


def scan_items(items: Iterable[Item]) -> tuple[list[str], str]:
    """Return the ids of items and a hash of their content. Raise UserError if an id occurs twice."""
    ids: list[str] = []
    digest = hashlib.sha256()
    for item in items:
        ids.append(item.id)
        digest.update(repr((item.id, item.question, item.options, item.gold)).encode("utf-8", "surrogatepass"))
        for image in item.images:
            digest.update(
                hashlib.sha256(image).digest() if isinstance(image, bytes) else _file_identity(image, item.id)
            )
    if len(set(ids)) < len(ids):
        twice = next(id for id in ids if ids.count(id) > 1)
        raise UserError(f"two items have the id {twice}: ids must be unique")
    return ids, digest.hexdigest()[:16]


def _file_identity(image: object, id: str) -> bytes:
    """Return the name and size of an image file, which do not depend on the folder of the data."""
    path = Path(str(image))
    if not path.is_file():
        raise UserError(f"the image of {id} is missing: {path}")
    return f"{path.name} {path.stat().st_size}".encode("utf-8", "surrogateescape")
