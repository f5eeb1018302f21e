"""Read and draw sprites, with names in English and Chinese: built-in colored shapes, or pictures of a sprite set.

A sprite set is a folder of cut-out pictures with an index of their names and their licence:

    noto/sprites.json    {"name": "noto", "licence": "Apache-2.0", "from": "@iconify-json/noto 1.2.9",
                          "sprites": [{"file": "art/cow.svg", "en": "cow", "zh": "奶牛", "group": "Animals & Nature"}]}
    noto/art/cow.svg

`vl2 data fetch` makes such folders; for your own pictures, write this file by hand. Files are SVG, or PNG with
transparency. `group` is optional and helps to distinguish things from signs. Drawn sprites are cropped to their visible
pixels, so that the box of a sprite is exactly that of its image.
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
    """One picture of a sprite set, with its names. Raise UserError if the path or a name is not valid."""

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
    """All sprites of a folder, sorted by their English names."""

    name: str
    licence: str
    origin: str
    sprites: tuple[Sprite, ...]


def write_sprite_set(folder: Path, made: SpriteSet) -> None:
    """Write the index of a sprite set. Its pictures must already be in the folder."""
    entries = [asdict(sprite) for sprite in made.sprites]
    content = {"name": made.name, "licence": made.licence, "from": made.origin, "sprites": entries}
    text = json.dumps(content, ensure_ascii=False, indent=1)
    (folder / INDEX).write_text(text + "\n", encoding="utf-8")


@lru_cache(maxsize=8)
def read_sprite_set(folder: str) -> SpriteSet:
    """Read a sprite set. If several sprites have the same English name, the first is kept.

    Raise UserError if the index is missing or invalid, if a picture is missing, or if there are fewer than MIN_SPRITES.
    """
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


VISIBLE_ALPHA = 48  # pixels with a lower alpha are cleared, because they are invisible and must not extend a box
MAX_NAME_EN = 30  # characters
_NO_GROUP = re.compile(r"symbols|flags|smileys|people", re.IGNORECASE)
# Names of emoji that are not things for a scene: signs, or variants that differ only in a detail.
_NO_THING = re.compile(
    r"button|flag|:|symbol|sign|arrow|skin tone|o’clock|thirty|keycap|square|suit|hand|face|person"
    r"|mark$|cross$|heart$|^input|wireless|mode$|aries|taurus|gemini|cancer|^leo$|virgo|libra|scorpio|sagittarius|capricorn"
    r"|aquarius|pisces|ophiuchus|peace|yin yang|wheel of|recycling|restroom|circle$|dot$|phone off|asterisk|information"
    r"|closet|gesture|vertically|horizontally|^(?:wo)?man .*ing$|yen$|letters$|numbers$"
    # Activities and states, which cannot be counted ("two badmintons").
    r"|locked\b|^foggy|^fog$|creasing$|^page facing|badminton|lacrosse|^tennis$|ping pong|hockey$|^bowling|^camping"
    r"|^cooking|construction$|^performing|voltage$|^hourglass (?:not )?done",
    re.IGNORECASE,
)
_NO_NOUN = re.compile(
    r"o’clock|thirty|hole$|^(?:hush|deaf|no|fog|foggy)\b|ing$|^(?:mount|north|south|up|down) ", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of thing that can be drawn, with its names and its Chinese measure word."""

    en: str
    zh: str
    measure_zh: str = "个"
    art: str = ""  # path of a PNG or SVG file; empty for the built-in shape with this name
    color: str = ""  # color of a built-in shape
    group: str = ""  # group of the sprite in its set, if the set has groups

    def name(self, language: str) -> str:
        """Return the name without a color."""
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
    """Return the kinds of a sprite set, without those whose English name is longer than MAX_NAME_EN."""
    sprites = read_sprite_set(folder).sprites
    return tuple(
        Kind(en=sprite.en, zh=sprite.zh, art=str(Path(folder) / sprite.file), group=sprite.group)
        for sprite in sprites
        if len(sprite.en) <= MAX_NAME_EN
    )


def things(kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
    """Return the kinds that are countable things, and not signs, gestures, faces or substances such as rice.

    Built-in shapes count as things, although emoji of the same shapes are signs. If fewer than three kinds remain,
    return all.
    """
    kept = tuple(
        kind
        for kind in kinds
        if not kind.art or not (_NO_THING.search(kind.en) or _NO_GROUP.search(kind.group) or is_mass(kind.en))
    )
    return kept if len(kept) >= 3 else kinds


def is_noun(kind: Kind) -> bool:
    """Return whether "This is a ..." fits the name. It does not fit signs ("no smoking") and times ("nine-thirty")."""
    return "symbols" not in kind.group.lower() and not _NO_NOUN.search(kind.en)


@lru_cache(maxsize=256)
def draw_sprite(kind: Kind, side_px: int) -> Image.Image:
    """Return an RGBA image of a kind, drawn in a square of `side_px` and cropped to its visible pixels."""
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
    """Return an RGBA image of an SVG, scaled so that the longer side of its visible part has `side_px` pixels.

    Raise UserError if resvg-py is not installed, or if the SVG cannot be drawn.
    """
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
    """Clear the faint pixels of an RGBA image and crop it to the rest. Raise UserError if no pixel is left."""
    pixels = np.array(image)
    pixels[pixels[:, :, 3] < VISIBLE_ALPHA] = 0
    visible = pixels[:, :, 3] > 0
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    if not len(rows):
        raise UserError("a sprite must have visible pixels")
    return Image.fromarray(pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
