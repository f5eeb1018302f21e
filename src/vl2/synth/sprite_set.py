"""A sprite set: a folder of cut-out pictures with their names in English and Chinese, and their licence.

    noto/sprites.json    {"name": "noto", "licence": "Apache-2.0", "from": "@iconify-json/noto 1.2.9",
                          "sprites": [{"file": "art/cow.svg", "en": "cow", "zh": "奶牛", "group": "Animals & Nature"}]}
    noto/art/cow.svg

`vl2 data fetch` makes such folders; one of your own pictures is this file written by hand. Files are SVG or PNG with
transparency. `group` may be left out; it tells things from signs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from vl2.errors import UserError

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
