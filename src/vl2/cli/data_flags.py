"""The flags that the commands of `vl2 data` share, and what they make."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vl2.cli.flags import CheckpointFlags
from vl2.errors import UserError

if TYPE_CHECKING:
    from vl2.process.processor import Processor

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


def write_text(path: str, text: str) -> None:
    """Write a file; half a character, which no file can hold, becomes a question mark."""
    try:
        Path(path).write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
