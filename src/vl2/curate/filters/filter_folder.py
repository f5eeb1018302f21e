"""Filter whole stores into a folder, a part at a time, so that a run that was killed goes on where it was.

    OUT/settings.json       what the run depends on; another run into the same folder must have the same
    OUT/kept/00000.parquet  the kept records of the first part of the input
    OUT/ledger/00000.ndjson what became of each record of that part, and why
    OUT/summary.json        counts by filter, when all is done

A part is finished when its ledger is there. When a run goes on, filters that remember what they kept are shown again
what they saw before, nothing else is looked at twice: the result is that of a run in one go.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from vl2.curate.filters.filter_catalog import AnyFilter
from vl2.curate.filters.filter_chain import Counts, OrderedFilter, run_filters
from vl2.data.ray_map import Where
from vl2.data.record import Record
from vl2.data.store import Located, Problem, write_records
from vl2.data.store.entry import Found, check_text, json_line
from vl2.errors import UserError
from vl2.files import write_whole

PART_RECORDS = 2_000  # of the input
READING = "read"  # stands for a filter where a record could not be read


@dataclass(kw_only=True)
class Done:
    """What a run left: counts of the whole input, and how many parts were there already."""

    seen: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # by filter
    parts_reused: int = 0

    def add(self, line: dict[str, Any]) -> None:
        self.seen += 1
        self.kept += line["kept"]
        if not line["kept"]:
            self.dropped[line["filter"]] += 1

    def to_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "kept": self.kept, "dropped": dict(sorted(self.dropped.items()))}


def filter_folder(
    found: Iterable[Found],
    filters: Sequence[AnyFilter],
    out: Path,
    settings: object,
    *,
    part_records: int = PART_RECORDS,
    ending: str = "parquet",
    on: Where = "local",
) -> Done:
    """Filter records into a folder. UserError if the folder holds a run of other settings."""
    if part_records < 1:
        raise UserError(f"a part must hold at least 1 record, got {part_records}")
    _claim(out, {"filters": settings, "part_records": part_records, "format": ending})
    done = Done()
    for number, part in enumerate(_parts(found, part_records)):
        ledger = out / "ledger" / f"{number:05d}.ndjson"
        kept = out / "kept" / f"{number:05d}.{ending}"
        if ledger.is_file():
            lines = [json.loads(line) for line in ledger.read_text(encoding="utf-8").splitlines()]
            _remember(part, lines, filters, ledger)
            done.parts_reused += 1
        else:
            lines = _filter_part(part, filters, ledger, kept, on)
        for line in lines:
            done.add(line)
    write_whole(out / "summary.json", json.dumps(done.to_dict(), indent=1) + "\n")
    return done


def _claim(out: Path, settings: object) -> None:
    text = json.dumps(settings, sort_keys=True, default=str, indent=1) + "\n"
    path = out / "settings.json"
    if path.is_file():
        if path.read_text(encoding="utf-8") != text:
            raise UserError(f"{out} holds a run with other settings: choose another folder")
        return
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: choose another folder")
    for folder in ("kept", "ledger"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    write_whole(path, text)


def _parts(found: Iterable[Found], part_records: int) -> Iterator[list[Found]]:
    remaining = map(_writable, found)
    while part := list(islice(remaining, part_records)):
        yield part


def _writable(item: Found) -> Found:
    """Return a problem in place of a record that no file could hold."""
    if isinstance(item, Located):
        try:
            check_text(item.record)
        except UserError as error:
            return Problem(place=item.place, id=item.record.id, kind="text", why=str(error))
    return item


def _filter_part(
    part: list[Found], filters: Sequence[AnyFilter], ledger: Path, kept: Path, on: Where
) -> list[dict[str, Any]]:
    unfinished = ledger.with_name(f"{ledger.name}.part")
    records = [item.record for item in part if isinstance(item, Located)]
    passed = list(run_filters(records, filters, ledger=unfinished, counts=Counts(), on=on))
    judged = iter(json.loads(line) for line in unfinished.read_text(encoding="utf-8").splitlines())
    lines = [_unread(item) if isinstance(item, Problem) else next(judged) for item in part]
    kept.unlink(missing_ok=True)  # of a run that was killed before its ledger was there
    if passed:
        write_records(passed, str(kept))
    unfinished.unlink()
    write_whole(ledger, "".join(map(json_line, lines)))
    return lines


def _unread(problem: Problem) -> dict[str, Any]:
    why = f"{problem.place}: {problem.why}"
    return {"id": problem.id, "source": None, "kept": False, "filter": READING, "why": " ".join(why.split())}


def _remember(part: list[Found], lines: list[dict[str, Any]], filters: Sequence[AnyFilter], ledger: Path) -> None:
    """Show the records of a finished part again to the filters that remember them."""
    if [item.record.id if isinstance(item, Located) else item.id for item in part] != [line["id"] for line in lines]:
        raise UserError(f"{ledger} is of other records: the input has changed, choose another folder")
    names = [each.name for each in filters]
    for item, line in zip(part, lines, strict=True):
        if isinstance(item, Located):
            reached = len(names) if line["kept"] else names.index(line["filter"])
            _show(item.record, filters[:reached])


def _show(record: Record, filters: Sequence[AnyFilter]) -> None:
    for each in filters:
        if isinstance(each, OrderedFilter):
            each.judge(record, each.measure(record))
