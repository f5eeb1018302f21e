"""A folder that appears whole or not at all: written beside its final place, then renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vl2.config import Json
from vl2.errors import UserError


def refuse_existing(folder: Path) -> None:
    """Raise UserError if a folder exists and is not empty: nothing is overwritten."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists: choose a new folder to save to")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to write to; it takes its final name when the context is left without an error.

    UserError if it exists and is not empty, or cannot be made.
    """
    refuse_existing(folder)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from None
    try:
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_json(path: Path, content: Json) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
