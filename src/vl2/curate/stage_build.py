"""Build the stores of a stage, source by source, in parts: a build that was stopped goes on with the next part.

    TO/grounding/scenes-00000.parquet    the records of a source and category, in order
    TO/reports/scenes.json               written last: counts of kept and dropped records, and the settings
    TO/reports/scenes.dropped.ndjson     one line for each record that a filter dropped
    TO/scenes.building/                  the finished parts of an unfinished source

A source that has a report is finished, so a resumed run continues with the next one. Within a source, finished parts
are kept, and the result is that of a build that was never stopped. Filters that compare records (`duplicate_image`)
need the records from the first on, so a source with one of them begins again. They compare within a source only.

Parts are built in processes of this machine or on a Ray cluster (`part_builder.py`). Records are read, filtered and
written there; only parts, counts and what such filters measured pass through this process.

The source's name is prefixed to ids to make them unique in the stage.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vl2.curate.filters.filter_catalog import LoadProcessor, make_filters
from vl2.curate.filters.filter_chain import OrderedFilter, judge, ledger_line
from vl2.curate.part_builder import (
    DROPPED,
    PARTS,
    UNJUDGED,
    BuildPart,
    Measured,
    MeasurePart,
    PartPlan,
    SortPart,
)
from vl2.curate.source_parts import SourcePart, divide
from vl2.curate.stage_recipe import SourceEntry, StageRecipe
from vl2.data.ray_map import MapBackend, map_in_order
from vl2.errors import UserError
from vl2.files import write_whole

REPORTS = "reports"
BUILDING = ".building"  # ending of the folder of an unfinished source
SETTINGS = "settings.json"


@dataclass(kw_only=True)
class Report:
    """The counts of one source."""

    name: str
    kept: int = 0
    by_category: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)  # by filter, or by the reason why a row gave no record
    is_reused: bool = False  # the source was already built

    def to_dict(self) -> dict[str, Any]:
        counts = {"by_category": dict(sorted(self.by_category.items())), "dropped": dict(sorted(self.dropped.items()))}
        return {"name": self.name, "kept": self.kept, **counts}


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Options of a build that affect its speed only, not its result."""

    processes: int = 1
    on: MapBackend = "local"


def build_stage(
    recipe: StageRecipe, to: Path, *, load: LoadProcessor, how: BuildOptions | None = None
) -> Iterator[Report]:
    """Build the sources that are not built yet, and yield the report of every source in order.

    Raise UserError if a source was built with other settings.
    """
    (to / REPORTS).mkdir(parents=True, exist_ok=True)
    for entry in recipe.sources:
        finished = _existing_report(recipe, entry, to)
        if finished:
            shutil.rmtree(to / f"{entry.name}{BUILDING}", ignore_errors=True)  # left by a build killed at its very end
        yield finished or _build(recipe, entry, to, load, how or BuildOptions())


def _build_settings(recipe: StageRecipe, entry: SourceEntry) -> dict[str, Any]:
    """Return everything that the records of a source depend on, as JSON values."""
    common = {"filters": [*recipe.filters, *entry.filters], "format": recipe.format, "seed": recipe.seed_of(entry)}
    values = {**vars(entry), **common, "shard_records": recipe.shard_records}
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str, sort_keys=True))
    return plain


def _existing_report(recipe: StageRecipe, entry: SourceEntry, to: Path) -> Report | None:
    path = to / REPORTS / f"{entry.name}.json"
    if not path.is_file():
        return None
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        made_with, counts = report.pop("made_with"), report
    except (ValueError, KeyError):
        raise UserError(f"{path} is damaged: delete it to build {entry.name} again") from None
    if made_with != _build_settings(recipe, entry):
        raise UserError(f"{entry.name} was built with other settings: delete {path} to build it again")
    dropped, by_category = Counter(counts["dropped"]), Counter(counts["by_category"])
    return Report(name=entry.name, kept=counts["kept"], by_category=by_category, dropped=dropped, is_reused=True)


