"""Code of one's own that a recipe names by its import path: `package.module:name`."""

from __future__ import annotations

import pkgutil
from typing import Any

from vl2.errors import UserError


def import_named(path: str, key: str) -> Any:
    """Return what an import path names. UserError if it cannot be imported; `key` is where the recipe names it."""
    try:
        if ":" not in path:
            raise ValueError("it must be MODULE:NAME")
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        hint = "`python -m vl2` finds modules in the current folder"
        raise UserError(f"{key}: cannot import {path!r}: {error} ({hint})") from None
