"""Check paths and URLs that users type."""

from __future__ import annotations

import contextlib
from pathlib import Path

from vl2.errors import UserError

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


def _short(typed: str | Path) -> str:
    text = str(typed)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."
