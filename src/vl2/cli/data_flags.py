"""The flags that the commands of `vl2 data` share, and what they make."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import tyro

from vl2.cli.flags import CheckpointFlags
from vl2.errors import UserError

if TYPE_CHECKING:
    from vl2.process.processor import Processor

T = TypeVar("T")
Locations = Annotated[
    tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="LOCATION ...", help_behavior_hint="")
]
OptionalFolder = Annotated[str | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")]
Number = Annotated[int, tyro.conf.arg(metavar="INT")]


def check_locations(locations: tuple[str, ...]) -> None:
    if not locations:
        raise UserError("say where the records are: files, folders, globs or URLs")


def load_processor(model: CheckpointFlags, *, quiet: bool) -> Processor:
    """Return what encodes records for a model. No weights are loaded."""
    from vl2.process.processor import Processor

    tiling = model.tiling_rule()
    return Processor.from_folder(model.locate(quiet=quiet), tiling=tiling, max_tiles=model.max_tiles)


def show_progress(items: Iterator[T], *, quiet: bool) -> Iterator[T]:
    """Pass the items on and count them on stderr where it is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} records"), TimeElapsedColumn())
    console = Console(stderr=True, soft_wrap=True)
    # On a terminal the lines on stdout go above the counter; elsewhere they must stay on stdout.
    is_shared = sys.stdout.isatty()
    with Progress(*columns, console=console, transient=True, redirect_stdout=is_shared) as bar:
        yield from bar.track(items)


def write_text(path: str, text: str) -> None:
    """Write a file; half a character, which no file can hold, becomes a question mark."""
    try:
        Path(path).write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
