"""What scenes are made of: shapes in colors, or the pictures of a sprite set, named in English and Chinese.

A sprite set is a folder of cut-out pictures with their names, and their licence:

    noto/sprites.json    {"name": "noto", "licence": "Apache-2.0", "from": "@iconify-json/noto 1.2.9",
                          "sprites": [{"file": "art/cow.svg", "en": "cow", "zh": "奶牛", "group": "Animals & Nature"}]}
    noto/art/cow.svg

`vl2 data fetch` makes such folders; one of your own pictures is this file written by hand. Files are SVG or PNG with
transparency. `group` may be left out; it tells things from signs. A sprite drawn at a size comes cropped to its visible
pixels, so that its box is exactly its picture's.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from vl2.errors import UserError
from vl2.optional_imports import install_extra
from vl2.synth.nouns import is_mass
from vl2.synth.shapes import COLORS, SHAPES, draw_shape

INDEX = "sprites.json"
MIN_SPRITES = 3


@dataclass(frozen=True, kw_only=True)
class Sprite:
    """One picture and what it shows."""

    file: str  # relative to the folder
    en: str
    zh: str
    group: str = ""

    def __post_init__(self) -> None:
        path = PurePosixPath(self.file)
        if path.is_absolute() or ".." in path.parts or path.suffix.lower() not in (".svg", ".png"):
            raise UserError(f"file must be an SVG or PNG file in the folder of the set, got {self.file!r}")
        if not self.en.strip() or not self.zh.strip():
            raise UserError(f"{self.file} needs a name in English and in Chinese")


@dataclass(frozen=True, kw_only=True)
class SpriteSet:
    """All sprites of a folder, in the order of their English names."""

    name: str
    licence: str
    origin: str
    sprites: tuple[Sprite, ...]


def write_sprite_set(folder: Path, made: SpriteSet) -> None:
    """Write the index of a set whose pictures lie in the folder already."""
    entries = [asdict(sprite) for sprite in made.sprites]
    content = {"name": made.name, "licence": made.licence, "from": made.origin, "sprites": entries}
    text = json.dumps(content, ensure_ascii=False, indent=1)
    (folder / INDEX).write_text(text + "\n", encoding="utf-8")


@lru_cache(maxsize=8)
def read_sprite_set(folder: str) -> SpriteSet:
    """Read a set and see that its pictures are there. Of several sprites with one English name the first is kept."""
    path = Path(folder) / INDEX
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} is not a sprite set: it has no {INDEX}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    entries = content.get("sprites") if isinstance(content, Mapping) else None
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise UserError(f"{path} must hold an object with name, licence and a list of sprites")
    sprites = {
        sprite.en: sprite for sprite in reversed([_sprite(entry, number, path) for number, entry in enumerate(entries)])
    }
    if len(sprites) < MIN_SPRITES:
        raise UserError(f"{folder} has {len(sprites)} sprites, at least {MIN_SPRITES} are needed")
    missing = [sprite.file for sprite in sprites.values() if not (Path(folder) / sprite.file).is_file()]
    if missing:
        raise UserError(f"{len(missing)} pictures of {folder} are missing, such as {missing[0]}")
    return SpriteSet(
        name=str(content.get("name") or Path(folder).name),
        licence=str(content.get("licence") or "unknown"),
        origin=str(content.get("from") or ""),
        sprites=tuple(sprites[name] for name in sorted(sprites)),
    )


def _sprite(entry: Any, number: int, path: Path) -> Sprite:
    try:
        return Sprite(file=entry["file"], en=entry["en"], zh=entry["zh"], group=entry.get("group", ""))
    except (KeyError, TypeError, AttributeError):
        raise UserError(f'{path}: sprite {number} must be {{"file": ..., "en": ..., "zh": ...}}') from None
    except UserError as error:
        raise UserError(f"{path}: sprite {number}: {error}") from None


VISIBLE_ALPHA = 48  # fainter pixels are cleared: nobody sees them, and a box must not count them
MAX_NAME_EN = 30  # characters
_NO_GROUP = re.compile(r"symbols|flags|smileys|people", re.IGNORECASE)
# Names of emoji that are signs or differ in a detail only, not things that a scene can show.
_NO_THING = re.compile(
    r"button|flag|:|symbol|sign|arrow|skin tone|o’clock|thirty|keycap|square|suit|hand|face|person"
    r"|mark$|cross$|heart$|^input|wireless|mode$|aries|taurus|gemini|cancer|^leo$|virgo|libra|scorpio|sagittarius|capricorn"
    r"|aquarius|pisces|ophiuchus|peace|yin yang|wheel of|recycling|restroom|circle$|dot$|phone off|asterisk|information"
    r"|closet|gesture|vertically|horizontally|^(?:wo)?man .*ing$|yen$|letters$|numbers$"
    # What is done, or how something is: nobody counts badmintons.
    r"|locked\b|^foggy|^fog$|creasing$|^page facing|badminton|lacrosse|^tennis$|ping pong|hockey$|^bowling|^camping"
    r"|^cooking|construction$|^performing|voltage$|^hourglass (?:not )?done",
    re.IGNORECASE,
)
_NO_NOUN = re.compile(
    r"o’clock|thirty|hole$|^(?:hush|deaf|no|fog|foggy)\b|ing$|^(?:mount|north|south|up|down) ", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of thing: what it is called, and how Chinese counts it."""

    en: str
    zh: str
    measure_zh: str = "个"
    art: str = ""  # a path to a PNG or SVG file; "": the built-in shape of that name
    color: str = ""  # of a built-in shape
    group: str = ""  # of things of one sort, where the set says so

    def name(self, language: str) -> str:
        """Return the bare name, for every color of the thing."""
        return self.zh if language == "zh" else self.en

    def color_name(self, language: str) -> str:
        """Return the color of a built-in shape."""
        return COLORS[self.color][0] if language == "zh" else self.color

    def full_name(self, language: str) -> str:
        """Return the name with its color, if it has one."""
        if not self.color:
            return self.name(language)
        joined = "的" if language == "zh" else " "
        return f"{self.color_name(language)}{joined}{self.name(language)}"


