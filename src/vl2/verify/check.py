"""One check and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

# "measured": there is no right or wrong, such as for speed.
Verdict = Literal["pass", "fail", "not checked", "measured"]

GROUPS = (
    "config and files",
    "tensors",
    "tokenizer and template",
    "processor settings",
    "weights",
    "published samples",
    "agreement on this machine",
    "speed and memory",
)
MOST_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class Check:
    """A verdict with the sentence that explains it."""

    group: str  # one of GROUPS
    name: str
    verdict: Verdict
    found: str  # one line; for "not checked" the reason
    details: tuple[str, ...] = ()  # lines that are shown as they are

    def to_dict(self) -> dict[str, Any]:
        return {
            "group": self.group,
            "name": self.name,
            "verdict": self.verdict,
            "found": self.found,
            "details": list(self.details),
        }


def passed_if(is_right: bool) -> Verdict:
    return "pass" if is_right else "fail"


def listed(lines: Sequence[str]) -> tuple[str, ...]:
    """Return the first lines, and how many more there are."""
    more = len(lines) - MOST_LISTED
    return (*lines[:MOST_LISTED], f"... and {more} more") if more > 0 else tuple(lines)


def number_of(count: int, noun: str) -> str:
    """Return "1 tensor", "2 tensors"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
