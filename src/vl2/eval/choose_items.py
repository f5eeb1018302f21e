"""Which items a run asks: all that the data have, or a sample spread over the parts of a benchmark.

For a sample the items are put into one order, the same on every machine, of which a limit takes the beginning: so a
larger limit asks all that a smaller one asked, and every part (a half of ChartQA, a subject of MMMU) has its share at
any limit, to within one item.
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


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The items that a run asks, of those that the data have."""

    task: Task
    source: DataSource
    limit: int | None
    ids: frozenset[str] | None  # those that the limit takes; None: all
    available: int | None  # items that there would be without the limit; None where they are drawn without end
    left_out: Mapping[LeftOut, int]

    def items(self) -> Iterator[Item]:
        """Yield the items in the order of the data."""
        if self.task.count is not None:
            return iter(_drawn(self.task, self.source, self.limit or self.task.count))
        return (item for item in self.task.items(self.source) if self.ids is None or item.id in self.ids)

    @property
    def is_subset(self) -> bool:
        """Tell whether items are missing that the benchmark's figure is of."""
        return self.ids is not None or any(not why.is_of_other_split for why in self.left_out)

    @property
    def seed(self) -> int | None:
        if self.task.count is not None:
            return HELD_OUT_SEED
        return SEED if self.ids is not None else None

    def about_left_out(self) -> str:
        """Return a clause that says what was left out, or nothing."""
        if not self.left_out:
            return ""
        flag = " (--whole asks all that can be asked)" if any(why.comes_with_whole for why in self.left_out) else ""
        return f"; left out: {left_out_text({why.why: n for why, n in self.left_out.items()})}{flag}"

    def tell(self) -> None:
        """Print to stderr what is not asked."""
        if self.ids is not None:
            print(f"{self.task.name}: asks {len(self.ids)} of {self.available} items, a sample spread over all parts",
                  file=sys.stderr)  # fmt: skip
        if self.left_out:
            print(f"{self.task.name}{self.about_left_out().replace('; ', ': ', 1)}", file=sys.stderr)


def left_out_text(left_out: Mapping[str, int]) -> str:
    """Return how many items were left out and why, in words."""
    return ", ".join(f"{count} {'item' if count == 1 else 'items'} {why}" for why, count in left_out.items())


def check_whole(task: Task, source: DataSource) -> None:
    """Raise UserError where all of the data are asked for and a task keeps nothing back."""
    if source.whole and not task.has_whole:
        raise UserError(f"{task.name} keeps no items for training, so --whole would change nothing: leave it out")


def choose(task: Task, source: DataSource, limit: int | None) -> Chosen:
    """Read a task's data once and choose the items of a run. The same data and limit give the same items."""
    if task.count is not None:
        return Chosen(task=task, source=source, limit=limit, ids=None, available=None, left_out={})
    keys: list[Key] = []
    left_out: Counter[LeftOut] = Counter()
    for found in task.read(task, source):
        if isinstance(found, LeftOut):
            left_out[found] += 1
        else:
            keys.append(Key.of(found))
    ids = None
    if limit is not None and limit < len(keys):
        ids = sample(keys, limit, keeps_clusters=task.keeps_clusters)
    return Chosen(task=task, source=source, limit=limit, ids=ids, available=len(keys), left_out=left_out)


def limited(task: Task, source: DataSource, limit: int | None) -> Iterator[Item]:
    """Return the items of a run with a limit; a drawn task has a number of its own by default, and is drawn once."""
    return choose(task, source, limit).items()


def first_item(task: Task, source: DataSource) -> Item | None:
    """Return the first item of the data, None where there is none."""
    return next(iter(_drawn(task, source, 1)) if task.count is not None else task.items(source), None)


@lru_cache(maxsize=2)
def _drawn(task: Task, source: DataSource, count: int) -> tuple[Item, ...]:
    return tuple(islice(task.items(source), count))


def scan_items(items: Iterable[Item]) -> tuple[list[str], str]:
    """Return the ids of items, which must differ, and a hash of what they ask."""
    ids: list[str] = []
    digest = hashlib.sha256()
    for item in items:
        ids.append(item.id)
        digest.update(repr((item.id, item.question, item.options, item.gold)).encode("utf-8", "surrogatepass"))
        for image in item.images:
            digest.update(hashlib.sha256(image).digest() if isinstance(image, bytes) else _named(image, item.id))
    if len(set(ids)) < len(ids):
        twice = next(id for id in ids if ids.count(id) > 1)
        raise UserError(f"two items have the id {twice}: the results could not be told apart")
    return ids, digest.hexdigest()[:16]


def _named(image: object, id: str) -> bytes:
    """Return name and size of a picture's file: the same data in another folder are the same data."""
    path = Path(str(image))
    if not path.is_file():
        raise UserError(f"the picture of {id} is not there: {path}")
    return f"{path.name} {path.stat().st_size}".encode("utf-8", "surrogateescape")
