"""The protocol of filters, and a chain that runs several of them over records in order.

A ledger of JSON lines {"id", "source", "kept", "filter", "why"} records the verdict on every record; "filter" is the
filter that dropped it. The first filter that drops a record ends the chain for it, so cheap filters should come first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vl2.data.ray_map import MapBackend, map_in_order
from vl2.data.record import Record
from vl2.data.store.entry import json_line
from vl2.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The decision on a record, with a one-line reason if it is dropped."""

    kept: bool
    why: str = ""

    def __post_init__(self) -> None:
        if not self.kept and not self.why:
            raise ValueError("a record is never dropped without a reason")


KEPT = Verdict(kept=True)


def dropped(why: str) -> Verdict:
    """Return a verdict that drops a record, with the reason on one line."""
    return Verdict(kept=False, why=" ".join(why.split()))


class Filter(Protocol):
    """A filter whose verdict depends on the record alone, so it may run in any order and on any machine."""

    @property
    def name(self) -> str: ...

    def __call__(self, record: Record) -> Verdict: ...


class OrderedFilter(ABC):
    """A filter that remembers the records it kept, so its verdicts depend on their order.

    The work has two parts. `measure` is stateless, depends on one record alone and may run on any machine. `judge` is
    cheap, keeps the state and is called once for each record in order.
    """

    name: str
    measure: Callable[[Record], Any]

    @abstractmethod
    def judge(self, record_id: str, measured: Any) -> Verdict:
        """Return the verdict on a measured record, and remember the record if it is kept."""

    def __call__(self, record: Record) -> Verdict:
        return self.judge(record.id, self.measure(record))


@dataclass(kw_only=True)
class Counts:
    """The running counts of a filter run."""

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
    on: MapBackend = "local",
) -> Iterator[Record]:
    """Yield the records that every filter keeps, in order, while writing `ledger` and updating `counts`.

    With on="ray" the stateless parts of the filters run on a cluster; the verdicts and the ledger are the same.
    Ordered filters keep state, so they must not be reused for another run. Raise UserError if a filter occurs twice.
    """
    names = [each.name for each in filters]
    if len(set(names)) != len(names):
        raise UserError(f"each filter may stand once in a chain, got {', '.join(names)}")
    counts = Counts() if counts is None else counts
    with nullcontext() if ledger is None else ledger.open("w", encoding="utf-8") as file:
        for record, findings in map_in_order(StatelessChain(filters).measure, records, on):
            verdict, by = judge(record.id, filters, findings)
            counts.add(verdict, by)
            if file is not None:
                file.write(ledger_line(record.id, record.source, verdict, by))
            if verdict.kept:
                yield record


class StatelessChain:
    """The stateless part of a chain of filters, which may run on any machine."""

    def __init__(self, filters: Sequence[Filter | OrderedFilter]) -> None:
        # Only `measure` of an ordered filter is sent to other machines, not its state.
        self._steps = [(each.measure if isinstance(each, OrderedFilter) else each) for each in filters]

    def measure(self, record: Record) -> tuple[Record, list[Any]]:
        """Return the record and each filter's verdict or measurement, up to the first filter that drops it."""
        findings = []
        for step in self._steps:
            findings.append(step(record))
            if isinstance(findings[-1], Verdict) and not findings[-1].kept:
                break
        return record, findings


def judge(record_id: str, filters: Sequence[Filter | OrderedFilter], findings: list[Any]) -> tuple[Verdict, str]:
    """Return the verdict of a chain on a measured record, and the filter that dropped it, or ""."""
    verdict = Verdict(kept=True)
    for each, found in zip(filters, findings, strict=False):
        verdict = each.judge(record_id, found) if isinstance(each, OrderedFilter) else found
        if not verdict.kept:
            return verdict, each.name
    return verdict, ""


def ledger_line(id: str, source: str, verdict: Verdict, by: str) -> str:
    """Return the line of a ledger for the verdict on a record; `by` is the filter that dropped it, or ""."""
    return json_line({"id": id, "source": source, "kept": verdict.kept, "filter": by, "why": verdict.why})
