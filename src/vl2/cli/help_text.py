"""What `--help` prints: a docstring with its examples behind the line of usage, fitted to the terminal."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import TextIO

# Of values that turn something off: leaving the option out does that.
NO_DEFAULT = re.compile(r"\(default: (None|''|)\)")


@contextlib.contextmanager
def described(docstring: str) -> Iterator[None]:
    """Put a docstring into the help that the argument parser prints meanwhile.

    The parser would drop the examples of a docstring, and break its lines anew.
    """
    said = _Captured(sys.stdout)
    try:
        with contextlib.redirect_stdout(said):
            yield
    except SystemExit as stop:
        usage, _, boxes = without_none(said.getvalue()).partition("\n\n")
        print(said.getvalue() if stop.code else f"{usage}\n\n{wrapped(docstring)}\n\n{boxes.lstrip()}", end="")
        raise


class _Captured(io.StringIO):
    """A text that is drawn and colored as another stream would be."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    def isatty(self) -> bool:
        return self._stream.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding


def without_none(text: str) -> str:
    """Take empty defaults out of a help. The frame keeps its width."""
    text = re.sub(r"\{None\}\|(\S+)", lambda match: match[1].ljust(len(match[0])), text)
    return NO_DEFAULT.sub(lambda match: " " * len(match[0]), text)


def wrapped(text: str) -> str:
    """Return a text that fits the terminal. Indented lines are examples, and stay as they can be copied."""
    blocks = itertools.groupby(text.splitlines(), lambda line: bool(line) and not line.startswith(" "))
    return "\n".join(
        textwrap.fill(" ".join(lines), columns(), break_on_hyphens=False) if is_prose else "\n".join(lines)
        for is_prose, lines in blocks
    )


def columns() -> int:
    return max(40, min(100, shutil.get_terminal_size().columns))
