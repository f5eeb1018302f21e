"""Build the stores of a stage, source by source. Each source is built completely or not at all.

    TO/grounding/scenes-00000.parquet    the records of a source and category, in order
    TO/reports/scenes.json               written last: counts of kept and dropped records, and the settings
    TO/reports/scenes.dropped.ndjson     one line for each record that a filter dropped

A source that has a report is finished, so a resumed run continues with the next one. The source's name is prefixed to
ids to make them unique in the stage. Ordered filters such as duplicate_image compare records within a source only.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from glob import escape
from itertools import islice
from pathlib import Path
from typing import Any

from vl2.curate.filters.filter_catalog import LoadProcessor, make_filters
from vl2.curate.filters.filter_chain import Counts, run_filters
from vl2.curate.stage_recipe import SourceEntry, StageRecipe
from vl2.data.ray_map import MapBackend
from vl2.data.record import Record
from vl2.data.store import Found, Located, read_records, write_records
from vl2.data.store.entry import check_text, load_images
from vl2.data.store.locations import data_file
from vl2.datasets import convert
from vl2.errors import UserError
from vl2.synth.catalog import make_source
from vl2.synth.source import GenerationTally, generate
from vl2.synth.table_image import draw_cells

REPORTS = "reports"
PART = ".building"  # ending of the folder of an unfinished source


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
        yield finished or _build(recipe, entry, to, load, how or BuildOptions())


def _build_settings(recipe: StageRecipe, entry: SourceEntry) -> dict[str, Any]:
    """Return everything that the records of a source depend on, as JSON values."""
    seed = recipe.seed if entry.seed is None else entry.seed
    common = {"filters": [*recipe.filters, *entry.filters], "format": recipe.format, "seed": seed}
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
    report = Report(name=entry.name)
    part = to / f"{entry.name}{PART}"
    _clear(entry, to, part)
    part.mkdir()
    filters = make_filters([*recipe.filters, *entry.filters], load)
    ledger, counts = part / "ledger.jsonl", Counts()
    passed = run_filters(_records(recipe, entry, report, how), filters, ledger=ledger, counts=counts, on=how.on)
    _write_by_category(recipe, entry, passed, part, report)
    report.dropped.update(counts.dropped)
    _publish(recipe, entry, to, part, report)
    return report


def _clear(entry: SourceEntry, to: Path, part: Path) -> None:
    """Remove the files that a killed build of this source left."""
    shutil.rmtree(part, ignore_errors=True)
    shard = f"*/{escape(entry.name)}-[0-9][0-9][0-9][0-9][0-9]"
    for path in to.glob(f"{shard}.*"):
        path.unlink()
    for folder in to.glob(f"{shard}-images"):  # image folders of JSONL stores
        shutil.rmtree(folder)


def _records(recipe: StageRecipe, entry: SourceEntry, report: Report, how: BuildOptions) -> Iterator[Record]:
    """Yield the records of a source before filtering, with ids that are unique in the stage."""
    made = _generated(recipe, entry, report, how) if entry.draw else islice(_read(recipe, entry, report), entry.count)
    for record in made:
        yield replace(record, id=f"{entry.name}/{record.id}")


def _generated(recipe: StageRecipe, entry: SourceEntry, report: Report, how: BuildOptions) -> Iterator[Record]:
    seed = recipe.seed if entry.seed is None else entry.seed
    runs, count = entry.runs(), entry.count or 0
    for number, settings in enumerate(runs):
        tally = GenerationTally()
        # If the count is not divisible by the number of runs, the first runs draw one more.
        share = count // len(runs) + (number < count % len(runs))
        source = make_source(entry.draw, settings)
        made = generate(source, share, seed, how.processes, tally=tally, on=how.on)
        yield from (replace(record, id=f"{number}/{record.id}") if len(runs) > 1 else record for record in made)
        report.dropped.update(tally.dropped)


def _read(recipe: StageRecipe, entry: SourceEntry, report: Report) -> Iterator[Record]:
    if entry.records:
        for found in read_records(entry.records):
            try:
                yield _checked_record(found)
            except UserError:
                report.dropped["read"] += 1
        return
    seed = recipe.seed if entry.seed is None else entry.seed
    options: dict[str, Any] = {"split": entry.split, "language": entry.language, "negatives": entry.negatives}
    options["draw"] = draw_cells if entry.draws_tables else None
    folder = data_file(f"{entry.folder.rstrip('/')}/records")
    for converted in convert(entry.convert, entry.folder, seed=seed, **options):
        try:
            if not isinstance(converted, Record):
                raise UserError(converted.why)
            yield load_images(converted, folder.read_image)
        except UserError:
            report.dropped["convert"] += 1


def _checked_record(found: Found) -> Record:
    """Return the record if it can be written. Raise UserError if it is a problem or has invalid text."""
    if not isinstance(found, Located):
        raise UserError(found.why)
    check_text(found.record)
    return found.record


def _write_by_category(
    recipe: StageRecipe, entry: SourceEntry, records: Iterator[Record], part: Path, report: Report
) -> None:
    waiting: dict[str, list[Record]] = {}
    shards: Counter[str] = Counter()

    def write(category: str) -> None:
        file = part / category / f"{entry.name}-{shards[category]:05d}.{recipe.format}"
        write_records(waiting.pop(category), str(file))
        shards[category] += 1

    for record in records:
        report.kept += 1
        report.by_category[record.category] += 1
        own = waiting.setdefault(record.category, [])
        own.append(record)
        if len(own) == recipe.shard_records:
            write(record.category)
    for category in sorted(waiting):
        write(category)


def _publish(recipe: StageRecipe, entry: SourceEntry, to: Path, part: Path, report: Report) -> None:
    """Move the files of a source to their final paths, the report last."""
    reports = to / REPORTS
    judged = (part / "ledger.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    dropped = "".join(line for line in judged if not json.loads(line)["kept"])
    (reports / f"{entry.name}.dropped.ndjson").write_text(dropped, encoding="utf-8")
    for file in sorted(part.glob("*/*")):
        (to / file.parent.name).mkdir(exist_ok=True)
        os.replace(file, to / file.parent.name / file.name)
    text = json.dumps({**report.to_dict(), "made_with": _build_settings(recipe, entry)}, ensure_ascii=False, indent=1)
    unfinished = reports / f"{entry.name}.json.part"
    unfinished.write_text(text + "\n", encoding="utf-8")
    os.replace(unfinished, reports / f"{entry.name}.json")
    shutil.rmtree(part)
