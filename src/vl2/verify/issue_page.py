"""The page to paste into an issue, as Markdown or JSON, without paths or names of this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import html
import re
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vl2.verify.check import GROUPS, Check

REMOVED = "[removed]"
# Names that say nothing about anybody, and words of the page itself.
TELL_NOTHING = frozenset(
    {"root", "user", "users", "home", "admin", "ubuntu", "localhost", "vl2", "tiny", "small", "base"}
)
SHORTEST_NAME = 3  # a shorter one would be found in every other word
_ENDS = r"\s'\"<>|,;()\[\]"
_PATHS = (
    re.compile(rf"~(?:/[^/{_ENDS}]+)+/?"),
    re.compile(rf"(?<![\w:/.<|~-])(?:/[^/{_ENDS}]+){{2,}}/?"),
    re.compile(rf"(?<!\w)[A-Za-z]:\\(?:[^\\{_ENDS}]+\\)*[^\\{_ENDS}]*"),
)


@dataclass(frozen=True, kw_only=True)
class Redactor:
    """Takes places and names out of text. Paths keep their last part only."""

    places: tuple[tuple[str, str], ...]  # path as text, what stands for it; the longest first
    names: re.Pattern[str] | None

    @classmethod
    def of_this_machine(cls, known: Mapping[Path, str]) -> Redactor:
        """Return one that knows this user and host, and what some paths are to be called."""
        places = {Path(tempfile.gettempdir()): "~"}
        with contextlib.suppress(RuntimeError):  # nobody's home is known
            places[Path.home()] = "~"
        with contextlib.suppress(OSError):  # the working directory was deleted
            places[Path.cwd()] = "."
        spelled = {
            text: name
            for path, name in {**places, **known}.items()
            for text in (str(path), str(path.absolute()), str(path.resolve()))
            if len(text) > 1
        }
        private = {name for name in _own_names() if len(name) >= SHORTEST_NAME and name.lower() not in TELL_NOTHING}
        words = "|".join(re.escape(name) for name in sorted(private, key=len, reverse=True))
        return cls(
            places=tuple(sorted(spelled.items(), key=lambda item: -len(item[0]))),
            names=re.compile(rf"(?<![^\W_])(?:{words})(?![^\W_])", re.IGNORECASE) if private else None,
        )

    def clean(self, text: str) -> str:
        for path, name in self.places:
            # Not inside a longer name: /home/ann is no part of /home/anna.
            text = re.sub(rf"{re.escape(path)}(?![\w.-])", lambda _, name=name: name, text)  # type: ignore[misc]
        for pattern in _PATHS:
            text = pattern.sub(lambda found: re.split(r"[/\\]", found.group().rstrip("/\\"))[-1], text)
        return text if self.names is None else self.names.sub(REMOVED, text)


def _own_names() -> set[str]:
    names = {socket.gethostname(), socket.gethostname().partition(".")[0]}
    with contextlib.suppress(RuntimeError):
        names.add(Path.home().name)
    with contextlib.suppress(OSError, KeyError, ImportError):  # nobody is logged in, or there is no list of users
        names.add(getpass.getuser())
    return names


CELL_CHARACTERS, LINE_CHARACTERS = 500, 4000  # what a damaged file names may have any length
MARKS = {"pass": "pass", "fail": "**FAIL**", "not checked": "not checked", "measured": "measured"}


@dataclass(frozen=True, kw_only=True)
class Page:
    """All checks of one checkpoint on one machine. What is shown went through a `Redactor`."""

    label: str
    size: str | None
    held: str  # how the weights were held, "" where nothing was loaded
    checks: tuple[Check, ...]
    machine: Mapping[str, str]

    def cleaned(self, redactor: Redactor) -> Page:
        """Return the same page without what is private."""
        clean = redactor.clean
        return dataclasses.replace(
            self,
            label=clean(self.label),
            machine={name: clean(value) for name, value in self.machine.items()},
            checks=tuple(
                dataclasses.replace(
                    check, found=clean(check.found), details=tuple(clean(line) for line in check.details)
                )
                for check in self.checks
            ),
        )

    @property
    def has_failed(self) -> bool:
        return any(check.verdict == "fail" for check in self.checks)

    @property
    def summary(self) -> str:
        counts = {verdict: sum(check.verdict == verdict for check in self.checks) for verdict in MARKS}
        return f"{counts['pass']} passed, {counts['fail']} failed, {counts['not checked']} not checked"

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.label,
            "size": self.size,
            "held": self.held,
            "failed": self.has_failed,
            "summary": self.summary,
            "checks": [check.to_dict() for check in self.checks],
            "machine": dict(self.machine),
        }

    def to_markdown(self) -> str:
        held = f", weights held in {self.held}" if self.held else ""
        lines = [
            f"# vl2 verify: {_cell(self.label)}",
            "",
            f"Size: {self.size or 'none of the released ones'}{held}. Result: {self.summary}.",
            "",
            "| | check | result | found |",
            "|---|---|---|---|",
        ]
        for number, group in enumerate(GROUPS, 1):
            for check in self.checks:
                if check.group == group:
                    lines.append(f"| {number} | {check.name} | {MARKS[check.verdict]} | {_cell(check.found)} |")
        lines += ["", "| machine | |", "|---|---|"]
        lines += [f"| {name} | {_cell(value)} |" for name, value in self.machine.items()]
        for check in self.checks:
            if check.details:
                lines += ["", f"<details><summary>{check.group}: {check.name}</summary>", "", *_fenced(check.details)]
                lines += ["", "</details>"]
        return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Return text as one cell of a table: special tokens are neither tags of HTML nor borders of cells."""
    escaped = html.escape(_shortened(" ".join(text.split()), CELL_CHARACTERS), quote=False).replace("|", "\\|")
    # Nobody is called by a page that is pasted, and no other issue is linked.
    return re.sub(r"([@#*_`~\[\]])", r"\\\1", escaped)


def _fenced(lines: tuple[str, ...]) -> list[str]:
    body = "\n".join(_shortened(line, LINE_CHARACTERS) for line in lines)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", body)), default=0))
    return [f"{fence}text", body, fence]


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
