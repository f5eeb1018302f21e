"""Handwriting fonts and CSS style sheets from npm packages, for drawn forms and web pages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from vl2.datasets.fetch_package import Package, read_members
from vl2.errors import UserError


def _npm(name: str, version: str, licence: str) -> Package:
    return Package(registry="npm", name=name, version=version, licence=licence)


HANDWRITING = (
    _npm("@fontsource/caveat", "5.3.0", "OFL-1.1"),
    _npm("@fontsource/kalam", "5.3.0", "OFL-1.1"),
    _npm("@fontsource/patrick-hand", "5.3.0", "OFL-1.1"),
    _npm("@fontsource/indie-flower", "5.3.0", "OFL-1.1"),
    _npm("@fontsource/homemade-apple", "5.3.0", "Apache-2.0"),
    _npm("@fontsource/reenie-beanie", "5.3.0", "OFL-1.1"),
    _npm("@fontsource/shadows-into-light", "5.3.0", "OFL-1.1"),
    _npm("@fontsource/long-cang", "5.3.0", "OFL-1.1"),
    _npm("@fontsource/zhi-mang-xing", "5.3.0", "OFL-1.1"),
    _npm("@fontsource/ma-shan-zheng", "5.3.1", "OFL-1.1"),
)
# The file of a Chinese font has Latin letters too; its other files are parts of it, for the web.
_CHINESE = ("long-cang", "zhi-mang-xing", "ma-shan-zheng")
_FONT = re.compile(r"^package/files/(?P<name>.+?-(?P<subset>latin|chinese-simplified)-\d+-normal\.woff)$")
_LICENCE = "package/LICENSE"

# Each package with its style sheets. Those besides Bootstrap and Bulma style plain HTML elements and need no classes.
STYLE_SHEETS = {
    _npm("bootstrap", "5.3.8", "MIT"): ("dist/css/bootstrap.min.css",),
    _npm("bulma", "1.0.4", "MIT"): ("css/bulma.min.css",),
    _npm("@picocss/pico", "2.1.1", "MIT"): tuple(
        f"css/pico.classless{color}.min.css" for color in ("", ".jade", ".amber", ".violet", ".red")
    ),
    _npm("simpledotcss", "2.3.7", "MIT"): ("simple.min.css",),
    _npm("water.css", "2.1.1", "MIT"): ("out/light.min.css", "out/dark.min.css"),
    _npm("mvp.css", "1.18.0", "MIT"): ("mvp.css",),
    _npm("@exampledev/new.css", "1.1.3", "MIT"): ("new.css",),
    _npm("sakura.css", "1.5.1", "MIT"): ("css/sakura.css", "css/sakura-dark.css", "css/sakura-earthly.css"),
    _npm("milligram", "1.4.1", "MIT"): ("dist/milligram.min.css",),
}


def write_handwriting(folder: Path, archives: Iterable[tuple[Package, Path]]) -> int:
    """Write the fonts of the packages and their licences into a folder, and return the number of fonts.

    Raise UserError if a package has no font.
    """
    count = 0
    for package, archive in archives:
        short = package.name.rpartition("/")[2]
        subset = "chinese-simplified" if short in _CHINESE else "latin"
        found = 0
        for member, data in read_members(archive, lambda name: name == _LICENCE or _FONT.match(name) is not None):
            match = _FONT.match(member)
            if match is None:
                (folder / f"{short}.LICENSE.txt").write_bytes(data)
            elif match["subset"] == subset:
                (folder / match["name"]).write_bytes(data)
                found += 1
        if not found:
            raise UserError(f"{package} has no font: its layout has changed")
        count += found
    return count


def write_style_sheets(folder: Path, archives: Iterable[tuple[Package, Path]]) -> int:
    """Write the style sheets of STYLE_SHEETS into a folder, and return their number. None may be missing."""
    count = 0
    for package, archive in archives:
        short = package.name.rpartition("/")[2].removesuffix(".css")
        wanted = {f"package/{path}": path.rpartition("/")[2] for path in STYLE_SHEETS[package]}
        for member, data in read_members(archive, {*wanted, _LICENCE}.__contains__):
            if member == _LICENCE:
                (folder / f"{short}.LICENSE.txt").write_bytes(data)
                continue
            name = wanted.pop(member)
            (folder / (name if name.startswith(short) else f"{short}-{name}")).write_bytes(data)
            count += 1
        if wanted:
            raise UserError(f"{package} has no {next(iter(wanted))}: its layout has changed")
    return count
