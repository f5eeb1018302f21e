"""Find the fonts of this machine and those that can draw a text. PIL's built-in font is always available.

A font covers a character if it draws it differently from the glyph for missing characters.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

from vl2.errors import UserError

Font = ImageFont.FreeTypeFont

_SUFFIXES = {".ttf", ".otf", ".ttc", ".woff"}
_PROBE_PX = 16
# Families that are not used for text. The built-in Chinese texts are simplified, and faces for other regions draw some
# characters and commas differently. Symbol fonts draw letters as pictures, and old TeX fonts have other characters at
# Unicode's code points.
_NOT_FOR_TEXT = re.compile(r"CJK (JP|KR|TC|HK)|Symbol|Dingbats|Emoji|Wingdings|Webdings|Math|STIX|^cm[a-z]+\d+")
# Weights whose strokes vanish at text sizes, on a photograph of paper above all.
_TOO_THIN = re.compile(r"Thin|Hairline|(Extra|Ultra) ?Light")
_MAX_FACES = 12
_SAMPLE = "AQZagz019.,"


@dataclass(frozen=True, order=True)
class Face:
    """One face of a font file. An empty path is PIL's built-in font."""

    path: str
    index: int
    name: str


BUILT_IN = Face("", 0, "PIL built-in")


def font_folders() -> list[Path]:
    """Return the existing font folders of this system, and that of matplotlib if it is installed."""
    home = Path.home()
    folders = [
        Path("/usr/share/fonts"),
        Path("/usr/local/share/fonts"),
        home / ".fonts",
        home / ".local/share/fonts",
        Path("/System/Library/Fonts"),
        Path("/Library/Fonts"),
        home / "Library/Fonts",
        Path("C:/Windows/Fonts"),
    ]
    folders += [Path(entry) / "matplotlib/mpl-data/fonts/ttf" for entry in sys.path if entry]
    return [folder for folder in folders if folder.is_dir()]


@lru_cache(maxsize=8)
def find_faces(folders: tuple[str, ...] | None = None) -> tuple[Face, ...]:
    """Return the faces that can draw Latin text, one per name: the built-in one first, the others sorted by name.

    None searches the folders of the system. Raise UserError if a given folder does not exist.
    """
    paths = font_folders() if folders is None else [Path(folder) for folder in folders]
    missing = [path for path in paths if not path.is_dir()]
    if missing:
        raise UserError(f"there is no folder of fonts at {missing[0]}")
    files = sorted(f for folder in paths for f in folder.rglob("*") if f.suffix.lower() in _SUFFIXES)
    named: dict[str, Face] = {}
    for file in files:
        for face in _faces_of(file):
            named.setdefault(face.name, face)
    usable = [face for face in named.values() if covers(face, _SAMPLE) and _draws_letters(face)]
    return (BUILT_IN, *sorted(usable, key=lambda face: face.name))


def _draws_letters(face: Face) -> bool:
    """Return whether different letters look different. A last-resort font draws the same frame for all of them."""
    return len({_drawn(face, char) for char in _SAMPLE}) == len(_SAMPLE)


def _faces_of(file: Path) -> Iterable[Face]:
    for index in range(_MAX_FACES if file.suffix.lower() == ".ttc" else 1):
        try:
            family, style = ImageFont.truetype(str(file), _PROBE_PX, index=index).getname()
        except (OSError, ValueError):
            return
        if not _NOT_FOR_TEXT.search(str(family)):
            yield Face(str(file), index, f"{family} {style}")


@lru_cache(maxsize=256)
def load(face: Face, size_px: int) -> Font:
    """Return the font of a face at a size in pixels."""
    if not face.path:
        font = ImageFont.load_default(size_px)
        assert isinstance(font, Font), "Pillow was built without FreeType"
        return font
    # Use the basic layout engine: not every build of Pillow has the complex one, which would place text differently.
    return ImageFont.truetype(face.path, size_px, index=face.index, layout_engine=ImageFont.Layout.BASIC)


def covers(face: Face, text: str) -> bool:
    """Return whether a face has a glyph for every character of a text, except spaces."""
    return all(char.isspace() or _has_glyph(face, char) for char in set(text))


@lru_cache(maxsize=200_000)
def _has_glyph(face: Face, char: str) -> bool:
    return _drawn(face, char) != _drawn(face, "\U0010ffff")


@lru_cache(maxsize=4096)
def _drawn(face: Face, char: str) -> tuple[tuple[int, int], bytes]:
    mask = load(face, _PROBE_PX).getmask(char)
    return mask.size, bytes(mask)


def faces_for(text: str, folders: tuple[str, ...] | None = None) -> list[Face]:
    """Return the faces that can draw all characters of a text, in the order of `find_faces`."""
    return [face for face in find_faces(folders) if covers(face, text)]


def choose_face(rng: random.Random, text: str, folders: tuple[str, ...] | None = None) -> Face | None:
    """Return a random face that can draw a text, or None if no font can. Hairline weights are used only if need be."""
    covering = faces_for(text, folders)
    faces = [face for face in covering if not _TOO_THIN.search(face.name)] or covering
    return rng.choice(faces) if faces else None


@lru_cache(maxsize=8)
def languages(folders: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """Return the languages that this machine's fonts can draw: ("en", "zh") or ("en",)."""
    return ("en", "zh") if faces_for("中文字体识别的请龙", folders) else ("en",)