def built_in_kinds() -> tuple[Kind, ...]:
    return tuple(
        Kind(en=shape.en, zh=shape.zh, measure_zh=shape.measure_zh, color=color) for shape in SHAPES for color in COLORS
    )


@lru_cache(maxsize=8)
def read_kinds(folder: str) -> tuple[Kind, ...]:
    """Return the kinds of a sprite set, without those of long names."""
    sprites = read_sprite_set(folder).sprites
    return tuple(
        Kind(en=sprite.en, zh=sprite.zh, art=str(Path(folder) / sprite.file), group=sprite.group)
        for sprite in sprites
        if len(sprite.en) <= MAX_NAME_EN
    )


def things(kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
    """Return the kinds that stand for a thing that is counted: not a sign, a gesture, a face or a stuff.

    A built-in shape is one: as an emoji, a red circle is a sign.
    """
    kept = tuple(
        kind
        for kind in kinds
        if not kind.art or not (_NO_THING.search(kind.en) or _NO_GROUP.search(kind.group) or is_mass(kind.en))
    )
    return kept if len(kept) >= 3 else kinds


def is_noun(kind: Kind) -> bool:
    """Say whether "This is a ..." fits: not for what a sign says ("no smoking"), nor for a time ("nine-thirty")."""
    return "symbols" not in kind.group.lower() and not _NO_NOUN.search(kind.en)


@lru_cache(maxsize=256)
def draw_sprite(kind: Kind, side_px: int) -> Image.Image:
    """Draw a kind in a square of that side, cropped to what can be seen (RGBA)."""
    if not kind.art:
        shape = next(shape for shape in SHAPES if shape.en == kind.en)
        picture = draw_shape(shape, COLORS[kind.color][1], side_px)
    elif kind.art.lower().endswith(".svg"):
        picture = draw_svg(_read_svg(kind.art), side_px)
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


def _read_svg(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise UserError(f"cannot open the sprite {path}: {error}") from None


def draw_svg(svg: str, side_px: int) -> Image.Image:
    """Draw an SVG so that what can be seen of it fills a square of that side (RGBA)."""
    try:
        import resvg_py
    except ImportError:
        raise UserError(f"drawing SVG sprites needs resvg-py: {install_extra('data')}") from None
    try:
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * side_px, height=2 * side_px))
    except ValueError as error:
        raise UserError(f"a sprite is no SVG that can be drawn: {error}") from None
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
