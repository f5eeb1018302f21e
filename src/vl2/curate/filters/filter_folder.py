"""Filter whole stores into a folder, part by part, so that a killed run can be resumed.

    OUT/settings.json       the settings of the run; a resumed run must have the same ones
    OUT/kept/00000.parquet  the kept records of the first part of the input
    OUT/ledger/00000.ndjson the verdict on each record of that part
    OUT/summary.json        counts by filter, written at the end

A part is finished when its ledger exists. A resumed run replays finished parts through the ordered filters to restore
their state, and does no other work twice. Its result equals that of an uninterrupted run.
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
from vl2.data.ray_map import MapBackend
from vl2.data.record import Record
from vl2.data.store import Located, Problem, write_records
from vl2.data.store.entry import Found, check_text, json_line
from vl2.errors import UserError
from vl2.files import write_whole

PART_RECORDS = 2_000  # of the input
READING = "read"  # the "filter" of records that could not be read


@dataclass(kw_only=True)
class FilterResult:
    """The result of a run: counts over the whole input, and the number of parts that were already finished."""

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
    on: MapBackend = "local",
) -> FilterResult:
    """Filter records into a folder. Raise UserError if the folder holds a run with other settings."""
    if part_records < 1:
        raise UserError(f"a part must hold at least 1 record, got {part_records}")
    _check_settings(out, {"filters": settings, "part_records": part_records, "format": ending})
    done = FilterResult()
    for number, part in enumerate(_parts(found, part_records)):
        ledger = out / "ledger" / f"{number:05d}.ndjson"
        kept = out / "kept" / f"{number:05d}.{ending}"
        if ledger.is_file():
            lines = [json.loads(line) for line in ledger.read_text(encoding="utf-8").splitlines()]
            _replay_part(part, lines, filters, ledger)
            done.parts_reused += 1
        else:
            lines = _filter_part(part, filters, ledger, kept, on)
        for line in lines:
            done.add(line)
    write_whole(out / "summary.json", json.dumps(done.to_dict(), indent=1) + "\n")
    return done


def _check_settings(out: Path, settings: object) -> None:
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
    """Replace a record whose text UTF-8 cannot encode by a problem."""
    if isinstance(item, Located):
        try:
            check_text(item.record)
        except UserError as error:
            return Problem(place=item.place, id=item.record.id, kind="text", why=str(error))
    return item


def _filter_part(
    part: list[Found], filters: Sequence[AnyFilter], ledger: Path, kept: Path, on: MapBackend
) -> list[dict[str, Any]]:
    unfinished = ledger.with_name(f"{ledger.name}.part")
    records = [item.record for item in part if isinstance(item, Located)]
    passed = list(run_filters(records, filters, ledger=unfinished, counts=Counts(), on=on))
    judged = iter(json.loads(line) for line in unfinished.read_text(encoding="utf-8").splitlines())
    lines = [_unread_line(item) if isinstance(item, Problem) else next(judged) for item in part]
    kept.unlink(missing_ok=True)  # left by a run that was killed before it wrote the ledger
    if passed:
        write_records(passed, str(kept))
    unfinished.unlink()
    write_whole(ledger, "".join(map(json_line, lines)))
    return lines


def _unread_line(problem: Problem) -> dict[str, Any]:
    why = f"{problem.place}: {problem.why}"
    return {"id": problem.id, "source": None, "kept": False, "filter": READING, "why": " ".join(why.split())}


def _replay_part(part: list[Found], lines: list[dict[str, Any]], filters: Sequence[AnyFilter], ledger: Path) -> None:
    """Replay the records of a finished part through the ordered filters that saw them, to restore their state."""
    if [item.record.id if isinstance(item, Located) else item.id for item in part] != [line["id"] for line in lines]:
        raise UserError(f"{ledger} is about other records: the input has changed, choose another folder")
    names = [each.name for each in filters]
    for item, line in zip(part, lines, strict=True):
        if isinstance(item, Located):
            reached = len(names) if line["kept"] else names.index(line["filter"])
            _replay(item.record, filters[:reached])


def _replay(record: Record, filters: Sequence[AnyFilter]) -> None:
    for each in filters:
        if isinstance(each, OrderedFilter):
            each.judge(record.id, each.measure(record))
