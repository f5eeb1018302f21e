"""Paths as people type them."""

from __future__ import annotations

import contextlib
from pathlib import Path

from vl2.errors import UserError

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


def _short(typed: str | Path) -> str:
    text = str(typed)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