def _build(recipe: StageRecipe, entry: SourceEntry, to: Path, load: LoadProcessor, how: BuildOptions) -> Report:
    filters = tuple(make_filters([*recipe.filters, *entry.filters], load))
    parts = divide(recipe, entry)
    has_order = any(isinstance(each, OrderedFilter) for each in filters)
    building = to / f"{entry.name}{BUILDING}"
    _start_or_resume(recipe, entry, parts, to, building, must_start=has_order)
    # One part is drawn in several processes; of several parts, each is built in one.
    processes = how.processes if len(parts) == 1 else 1
    plan = PartPlan(recipe=recipe, entry=entry, building=building.absolute(), filters=filters, processes=processes)
    if has_order:
        _build_in_order(plan, parts, how)
    else:
        unfinished = [part for part in parts if not plan.report(part).is_file()]
        for _ in _map_parts(BuildPart(plan), unfinished, how):
            pass
    report = _add_up(plan, parts)
    _publish(plan, parts, to, report)
    return report


def _map_parts(function: Any, items: Sequence[Any], how: BuildOptions) -> Iterator[Any]:
    return map_in_order(function, items, how.on, processes=min(how.processes, len(items)))


def _start_or_resume(
    recipe: StageRecipe,
    entry: SourceEntry,
    parts: Sequence[SourcePart],
    to: Path,
    building: Path,
    *,
    must_start: bool,
) -> None:
    """Prepare the folder of an unfinished source: an earlier one is continued if it was made of the same."""
    settings = {**_build_settings(recipe, entry), "parts": [asdict(part) for part in parts]}
    text = json.dumps(settings, ensure_ascii=False, sort_keys=True) + "\n"
    path = building / SETTINGS
    if not must_start and path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    _clear(entry, to, building)
    for folder in (PARTS, DROPPED, UNJUDGED):
        (building / folder).mkdir(parents=True)
    write_whole(path, text)


def _clear(entry: SourceEntry, to: Path, building: Path) -> None:
    """Remove the files that an earlier build of this source left."""
    shutil.rmtree(building, ignore_errors=True)
    shard = re.compile(rf"{re.escape(entry.name)}-\d{{5}}(-\d{{5}})?(\..*|-images)")  # JSONL has folders of images
    for path in to.glob("*/*"):
        if shard.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _build_in_order(plan: PartPlan, parts: Sequence[SourcePart], how: BuildOptions) -> None:
    """Build a source whose filters compare records: measure all parts, judge them in order, sort all parts."""
    tasks = []
    for part, (measured, dropped) in zip(parts, _map_parts(MeasurePart(plan), parts, how), strict=True):
        tasks.append((part, *_judge_part(plan, measured, dropped)))
    for _ in _map_parts(SortPart(plan), tasks, how):
        pass


def _judge_part(
    plan: PartPlan, measured: Sequence[Measured], dropped: Counter[str]
) -> tuple[list[bool], Counter[str], list[str]]:
    """Return whether each record of the part's file is kept, the counts, and the lines of what is dropped."""
    is_kept: list[bool] = []
    lines: list[str] = []
    for each in measured:
        verdict, by = judge(each.id, plan.filters, each.findings)
        if each.is_in_file:
            is_kept.append(verdict.kept)
        if not verdict.kept:
            dropped[by] += 1
            lines.append(ledger_line(each.id, each.source, verdict, by))
    return is_kept, dropped, lines


def _add_up(plan: PartPlan, parts: Sequence[SourcePart]) -> Report:
    report = Report(name=plan.entry.name)
    for part in parts:
        counts = json.loads(plan.report(part).read_text(encoding="utf-8"))
        report.by_category.update(counts["by_category"])
        report.dropped.update(counts["dropped"])
    report.kept = report.by_category.total()
    return report


def _publish(plan: PartPlan, parts: Sequence[SourcePart], to: Path, report: Report) -> None:
    """Move the files of a source to their final paths, the report last. A stopped move is continued."""
    reports, name = to / REPORTS, plan.entry.name
    dropped = (plan.building / DROPPED / f"{part.number:05d}.ndjson" for part in parts)
    write_whole(reports / f"{name}.dropped.ndjson", "".join(path.read_text(encoding="utf-8") for path in dropped))
    for file in sorted(plan.building.glob("*/*")):
        if file.parent.name not in (PARTS, DROPPED, UNJUDGED):
            (to / file.parent.name).mkdir(exist_ok=True)
            os.replace(file, to / file.parent.name / file.name)
    made_with = _build_settings(plan.recipe, plan.entry)
    text = json.dumps({**report.to_dict(), "made_with": made_with}, ensure_ascii=False, indent=1)
    write_whole(reports / f"{name}.json", text + "\n")
    shutil.rmtree(plan.building)
