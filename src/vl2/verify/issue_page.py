"""The report of `vl2 verify` as Markdown or JSON, to paste into an issue, without private paths and names."""

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
# Names that are not private, and words of the page itself.
COMMON_NAMES = frozenset(
    {"root", "user", "users", "home", "admin", "ubuntu", "localhost", "vl2", "tiny", "small", "base"}
)
MIN_NAME_LENGTH = 3  # a shorter name would match parts of many words
_ENDS = r"\s'\"<>|,;()\[\]"
_PATHS = (
    re.compile(rf"~(?:/[^/{_ENDS}]+)+/?"),
    re.compile(rf"(?<![\w:/.<|~-])(?:/[^/{_ENDS}]+){{2,}}/?"),
    re.compile(rf"(?<!\w)[A-Za-z]:\\(?:[^\\{_ENDS}]+\\)*[^\\{_ENDS}]*"),
)


@dataclass(frozen=True, kw_only=True)
class Redactor:
    """Removes private paths and names from text. A path keeps only its last part."""

    path_names: tuple[tuple[str, str], ...]  # (path, its replacement), the longest path first
    names: re.Pattern[str] | None

    @classmethod
    def of_this_machine(cls, known: Mapping[Path, str]) -> Redactor:
        """Return a redactor for this user and host. `known` maps paths to the names that replace them."""
        path_names = {Path(tempfile.gettempdir()): "~"}
        with contextlib.suppress(RuntimeError):  # there is no home folder
            path_names[Path.home()] = "~"
        with contextlib.suppress(OSError):  # the working directory was deleted
            path_names[Path.cwd()] = "."
        name_by_path = {
            text: name
            for path, name in {**path_names, **known}.items()
            for text in (str(path), str(path.absolute()), str(path.resolve()))
            if len(text) > 1
        }
        private = {name for name in _own_names() if len(name) >= MIN_NAME_LENGTH and name.lower() not in COMMON_NAMES}
        words = "|".join(re.escape(name) for name in sorted(private, key=len, reverse=True))
        return cls(
            path_names=tuple(sorted(name_by_path.items(), key=lambda item: -len(item[0]))),
            names=re.compile(rf"(?<![^\W_])(?:{words})(?![^\W_])", re.IGNORECASE) if private else None,
        )

    def clean(self, text: str) -> str:
        for path, name in self.path_names:
            # A path must not match inside a longer name: /home/ann is not part of /home/anna.
            text = re.sub(rf"{re.escape(path)}(?![\w.-])", lambda _, name=name: name, text)  # type: ignore[misc]
        for pattern in _PATHS:
            text = pattern.sub(lambda found: re.split(r"[/\\]", found.group().rstrip("/\\"))[-1], text)
        return text if self.names is None else self.names.sub(REMOVED, text)


def _own_names() -> set[str]:
    names = {socket.gethostname(), socket.gethostname().partition(".")[0]}
    with contextlib.suppress(RuntimeError):
        names.add(Path.home().name)
    with contextlib.suppress(OSError, KeyError, ImportError):  # the system does not know the user's name
        names.add(getpass.getuser())
    return names


MAX_CELL_CHARS, MAX_LINE_CHARS = 500, 4000  # names in a damaged file may have any length
MARKS = {"pass": "pass", "fail": "**FAIL**", "not checked": "not checked", "measured": "measured"}


@dataclass(frozen=True, kw_only=True)
class Page:
    """The results of all checks of one checkpoint on one machine. Call `cleaned` before showing it to anyone."""

    label: str
    size: str | None
    held: str  # type of the weights in memory, "" if no model was loaded
    checks: tuple[Check, ...]
    machine: Mapping[str, str]

    def cleaned(self, redactor: Redactor) -> Page:
        """Return the page without private paths and names."""
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
    """Escape text for a cell of a Markdown table, because special tokens contain < > and |."""
    escaped = html.escape(_shortened(" ".join(text.split()), MAX_CELL_CHARS), quote=False).replace("|", "\\|")
    # Without this, a page pasted into an issue could mention users (@) and link other issues (#).
    return re.sub(r"([@#*_`~\[\]])", r"\\\1", escaped)


def _fenced(lines: tuple[str, ...]) -> list[str]:
    body = "\n".join(_shortened(line, MAX_LINE_CHARS) for line in lines)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", body)), default=0))
    return [f"{fence}text", body, fence]


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
