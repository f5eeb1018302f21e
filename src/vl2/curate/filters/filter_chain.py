"""What a filter is, and a chain of them: those kept come out in order, and a ledger says what became of each record.

The ledger is JSON lines: {"id", "source", "kept", "filter", "why"}; "filter" is the one that dropped the record.
The first filter that says no ends the chain for a record, so the cheap ones go first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

from vl2.data.ray_map import Where, map_in_order
from vl2.data.record import Record
from vl2.data.store.entry import json_line
from vl2.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a record is kept; a dropped one says why, in one line."""

    kept: bool
    why: str = ""

    def __post_init__(self) -> None:
        if not self.kept and not self.why:
            raise ValueError("a record is never dropped without a reason")


KEPT = Verdict(kept=True)


def dropped(why: str) -> Verdict:
    """Return the verdict of a record that goes, and the reason as one line."""
    return Verdict(kept=False, why=" ".join(why.split()))


class Filter(Protocol):
    """A filter that looks at one record at a time: the same verdict whenever and wherever it is asked."""

    @property
    def name(self) -> str: ...

    def __call__(self, record: Record) -> Verdict: ...


class OrderedFilter(ABC):
    """A filter that remembers what it kept, so its verdicts depend on the order of the records.

    The work is cut in two: `measure` looks at one record alone and may run on any machine, so it holds settings and
    no memory; `judge` is cheap, is called once for each record in order, and remembers.
    """

    name: str
    measure: Callable[[Record], Any]

    @abstractmethod
    def judge(self, record: Record, measured: Any) -> Verdict:
        """Return the verdict on a record that was measured, and remember the record if it is kept."""

    def __call__(self, record: Record) -> Verdict:
        return self.judge(record, self.measure(record))


@dataclass(kw_only=True)
class Counts:
    """What a run did so far."""

    seen: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # by filter

    def add(self, verdict: Verdict, by: str) -> None:
        self.seen += 1
        self.kept += verdict.kept
        if not verdict.kept:
            self.dropped[by] += 1


def run_filters(
    records: Iterable[Record],
    filters: Sequence[Filter | OrderedFilter],
    *,
    ledger: Path | None = None,
    counts: Counts | None = None,
    on: Where = "local",
) -> Iterator[Record]:
    """Yield the records that every filter keeps, in order; write `ledger` and fill `counts` on the way.

    With on="ray" the looking happens on a cluster; the verdicts and the ledger are the same. Ordered filters remember
    what they kept, so a chain of them serves one run.
    """
    names = [each.name for each in filters]
    if len(set(names)) != len(names):
        raise UserError(f"each filter may stand once in a chain, got {', '.join(names)}")
    counts = Counts() if counts is None else counts
    with nullcontext() if ledger is None else ledger.open("w", encoding="utf-8") as file:
        for record, findings in map_in_order(Chain(filters).measure, records, on):
            verdict, by = _judged(record, filters, findings)
            counts.add(verdict, by)
            if file is not None:
                _write(file, record, verdict, by)
            if verdict.kept:
                yield record


class Chain:
    """The part of a chain that looks at one record alone, wherever it runs."""

    def __init__(self, filters: Sequence[Filter | OrderedFilter]) -> None:
        # Of an ordered filter only this part travels to other machines, not what it remembers.
        self._steps = [(each.measure if isinstance(each, OrderedFilter) else each) for each in filters]

    def measure(self, record: Record) -> tuple[Record, list[Any]]:
        """Return the record and what each filter found, up to the first that drops it on its own."""
        findings = []
        for step in self._steps:
            findings.append(step(record))
            if isinstance(findings[-1], Verdict) and not findings[-1].kept:
                break
        return record, findings


def _judged(record: Record, filters: Sequence[Filter | OrderedFilter], findings: list[Any]) -> tuple[Verdict, str]:
    verdict = Verdict(kept=True)
    for each, found in zip(filters, findings, strict=False):
        verdict = each.judge(record, found) if isinstance(each, OrderedFilter) else found
        if not verdict.kept:
            return verdict, each.name
    return verdict, ""


def _write(file: TextIO, record: Record, verdict: Verdict, by: str) -> None:
    line = {"id": record.id, "source": record.source, "kept": verdict.kept, "filter": by, "why": verdict.why}
    file.write(json_line(line))
