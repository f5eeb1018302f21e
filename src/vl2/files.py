"""Files: check paths and URLs that users type, read TOML, and write a text file completely or not at all."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from vl2.errors import UserError
from vl2.optional_imports import install_packages

MAX_SHOWN_CHARS = 60  # of a path in an error message, since a whole encoded image may be given by mistake
URLS = ("data:", "http://", "https://", "file://")


def local_path(typed: str | Path) -> Path:
    """Return the path with "~" expanded, whether the file exists or not.

    Raise UserError if the system cannot have a file of that name, or if there is no home folder of that user.
    """
    try:
        path = Path(typed).expanduser()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.stat()  # raises now for a name that the system does not allow, not in a later call
    except RuntimeError:
        raise UserError(f"{_short(typed)}: there is no home of that name") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{_short(typed)} is no path here: {getattr(error, 'strerror', None) or error}") from None
    return path


def is_url(typed: str) -> bool:
    """Tell whether an image source is a URL rather than the path of a file."""
    return typed[:8].lower().startswith(URLS)


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file. Raise UserError if it is missing or malformed."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError:
            raise UserError(f"TOML files need tomli before Python 3.11: {install_packages('tomli')}") from None
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file atomically: readers see the old file or the new one, never a part of it.

    Missing folders are created, and a lone surrogate is written as a question mark. Raise UserError if the file cannot
    be written; then an older file stays unchanged.
    """
    partial = path.with_name(f"{path.name}.part-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            partial.write_bytes(content)
        else:
            partial.write_text(content, encoding="utf-8", errors="replace")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def _short(typed: str | Path) -> str:
    text = str(typed)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."
