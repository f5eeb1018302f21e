"""The result of a check, and the groups of checks in the order of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

# "measured" is for values without a right or wrong, such as speed.
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
MAX_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of one check: a verdict and a sentence that explains it."""

    group: str  # one of GROUPS
    name: str
    verdict: Verdict
    found: str  # one line: what was found, or the reason for "not checked"
    details: tuple[str, ...] = ()  # lines that the page shows verbatim

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
    """Return the first MAX_LISTED lines, and a last line with the number of others."""
    more = len(lines) - MAX_LISTED
    return (*lines[:MAX_LISTED], f"... and {more} more") if more > 0 else tuple(lines)


def number_of(count: int, noun: str) -> str:
    """Return a count with its noun, like "1 tensor" or "2 tensors"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
