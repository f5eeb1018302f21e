"""What a page must not tell: where things lie on this machine, and what its user and the machine are called."""

from __future__ import annotations

import contextlib
import getpass
import re
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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
