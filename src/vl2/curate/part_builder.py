"""Build one part of a source: read or draw its records, filter them, and write its shards, all in one place.

    BUILDING/grounding/scenes-00012.parquet    the kept records of a category
    BUILDING/dropped/00012.ndjson              one line for each record that a filter dropped
    BUILDING/parts/00012.json                  written last: counts; a part that has them is finished

A filter that compares records with earlier ones needs them in order. Then a part is built in two steps: `MeasurePart`
writes its records to BUILDING/unjudged, and `SortPart` writes those that were kept to shards, after the verdicts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vl2.curate.filters.filter_catalog import AnyFilter
from vl2.curate.filters.filter_chain import StatelessChain, Verdict, ledger_line
from vl2.curate.source_parts import SourcePart, part_records
from vl2.curate.stage_recipe import SourceEntry, StageRecipe
from vl2.data.record import Record
from vl2.data.store import Located, read_records, write_records
from vl2.data.store.jsonl import images_folder
from vl2.data.store.locations import PART, data_file
from vl2.data.store.tar import INDEX_ENDING
from vl2.errors import UserError
from vl2.files import write_whole

PARTS, DROPPED, UNJUDGED = "parts", "dropped", "unjudged"  # folders beside those of the categories


@dataclass(frozen=True, kw_only=True)
class PartPlan:
    """What all parts of a source share. It is sent to other machines, so it holds no open files."""

    recipe: StageRecipe
    entry: SourceEntry
    building: Path  # on a file system that all machines see
    filters: tuple[AnyFilter, ...]
    processes: int = 1  # that draw one part

    def report(self, part: SourcePart) -> Path:
        return self.building / PARTS / f"{part.number:05d}.json"

    def unjudged(self, part: SourcePart) -> Path:
        return self.building / UNJUDGED / f"{part.number:05d}.parquet"


@dataclass(frozen=True)
class BuildPart:
    """Builds a part whose filters judge each record by itself."""

    plan: PartPlan

    def __call__(self, part: SourcePart) -> None:
        plan, dropped = self.plan, Counter[str]()
        chain = StatelessChain(plan.filters)
        lines: list[str] = []

        def kept() -> Iterator[Record]:
            for record in part_records(plan.recipe, plan.entry, part, dropped, plan.processes):
                _, findings = chain.measure(record)
                if _is_dropped(findings):
                    by = plan.filters[len(findings) - 1].name
                    dropped[by] += 1
                    lines.append(ledger_line(record.id, record.source, findings[-1], by))
                else:
                    yield record

        by_category = write_shards(plan, part, kept())
        finish_part(plan, part, by_category, dropped, lines)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a judge needs to know of a record."""

    id: str
    source: str
    findings: list[Any]  # of each filter, up to the first that drops the record

    @property
    def is_in_file(self) -> bool:
        """Whether the record is in the part's file: it is not if a filter that needs no order drops it."""
        return not _is_dropped(self.findings)


@dataclass(frozen=True)
class MeasurePart:
    """Writes the records of a part that may be kept to a file of its own, and returns what the judge needs."""

    plan: PartPlan

    def __call__(self, part: SourcePart) -> tuple[list[Measured], Counter[str]]:
        plan, dropped = self.plan, Counter[str]()
        chain = StatelessChain(plan.filters)
        measured: list[Measured] = []

        def undecided() -> Iterator[Record]:
            for record in part_records(plan.recipe, plan.entry, part, dropped, plan.processes):
                _, findings = chain.measure(record)
                measured.append(Measured(id=record.id, source=record.source, findings=findings))
                if measured[-1].is_in_file:
                    yield record

        write_records(undecided(), str(plan.unjudged(part)))
        return measured, dropped


@dataclass(frozen=True)
class SortPart:
    """Writes the kept records of a measured part to its shards."""

    plan: PartPlan

    def __call__(self, task: tuple[SourcePart, list[bool], Counter[str], list[str]]) -> None:
        part, is_kept, dropped, lines = task
        file = self.plan.unjudged(part)
        by_category = write_shards(self.plan, part, self._kept(file, is_kept))
        finish_part(self.plan, part, by_category, dropped, lines)
        file.unlink()

    def _kept(self, file: Path, is_kept: list[bool]) -> Iterator[Record]:
        for found, keep in zip(read_records(str(file)), is_kept, strict=True):
            if not isinstance(found, Located):
                raise UserError(f"a file of this build cannot be read: {found}")
            if keep:
                yield found.record


def _is_dropped(findings: Sequence[Any]) -> bool:
    return bool(findings) and isinstance(findings[-1], Verdict) and not findings[-1].kept


def write_shards(plan: PartPlan, part: SourcePart, records: Iterable[Record]) -> Counter[str]:
    """Write records to the folders of their categories, and return the number in each."""
    waiting: dict[str, list[Record]] = {}
    shards: Counter[str] = Counter()
    by_category: Counter[str] = Counter()

    def write(category: str) -> None:
        numbers = f"{part.number + shards[category]:05d}"
        if part.shards:
            numbers = f"{part.number:05d}-{shards[category]:05d}"
        file = plan.building / category / f"{plan.entry.name}-{numbers}.{plan.recipe.format}"
        _remove(file)  # left by a build that was killed in this part
        write_records(waiting.pop(category), str(file))
        shards[category] += 1

    for record in records:
        by_category[record.category] += 1
        own = waiting.setdefault(record.category, [])
        own.append(record)
        if len(own) == plan.recipe.shard_records:
            write(record.category)
    for category in sorted(waiting):
        write(category)
    return by_category


def _remove(path: Path) -> None:
    file = data_file(str(path))
    for each in (file, file.beside(PART), file.beside(INDEX_ENDING), images_folder(file)):
        each.remove()


def finish_part(
    plan: PartPlan, part: SourcePart, by_category: Counter[str], dropped: Counter[str], lines: Sequence[str]
) -> None:
    """Write what was dropped, and then the counts, which say that the part is finished."""
    write_whole(plan.building / DROPPED / f"{part.number:05d}.ndjson", "".join(lines))
    counts = {"by_category": dict(sorted(by_category.items())), "dropped": dict(sorted(dropped.items()))}
    write_whole(plan.report(part), json.dumps(counts) + "\n")
