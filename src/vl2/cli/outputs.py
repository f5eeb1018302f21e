"""What commands write: an answer on stdout while it is generated, and files that are checked before the work."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from vl2.errors import UserError


def check_file(path: Path, flag: str) -> None:
    """Raise UserError unless a file can be written here, its folders made if need be."""
    if path.is_dir():
        raise UserError(f"{flag} must name a file, and {path} is a folder")
    if path.exists():
        _check_writable(path, path, flag)
    else:
        check_folder(path.parent, flag, whole=path)


def check_folder(folder: Path, flag: str, *, whole: Path | None = None) -> None:
    """Raise UserError unless files can be written into a folder, which may be one that is still to be made."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise UserError(f"{flag}: cannot write {whole or folder}: {there} is not a folder")
    _check_writable(there, whole or folder, flag)


def _check_writable(there: Path, path: Path, flag: str) -> None:
    if not os.access(there, os.W_OK):
        raise UserError(f"{flag}: cannot write {path}: no permission")


def print_stream(pieces: Iterable[str]) -> None:
    """Print an answer as it comes, and a newline: in all what `print(reply.text)` would print."""
    for piece in strip_stream(pieces):
        print(piece, end="", flush=True)
    print(flush=True)


def strip_stream(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the pieces of a text without its leading and trailing blanks."""
    held = ""  # blanks that may turn out to be the last
    has_begun = False
    for piece in pieces:
        text = held + piece
        kept = text.rstrip()
        held = text[len(kept) :]
        kept = kept if has_begun else kept.lstrip()
        if kept:
            has_begun = True
            yield kept
        elif not has_begun:
            held = ""
