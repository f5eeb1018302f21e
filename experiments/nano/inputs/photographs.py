"""Photographs that a package of image processing brings, with names, and the stamps of a drawing program.

There are some twenty of the first and hundreds of the second: too few to know photographs by, but a model that has
seen drawings alone takes every photograph for one.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path, PurePosixPath

from PIL import Image

from vl2.datasets.fetch_package import read_members
from vl2.errors import UserError
from vl2.synth.sprites import Sprite, SpriteSet, crop_to_visible, write_sprite_set

# File, then what it shows in English and in Chinese.
PHOTOGRAPHS = {
    "astronaut.png": ("astronaut", "宇航员"),
    "brick.png": ("brick wall", "砖墙"),
    "camera.png": ("man with a camera", "拿相机的人"),
    "chelsea.png": ("cat", "猫"),
    "clock_motion.png": ("clock", "时钟"),
    "coffee.png": ("cup of coffee", "一杯咖啡"),
    "coins.png": ("coins", "硬币"),
    "grass.png": ("grass", "草"),
    "horse.png": ("horse", "马"),
    "hubble_deep_field.jpg": ("galaxies", "星系"),
    "moon.png": ("surface of the moon", "月球表面"),
    "motorcycle_left.png": ("motorcycle", "摩托车"),
    "motorcycle_right.png": ("motorcycle", "摩托车"),
    "page.png": ("page of a book", "书页"),
    "retina.jpg": ("retina", "视网膜"),
    "text.png": ("handwriting", "手写文字"),
}
STAMP_PX = 192
_STAMP = re.compile(r"^\./usr/share/tuxpaint/stamps/.*\.(png|txt)$")
_NAME_EN = re.compile(r"^(?:An?|The|Some) ([a-z][a-z -]{1,28})\.$")
_PUNCTUATION_ZH = "。 ."


def write_photographs(archive: Path, folder: Path) -> None:
    """Write the photographs and names.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for member, data in read_members(archive, lambda name: PurePosixPath(name).name in PHOTOGRAPHS):
        (folder / PurePosixPath(member).name).write_bytes(data)
    missing = [name for name in PHOTOGRAPHS if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{archive.name} has no {missing[0]}: its layout has changed")
    (folder / "names.json").write_text(json.dumps(PHOTOGRAPHS, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def write_stamps(archive: Path, folder: Path) -> None:
    """Write a sprite set of the stamps that have a short name in both languages ("A cow.", "母牛。")."""
    pictures: dict[str, bytes] = {}
    names: dict[str, tuple[str, str]] = {}
    for member, data in read_members(archive, lambda name: bool(_STAMP.match(name))):
        stem = str(PurePosixPath(member).with_suffix(""))
        if member.endswith(".png"):
            pictures[stem] = data
        elif (named := _names(data.decode("utf-8", "ignore"))) is not None:
            names[stem] = named
    (folder / "art").mkdir(parents=True)
    sprites = []
    for stem in sorted(pictures.keys() & names.keys()):
        picture = crop_to_visible(Image.open(io.BytesIO(pictures[stem])).convert("RGBA"))
        picture.thumbnail((STAMP_PX, STAMP_PX))
        file = f"art/{PurePosixPath(stem).name}.png"
        picture.save(folder / file)
        en, zh = names[stem]
        sprites.append(Sprite(file=file, en=en, zh=zh, group=stem.split("/stamps/")[1].split("/")[0]))
    made = SpriteSet(name="stamps", licence="GPL-2.0-only", origin=archive.name, sprites=tuple(sprites))
    write_sprite_set(folder, made)


def _names(text: str) -> tuple[str, str] | None:
    lines = text.splitlines()
    english = _NAME_EN.match(lines[0].strip()) if lines else None
    chinese = [line.partition("=")[2].strip(_PUNCTUATION_ZH) for line in lines if line.startswith("zh_CN.utf8=")]
    if english is None or not chinese or not 1 <= len(chinese[0]) <= 8:
        return None
    return english[1], chinese[0]
