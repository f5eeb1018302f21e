"""Format the output of `--help`: the usage line, the whole docstring with its examples, then tyro's option boxes."""

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

# Defaults that mean off. The help does not show them, because omitting the option has the same effect.
NO_DEFAULT = re.compile(r"\(default: (None|''|)\)")


@contextlib.contextmanager
def described(docstring: str) -> Iterator[None]:
    """Insert a docstring into the help that tyro prints inside this context.

    By itself, tyro would drop the examples of a docstring and rewrap its lines.
    """
    output = _Captured(sys.stdout)
    try:
        with contextlib.redirect_stdout(output):
            yield
    except SystemExit as stop:
        usage, _, boxes = without_none(output.getvalue()).partition("\n\n")
        print(output.getvalue() if stop.code else f"{usage}\n\n{wrapped(docstring)}\n\n{boxes.lstrip()}", end="")
        raise


class _Captured(io.StringIO):
    """A text buffer that looks like another stream to libraries that draw boxes and colors."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    def isatty(self) -> bool:
        return self._stream.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding


def without_none(text: str) -> str:
    """Remove empty defaults from a help text. The frame keeps its width."""
    text = re.sub(r"\{None\}\|(\S+)", lambda match: match[1].ljust(len(match[0])), text)
    return NO_DEFAULT.sub(lambda match: " " * len(match[0]), text)


def wrapped(text: str) -> str:
    """Wrap a text to the terminal's width. Indented lines are examples, which stay unchanged for copying."""
    blocks = itertools.groupby(text.splitlines(), lambda line: bool(line) and not line.startswith(" "))
    return "\n".join(
        textwrap.fill(" ".join(lines), columns(), break_on_hyphens=False) if is_prose else "\n".join(lines)
        for is_prose, lines in blocks
    )


def columns() -> int:
    return max(40, min(100, shutil.get_terminal_size().columns))
