"""Optional imports: the command that installs a missing extra, and objects that a recipe names by import path.

The name `vl2` on the package index belongs to another project, so a hint never says `pip install "vl2[serve]"`. It
names the checkout or repository that this copy came from, or the extra's packages.
"""

from __future__ import annotations

import json
import pkgutil
import re
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from vl2.errors import UserError


def import_extra(module: str, extra: str, what: str) -> Any:
    """Import a module of an extra. Raise UserError that says `what` needs it and how to install it, if it is missing.

    `what` is the subject of the sentence, such as "scoring tables".
    """
    try:
        return pkgutil.resolve_name(f"{module}:")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # the module is there, and something that it needs is not
        raise UserError(f"{what} needs {module.partition('.')[0]}: {install_extra(extra)}") from None


def import_named(path: str, key: str) -> Any:
    """Import the object at MODULE:NAME. Raise UserError, with the recipe's `key` in the message, if that fails."""
    try:
        if ":" not in path:
            raise ValueError("it must be MODULE:NAME")
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        hint = "`python -m vl2` finds modules in the current folder"
        raise UserError(f"{key}: cannot import {path!r}: {error} ({hint})") from None


CHECKOUT = Path(__file__).parents[2]  # where this copy is a checkout; a folder of site-packages' parent otherwise


def install_extra(extra: str) -> str:
    """Return the command that installs an extra of this copy of vl2."""
    if _is_checkout(CHECKOUT):
        return f"pip install -e {_quoted(f'{CHECKOUT}[{extra}]')}"
    try:
        installed = metadata.distribution("vl2")
    except metadata.PackageNotFoundError:
        return f'pip install -e ".[{extra}]" in a checkout of vl2'
    source = _source_url(installed)
    if source is not None:
        return f"pip install {_quoted(f'vl2[{extra}] @ {source}')}"
    return install_packages(*_requirements(installed, extra))


def install_packages(*names: str) -> str:
    """Return the command that installs packages from the package index."""
    return " ".join(["pip install", *(_quoted(name) if re.search(r"[^\w.-]", name) else name for name in names)])


def _is_checkout(folder: Path) -> bool:
    try:
        return re.search(r'^name = "vl2"$', (folder / "pyproject.toml").read_text(encoding="utf-8"), re.M) is not None
    except (OSError, ValueError):
        return False


def _source_url(installed: metadata.Distribution) -> str | None:
    """Return the file or repository that pip installed this copy from (PEP 610), or None if a file is gone."""
    try:
        record = json.loads(installed.read_text("direct_url.json") or "")
        url = str(record["url"])
        vcs = record.get("vcs_info", {}).get("vcs")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if url.startswith("file:") and not Path(unquote(urlsplit(url).path)).exists():
        return None
    return f"{vcs}+{url}" if vcs else url


def _requirements(installed: metadata.Distribution, extra: str) -> list[str]:
    """Return the requirements of an extra, without environment markers."""
    listed = [text.partition(";") for text in installed.requires or ()]
    return [what.strip() for what, _, when in listed if re.search(rf"extra == ['\"]{re.escape(extra)}['\"]", when)]


def _quoted(text: str) -> str:
    """Quote for a shell, with double quotes where possible, because cmd.exe does not know single quotes."""
    return shlex.quote(text) if re.search(r'["$`\\!]', text) else f'"{text}"'
