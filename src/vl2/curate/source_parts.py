"""Divide a source of a stage into parts that can be built one by one, in any order, on any machine.

A part says what it holds in a few numbers and names. Its records depend on the part and the recipe alone, so a part
that was lost is made again exactly, and nothing but parts and counts has to travel between machines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from vl2.curate.stage_recipe import SourceEntry, StageRecipe
from vl2.data.record import Record
from vl2.data.store import Found, Located, read_records
from vl2.data.store.entry import check_text, load_images
from vl2.data.store.locations import data_file, find_files
from vl2.datasets import convert
from vl2.datasets.hub_sets import HubPart, hub_files, hub_location, hub_parts, read_hub_part
from vl2.errors import UserError
from vl2.synth.catalog import make_source
from vl2.synth.source import GenerationTally, generate
from vl2.synth.table_image import draw_cells


@dataclass(frozen=True, kw_only=True)
class SourcePart:
    """A part of a source. Which fields it uses depends on the kind of the source."""

    number: int
    run: int = 0  # drawn: which of the source's runs
    start: int = 0  # drawn: the first index
    count: int = 0  # drawn: the number of indices
    file: str = ""  # existing records: the file
    hub: HubPart | None = None
    shards: bool = False  # whether it may need several files, so that their names need a second number


def divide(recipe: StageRecipe, entry: SourceEntry) -> list[SourcePart]:
    """Return the parts of a source, in the order of its records. Raise UserError if its files are not there."""
    if entry.draw:
        return _drawn_parts(recipe, entry)
    if entry.hub:
        return _hub_parts(recipe, entry)
    if entry.records and entry.count is None:
        files = find_files(entry.records)
        return [SourcePart(number=number, file=file.name, shards=len(files) > 1) for number, file in enumerate(files)]
    return [SourcePart(number=0)]  # a dataset whose rows can only be read in order, or a limited number of records


def _drawn_parts(recipe: StageRecipe, entry: SourceEntry) -> list[SourcePart]:
    runs, count = len(entry.runs()), entry.count or 0
    parts: list[SourcePart] = []
    for run in range(runs):
        share = count // runs + (run < count % runs)  # if the runs do not divide the count, the first draw one more
        for start in range(0, share, recipe.shard_records):
            size = min(recipe.shard_records, share - start)
            parts.append(SourcePart(number=len(parts), run=run, start=start, count=size))
    return parts


def _hub_parts(recipe: StageRecipe, entry: SourceEntry) -> list[SourcePart]:
    settings = entry.hub_settings()
    location = hub_location(entry.hub, entry.folder, settings.revision)
    files = hub_files(location, entry.split, settings.subset)
    parts = hub_parts(files, settings.columns.values(), recipe.shard_records, entry.count)
    return [SourcePart(number=number, hub=part, shards=len(parts) > 1) for number, part in enumerate(parts)]


def part_records(
    recipe: StageRecipe, entry: SourceEntry, part: SourcePart, dropped: Counter[str], processes: int = 1
) -> Iterator[Record]:
    """Yield the records of a part before filtering, with ids that are unique in the stage.

    `dropped` counts what gives no record, by reason.
    """
    made = _drawn(recipe, entry, part, dropped, processes) if entry.draw else _read(recipe, entry, part, dropped)
    for record in made:
        yield replace(record, id=f"{entry.name}/{record.id}")


def _drawn(
    recipe: StageRecipe, entry: SourceEntry, part: SourcePart, dropped: Counter[str], processes: int
) -> Iterator[Record]:
    seed, runs = recipe.seed_of(entry), entry.runs()
    tally = GenerationTally()
    source = make_source(entry.draw, runs[part.run])
    for record in generate(source, part.count, seed, processes, start=part.start, tally=tally):
        yield replace(record, id=f"{part.run}/{record.id}") if len(runs) > 1 else record
    dropped.update(tally.dropped)


def _read(recipe: StageRecipe, entry: SourceEntry, part: SourcePart, dropped: Counter[str]) -> Iterator[Record]:
    if entry.records:
        return islice(_existing(part.file or entry.records, dropped), entry.count)
    if part.hub is not None:
        converted = read_hub_part(entry.hub, part.hub, entry.hub_settings(), entry.language or "en")
    else:
        options: dict[str, Any] = {"split": entry.split, "language": entry.language, "negatives": entry.negatives}
        options["draw"] = draw_cells if entry.draws_tables else None
        converted = convert(entry.convert, entry.folder, seed=recipe.seed_of(entry), **options)
    limit = None if entry.hub else entry.count
    return islice(_loaded(converted, f"{entry.folder.rstrip('/')}/records", dropped), limit)


def _existing(location: str, dropped: Counter[str]) -> Iterator[Record]:
    for found in read_records(location):
        try:
            yield _checked_record(found)
        except UserError:
            dropped["read"] += 1


def _checked_record(found: Found) -> Record:
    """Return the record if it can be written. Raise UserError if it is a problem or has invalid text."""
    if not isinstance(found, Located):
        raise UserError(found.why)
    check_text(found.record)
    return found.record


def _loaded(converted: Iterator[Any], location: str, dropped: Counter[str]) -> Iterator[Record]:
    folder = data_file(location)
    for item in converted:
        try:
            if not isinstance(item, Record):
                raise UserError(item.why)
            yield load_images(item, folder.read_image)
        except UserError:
            dropped["convert"] += 1
