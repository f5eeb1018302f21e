"""What a filter is, and what it says about a record."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from vl2.data.record import Record


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
