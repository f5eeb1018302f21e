"""Files: paths as people type them, TOML, and text that is written completely or not at all."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from vl2.errors import UserError
from vl2.optional_imports import install_packages

SHOWN = 60  # characters of a path in a message: what is no path may be a whole picture
URLS = ("data:", "http://", "https://", "file://")


def local_path(typed: str | Path) -> Path:
    """Return the path with "~" as the home. UserError where no file can be called so, or nobody has that home."""
    try:
        path = Path(typed).expanduser()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.stat()  # raises what would end later calls too
    except RuntimeError:
        raise UserError(f"{_short(typed)}: there is no home of that name") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{_short(typed)} is no path here: {getattr(error, 'strerror', None) or error}") from None
    return path


def is_url(typed: str) -> bool:
    """Tell whether a name of a picture is a URL, which no file is looked for under."""
    return typed[:8].lower().startswith(URLS)


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file. UserError if it is missing or malformed."""
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


def write_whole(path: Path, text: str) -> None:
    """Write a text file in one step: readers see the old file or the new one, never a part.

    Missing folders are made. UserError if it cannot be written; then an older file stays as it was. Half a surrogate
    pair, which no file can hold, becomes a question mark.
    """
    partial = path.with_name(f"{path.name}.part-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8", errors="replace")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def _short(typed: str | Path) -> str:
    text = str(typed)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
