"""What scenes are made of: shapes in colours, or pictures from a folder or an icon set, named in English and Chinese.

A sprite drawn at a size comes cropped to its visible pixels, so that its box is exactly its picture's.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vl2.data.construct.shapes import COLOURS, SHAPES, draw_shape
from vl2.errors import UserError

VISIBLE_ALPHA = 48  # fainter pixels are cleared: nobody sees them, and a box must not count them
MAX_NAME_EN = 30  # characters
# Names of emoji that are signs or differ in a detail only, not things that a scene can show.
_NO_THING = re.compile(
    r"button|flag|:|symbol|sign|arrow|skin tone|o’clock|thirty|keycap|square|suit|hand|face|person"
    r"|mark$|cross$|heart$|^input|wireless|mode$|aries|taurus|gemini|cancer|^leo$|virgo|libra|scorpio|sagittarius|capricorn"
    r"|aquarius|pisces|ophiuchus|peace|yin yang|wheel of|recycling|restroom|circle$|dot$|phone off|asterisk|information"
    r"|closet|gesture|vertically|horizontally|^(?:wo)?man .*ing$|yen$|letters$|numbers$",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of thing: what it is called, and how Chinese counts it."""

    en: str
    zh: str
    measure_zh: str = "个"
    art: str = ""  # a path to a PNG or SVG file, or SVG text; "": the built-in shape of that name
    colour: str = ""  # of a built-in shape

    def name(self, language: str) -> str:
        """Return the bare name, for every colour of the thing."""
        return self.zh if language == "zh" else self.en

    def full_name(self, language: str) -> str:
        """Return the name with its colour, if it has one."""
        if not self.colour:
            return self.name(language)
        return f"{COLOURS[self.colour][0]}的{self.zh}" if language == "zh" else f"{self.colour} {self.en}"


def built_in_kinds() -> tuple[Kind, ...]:
    return tuple(
        Kind(en=shape.en, zh=shape.zh, measure_zh=shape.measure_zh, colour=colour)
        for shape in SHAPES
        for colour in COLOURS
    )


@lru_cache(maxsize=4)
def read_kinds(art: str, names: str, names_zh: str) -> tuple[Kind, ...]:
    """Read the kinds of a sprite set.

    `art` is a folder of PNG and SVG files, or an icon set in iconify's JSON. `names` is a JSON of file name (without
    its ending) to {"en": ..., "zh": ...}; or CLDR's annotations.json in English, and `names_zh` the Chinese one: then
    the files are named by their code points (1f34e.svg) or, in iconify's JSON, by their English names.
    """
    named = _cldr_names(names, names_zh) if names_zh else _plain_names(names)
    found = [Kind(en=named[key][0], zh=named[key][1], art=picture) for key, picture in _pictures(art) if key in named]
    kept = {kind.en: kind for kind in found if len(kind.en) <= MAX_NAME_EN}
    if len(kept) < 3:
        raise UserError(f"{art}: {len(kept)} of its pictures have a name in {names}, at least 3 are needed")
    return tuple(kept[name] for name in sorted(kept))


def things(kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
    """Return the kinds that stand for a thing: not a sign, a gesture or a face."""
    kept = tuple(kind for kind in kinds if not _NO_THING.search(kind.en))
    return kept if len(kept) >= 3 else kinds


def _read_json(path: str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} as JSON: {error}") from None


def _plain_names(path: str) -> dict[str, tuple[str, str]]:
    table = _read_json(path)
    if not isinstance(table, dict) or not all(isinstance(v, dict) and {"en", "zh"} <= v.keys() for v in table.values()):
        raise UserError(f'{path} must be an object of name to {{"en": ..., "zh": ...}}')
    return {key: (str(value["en"]), str(value["zh"])) for key, value in table.items()}


def _cldr_names(path_en: str, path_zh: str) -> dict[str, tuple[str, str]]:
    """Return names by code points joined with "-", and by the English name as iconify writes it."""
    english, chinese = _spoken(path_en), _spoken(path_zh)
    named: dict[str, tuple[str, str]] = {}
    for text in english.keys() & chinese.keys():
        pair = (english[text], chinese[text])
        named["-".join(f"{ord(char):x}" for char in text)] = pair
        named.setdefault(_slug(english[text]), pair)
    return named


def _spoken(path: str) -> dict[str, str]:
    """Return the spoken name ("tts") of every character of CLDR's annotations."""
    table = _read_json(path)
    annotations = table.get("annotations", {}).get("annotations") if isinstance(table, dict) else None
    if not isinstance(annotations, Mapping):
        raise UserError(f"{path} is not a file of CLDR annotations")
    return {text: str(entry["tts"][0]) for text, entry in annotations.items() if entry.get("tts")}


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("’", "")).strip("-")


def _pictures(art: str) -> list[tuple[str, str]]:
    """Return (key, art) for every picture of a folder or an icon set."""
    place = Path(art)
    if place.is_dir():
        files = sorted(f for f in place.rglob("*") if f.suffix.lower() in (".png", ".svg"))
        return [(file.stem.lower(), str(file)) for file in files]
    table = _read_json(art)
    icons = table.get("icons") if isinstance(table, dict) else None
    if not isinstance(icons, dict):
        raise UserError(f"{art} is neither a folder nor an icon set with the key icons")
    side = (table.get("width", 16), table.get("height", 16))
    return [(key, _svg(icon, side)) for key, icon in sorted(icons.items())]


def _svg(icon: Mapping[str, Any], side: tuple[int, int]) -> str:
    width, height = icon.get("width", side[0]), icon.get("height", side[1])
    box = f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}"'
    links = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {links} {box}>{icon["body"]}</svg>'


@lru_cache(maxsize=64)
def draw_sprite(kind: Kind, side_px: int) -> Image.Image:
    """Draw a kind in a square of that side, cropped to what can be seen (RGBA)."""
    if not kind.art:
        shape = next(shape for shape in SHAPES if shape.en == kind.en)
        picture = draw_shape(shape, COLOURS[kind.colour][1], side_px)
    elif kind.art.startswith("<svg") or kind.art.lower().endswith(".svg"):
        picture = _draw_svg(kind.art, side_px)
    else:
        picture = _fit(_open(kind.art), side_px)
    return crop_to_visible(picture)


def _open(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGBA")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot open the sprite {path}: {error}") from None


def _fit(image: Image.Image, side_px: int) -> Image.Image:
    image = crop_to_visible(image)
    scale = side_px / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _draw_svg(art: str, side_px: int) -> Image.Image:
    try:
        import resvg_py
    except ImportError:
        raise UserError("drawing SVG sprites needs resvg-py: pip install resvg-py") from None
    text = art if art.startswith("<svg") else Path(art).read_text(encoding="utf-8")
    png = bytes(resvg_py.svg_to_bytes(svg_string=text, width=2 * side_px, height=2 * side_px))
    return _fit(Image.open(io.BytesIO(png)).convert("RGBA"), side_px)


def crop_to_visible(image: Image.Image) -> Image.Image:
    """Clear the faint pixels of an RGBA image and cut off what is empty then. UserError if nothing is left."""
    pixels = np.array(image)
    pixels[pixels[:, :, 3] < VISIBLE_ALPHA] = 0
    visible = pixels[:, :, 3] > 0
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    if not len(rows):
        raise UserError("a sprite must have visible pixels")
    return Image.fromarray(pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
