"""Convert the emoji of an icon package to a sprite set, with their English and Chinese names from CLDR.

Skin tones are left out, because the six variants hardly differ, and so are names that are lists ("family: man, boy").
Flags are named after their country.
"""

from __future__ import annotations

import io
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vl2.datasets.fetch_package import Package, read_members
from vl2.errors import UserError
from vl2.synth.sprites import Sprite, SpriteSet, write_sprite_set

VARIATION = "\ufe0f"  # selects the colored form of a character; some packages omit it
_WITH_THE = re.compile(
    r"^United |Islands$|lands$|^(?:Bahamas|Philippines|Maldives|Comoros|Gambia)$|Republic$|Emirates$"
)
Named = Mapping[str, tuple[str, str]]  # character -> (English name, Chinese name)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One emoji of a package."""

    char: str
    key: str  # the stem of its file name
    svg: str
    group: str


def write_emoji(
    folder: Path, name: str, package: Package, drawings: Iterator[Drawing], names: Named, side_px: int
) -> int:
    """Write a sprite set of the drawings that have names, and return their number.

    `side_px` is the side of PNG files; 0 keeps SVG. Raise UserError if no drawing has a name.
    """
    (folder / "art").mkdir()
    sprites = []
    for drawing in drawings:
        named = names.get(drawing.char.replace(VARIATION, ""))
        if named is None or _is_left_out(named[0]):
            continue
        file = f"art/{drawing.key}.{'png' if side_px else 'svg'}"
        (folder / file).write_bytes(_png(drawing.svg, side_px) if side_px else drawing.svg.encode())
        en, zh = _phrases(*named)
        sprites.append(Sprite(file=file, en=en, zh=zh, group=drawing.group))
    if not sprites:
        raise UserError(f"no image of {package} has a name: its layout has changed")
    made = SpriteSet(name=name, licence=package.licence, origin=str(package), sprites=tuple(sprites))
    write_sprite_set(folder, made)
    return len(sprites)


def _is_left_out(en: str) -> bool:
    return "skin tone" in en or (":" in en and not en.startswith("flag: "))


def _phrases(en: str, zh: str) -> tuple[str, str]:
    """Return names in the form used within a sentence."""
    country = en.removeprefix("flag: ")
    if country != en:
        return (
            f"flag of {'the ' if _WITH_THE.search(country) else ''}{country}",
            f"{zh.partition(':')[2].strip()}的旗帜",
        )
    return en.replace("“", '"').replace("”", '"'), zh


def read_iconify(archive: Path, names: Named) -> Iterator[Drawing]:
    """Yield the emoji of an icon set of the iconify collection.

    Some icon sets state the character of an icon. In the others an icon has the name that CLDR used at the time; an
    icon whose name is no longer in use is left out.
    """
    files = read_json_members(archive, "icons.json", "chars.json", "metadata.json")
    icons, chars = files["icons.json"], files["chars.json"]
    groups = {key: group for group, keys in files["metadata.json"].get("categories", {}).items() for key in keys}
    side = (icons.get("width", 16), icons.get("height", 16))
    said = {"".join(chr(int(point, 16)) for point in code.split("-")): key for code, key in sorted(chars.items())}
    for char, key in (said or _by_name(icons["icons"], names)).items():
        icon = icons["icons"].get(key)
        if icon is not None:
            yield Drawing(char=char, key=key, svg=_svg(icon, side), group=groups.get(key, ""))


def _by_name(icons: Iterable[str], names: Named) -> dict[str, str]:
    """Match icons to characters by name; names are compared by their lower-case letters and digits only."""
    chars = {_normalized(en): char for char, (en, _) in names.items()}
    found = ((chars.get(_normalized(key.replace("flag-for-", "flag-"))), key) for key in sorted(icons))
    return {char: key for char, key in found if char is not None}


def _normalized(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]", "", plain.lower())


def _svg(icon: Mapping[str, Any], side: tuple[int, int]) -> str:
    width, height = icon.get("width", side[0]), icon.get("height", side[1])
    box = f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}"'
    links = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {links} {box}>{icon["body"]}</svg>'


def read_openmoji(archive: Path, names: Named) -> Iterator[Drawing]:
    """Yield the emoji of the OpenMoji package: one color SVG each, named by code points. `names` is not used."""
    table = read_json_members(archive, "data/openmoji.json")["data/openmoji.json"]
    is_art = re.compile(r"^package/color/svg/[0-9A-F-]+\.svg$").match
    drawn = {name.rpartition("/")[2][:-4]: data for name, data in read_members(archive, lambda n: bool(is_art(n)))}
    for entry in table:
        svg = drawn.get(entry["hexcode"])
        if svg is not None and not entry["group"].startswith("extras"):
            key = entry["hexcode"].lower()
            yield Drawing(char=entry["emoji"], key=key, svg=svg.decode(), group=entry["group"])


def read_cldr(characters: Path, sequences: Path) -> dict[str, tuple[str, str]]:
    """Return the CLDR names of all characters that have one in both English and Chinese."""
    english, chinese = ({**_spoken(sequences, "annotationsDerived", lang), **_spoken(characters, "annotations", lang)}
                        for lang in ("en", "zh"))  # fmt: skip
    return {char: (english[char], chinese[char]) for char in sorted(english.keys() & chinese.keys())}


def _spoken(archive: Path, kind: str, language: str) -> dict[str, str]:
    file = f"{kind}/{language}/annotations.json"
    entries = read_json_members(archive, file)[file][kind]["annotations"]
    return {char.replace(VARIATION, ""): str(entry["tts"][0]) for char, entry in entries.items() if entry.get("tts")}


def read_json_members(archive: Path, *names: str) -> dict[str, Any]:
    """Return the parsed JSON files of an npm package by name. Raise UserError if one is missing or not valid."""
    wanted = {f"package/{name}": name for name in names}
    found: dict[str, Any] = {}
    for member, data in read_members(archive, wanted.__contains__):
        try:
            found[wanted[member]] = json.load(io.BytesIO(data))
        except ValueError as error:
            raise UserError(f"{member} of {archive.name} is not valid JSON: {error}") from None
    for name in names:
        if name not in found:
            raise UserError(f"{archive.name} has no {name}: its layout has changed")
    return found


def _png(svg: str, side_px: int) -> bytes:
    from vl2.synth.sprites import draw_svg

    buffer = io.BytesIO()
    draw_svg(svg, side_px).save(buffer, "PNG")
    return buffer.getvalue()
