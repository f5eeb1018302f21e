"""The fonts of the held-out pictures: Debian packages that training does not take, unpacked beside the system."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from fontTools.ttLib import TTCollection  # type: ignore[import-untyped, unused-ignore]
from PIL import ImageFont

from vl2.errors import UserError

# Package and the files taken from it. Fonts with old-style digits are left out: their 1 looks like an i without a dot.
# All are free: OFL-1.1, but WenQuanYi Micro Hei (Apache-2.0, or GPL-3 with the font exception) and Atkinson
# Hyperlegible (its own licence).
FILES: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "fonts-atkinson-hyperlegible": ("AtkinsonHyperlegible-Regular.otf", "AtkinsonHyperlegible-Bold.otf"),
        "fonts-averia-sans-gwf": ("AveriaSansGWF-Regular.ttf",),
        "fonts-cabin": ("Cabin-Regular.otf",),
        "fonts-comfortaa": ("Comfortaa-Regular.ttf",),
        "fonts-dosis": ("Dosis-Medium.otf",),
        "fonts-gfs-artemisia": ("GFSArtemisia.otf", "GFSArtemisiaBold.otf"),
        "fonts-karla": ("Karla-Regular.otf", "Karla-Bold.otf"),
        "fonts-manrope": ("Manrope-Regular.ttf",),
        "fonts-mononoki": ("mononoki-Regular.ttf",),
        "fonts-quattrocento": ("Quattrocento-Regular.otf",),
        "fonts-yrsa-rasa": ("Yrsa-Regular.ttf", "Rasa-Regular.ttf"),
    },
    "zh": {
        "fonts-lxgw-wenkai": ("LXGWWenKai-Regular.ttf", "LXGWWenKai-Medium.ttf"),
        "fonts-wqy-microhei": ("wqy-microhei.ttf",),
    },
}


@dataclass(frozen=True, kw_only=True)
class Fonts:
    """Files of fonts by language."""

    en: tuple[Path, ...]
    zh: tuple[Path, ...]

    def choose(self, rng: Random, language: str) -> Path:
        return rng.choice(self.zh if language == "zh" else self.en)


def load(path: Path, size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size_px)


def fetch_fonts(folder: Path) -> Fonts:
    """Return the fonts in a folder, downloaded into it where they are missing."""
    for language, packages in FILES.items():
        for package, names in packages.items():
            if not all((folder / language / name).is_file() for name in names):
                _unpack(package, names, folder / language)
    return fonts_in(folder)


def fonts_in(folder: Path) -> Fonts:
    """Return the fonts of a folder that holds them all. UserError where one is missing."""
    found = {
        language: tuple(folder / language / name for names in packages.values() for name in names)
        for language, packages in FILES.items()
    }
    for path in (*found["en"], *found["zh"]):
        if not path.is_file():
            raise UserError(f"the font {path} is missing: python -m experiments.nano.held_out fetches it")
    return Fonts(**found)


def _unpack(package: str, names: Sequence[str], to: Path) -> None:
    to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["apt-get", "download", "-qq", package], cwd=scratch, check=True, stderr=subprocess.DEVNULL)
        subprocess.run(["dpkg", "-x", str(next(Path(scratch).glob("*.deb"))), scratch], check=True)
        for name in names:
            file = next(Path(scratch).rglob(name), None)
            if file is not None:
                shutil.copyfile(file, to / name)
            else:  # browsers take no collection, so its first font is taken out
                collection = next(Path(scratch).rglob(f"{Path(name).stem}.ttc"))
                TTCollection(str(collection)).fonts[0].save(to / name)
